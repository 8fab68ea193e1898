//! The admin server: `/healthz`, `/readyz` and `/metrics`, for the machine's own eyes.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::{Router, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::Shutdown;

/// Serves on `addr` until `stop`; readiness is that of `process`.
pub(crate) async fn spawn(
    addr: SocketAddr,
    metrics: PrometheusHandle,
    process: &Shutdown,
    stop: &Shutdown,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(addr)
        .await
        .with_context(|| format!("bind the admin server to {addr}"))?;
    let addr = listener.local_addr().context("read the admin server's address")?;
    if !addr.ip().is_loopback() {
        warn!(%addr, "the admin server has no authentication, and is not on loopback");
    }
    let process = process.clone();
    let router =
        Router::new()
            .route("/healthz", get(StatusCode::OK))
            .route(
                "/readyz",
                get(async move || {
                    if process.is_ready() {
                        StatusCode::OK
                    } else {
                        StatusCode::SERVICE_UNAVAILABLE
                    }
                }),
            )
            .route("/metrics", get(async move || metrics.render()));

    let stopped = stop.clone();
    stop.spawn(async move {
        let stopped = async move { stopped.cancelled().await };
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
            warn!(%error, "the admin server failed");
        }
    });
    info!(%addr, "the admin server listens");
    Ok(addr)
}
