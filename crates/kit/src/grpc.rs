//! The server's end of gRPC: health, reflection, traces, metrics and a graceful stop for all.

mod body;
mod cut;
mod layer;

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use futures::TryStreamExt as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    server::NamedService,
    service::RoutesBuilder,
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};
use tower::Service;
use tracing::{info, warn};

use self::{cut::Cuttable, layer::RpcLayer};
use crate::{
    Certificate, Health, Shutdown,
    config::Tls,
    install_crypto,
    line::{CONNECTION_WINDOW, STREAM_WINDOW},
    tls,
};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A gRPC server that is bound, and not serving yet.
///
/// ```no_run
/// # async fn example(shutdown: kit::Shutdown) -> anyhow::Result<()> {
/// let addr = "127.0.0.1:0".parse()?;
/// let server = kit::GrpcServer::bind(addr, &kit::Tls::default()).await?.named("svc-example");
/// println!("http://{}", server.local_addr());
/// kit::serve(server, shutdown).await
/// # }
/// ```
pub struct GrpcServer {
    listener: TcpListener,
    local_addr: SocketAddr,
    tls: Option<ServerTlsConfig>,
    name: &'static str,
    routes: RoutesBuilder,
    descriptors: Vec<&'static [u8]>,
    health: Health,
    timeout: Duration,
    grace: Duration,
    bulk: bool,
}

impl GrpcServer {
    /// Binds to `addr`; port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// When the address is taken, or a file of `tls` can't be read.
    pub async fn bind(addr: SocketAddr, tls: &Tls) -> anyhow::Result<Self> {
        Self::bind_with(addr, tls::server(tls)?).await
    }

    /// Binds to `addr` for strangers, who show no certificate and are shown this one, and who may
    /// send much at once.
    ///
    /// # Errors
    ///
    /// When the address is taken.
    pub async fn bind_public(
        addr: SocketAddr,
        certificate: Option<&Certificate>,
    ) -> anyhow::Result<Self> {
        let server = Self::bind_with(addr, certificate.map(Certificate::server)).await?;
        Ok(Self { bulk: true, ..server })
    }

    async fn bind_with(addr: SocketAddr, tls: Option<ServerTlsConfig>) -> anyhow::Result<Self> {
        install_crypto();
        let listener = TcpListener::bind(addr)
            .await
            .with_context(|| format!("bind the gRPC server to {addr}"))?;
        let local_addr = listener.local_addr().context("read the gRPC server's address")?;
        Ok(Self {
            listener,
            local_addr,
            tls,
            name: "",
            routes: RoutesBuilder::default(),
            descriptors: Vec::new(),
            health: Health::default(),
            timeout: ANSWER_TIMEOUT,
            grace: GRACE,
            bulk: false,
        })
    }

    /// Sets the name of the server in its spans: the attribute `connito.service`.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Adds an encoded file descriptor set (`proto::DESCRIPTOR`) to reflection.
    #[must_use]
    pub fn reflect(mut self, descriptor: &'static [u8]) -> Self {
        self.descriptors.push(descriptor);
        self
    }

    /// Sets how long a handler may take to answer, or to open its stream: a minute by default.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how long calls in flight may take after a stop: 5 s by default.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Adds a generated service, which is ready unless [`Self::health`] was told otherwise.
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "a builder's method, as tonic names it")]
    pub fn add<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.health.introduce(S::NAME);
        self.routes.add_service(service);
        self
    }

    /// Returns the address that the server listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Returns the handle that says which services are ready.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }
}

impl std::fmt::Debug for GrpcServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcServer")
            .field("name", &self.name)
            .field("local_addr", &self.local_addr)
            .finish_non_exhaustive()
    }
}

/// Serves until `shutdown`, then stops: not ready, no new calls, those in flight finished.
///
/// A handler's stream should watch the shutdown handle and end itself, after what is worth
/// saying. One that does not is ended with UNAVAILABLE once it has had nothing to send for a
/// second; whatever still runs after the grace is cut.
///
/// # Errors
///
/// When the descriptors are malformed, or the transport fails.
pub async fn serve(server: GrpcServer, shutdown: Shutdown) -> anyhow::Result<()> {
    let GrpcServer { listener, local_addr, tls, name, mut routes, descriptors, health, .. } =
        server;
    let (v1, v1alpha) =
        (reflection(&descriptors).build_v1(), reflection(&descriptors).build_v1alpha());
    routes
        .add_service(health.service())
        .add_service(v1.context("build the reflection service")?)
        .add_service(v1alpha.context("build the old reflection service")?);

    let mut builder = Server::builder()
        .timeout(server.timeout)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE));
    if server.bulk {
        builder = builder
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
    }
    if let Some(tls) = tls {
        builder = builder.tls_config(tls).context("configure TLS of the server")?;
    } else if !local_addr.ip().is_loopback() {
        warn!(addr = %local_addr, "gRPC without TLS, and not on loopback");
    }
    shutdown.watch_health(health.clone());
    info!(service = name, addr = %local_addr, "gRPC server listens");

    let stop = {
        let shutdown = shutdown.clone();
        async move {
            shutdown.cancelled().await;
            health.set_all(false);
        }
    };
    // Dropped when this ends, however it ends: no connection outlives it.
    let cut = CancellationToken::new();
    let _cut = cut.clone().drop_guard();
    let incoming = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .map_ok(move |stream| Cuttable::new(stream, cut.clone()));
    let serving = builder
        .layer(RpcLayer::new(name, shutdown.clone()))
        .add_routes(routes.routes())
        .serve_with_incoming_shutdown(incoming, stop);
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(server.grace).await;
    };
    tokio::select! {
        result = serving => result.context("serve gRPC"),
        () = overdue => {
            warn!(service = name, grace = ?server.grace, "calls still in flight, cutting them");
            Ok(())
        }
    }
}

fn reflection(descriptors: &[&'static [u8]]) -> tonic_reflection::server::Builder<'static> {
    descriptors.iter().copied().fold(
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET),
        tonic_reflection::server::Builder::register_encoded_file_descriptor_set,
    )
}
