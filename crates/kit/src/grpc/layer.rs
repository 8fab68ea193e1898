//! One span, one count and one duration for every RPC.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, Request, Response};
use metrics::{counter, histogram};
use tokio::time::Instant;
use tonic::{Code, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field::Empty, info_span};

use super::body::WatchedBody;
use crate::{Shutdown, trace};

/// Watches the RPCs of the server `name`.
#[derive(Debug, Clone)]
pub(super) struct RpcLayer {
    name: &'static str,
    shutdown: Shutdown,
}

impl RpcLayer {
    pub(super) fn new(name: &'static str, shutdown: Shutdown) -> Self {
        Self { name, shutdown }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = RpcService<S>;

    fn layer(&self, inner: S) -> RpcService<S> {
        RpcService { inner, layer: self.clone() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct RpcService<S> {
    inner: S,
    layer: RpcLayer,
}

impl<S> Service<Request<Body>> for RpcService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (service, method) = split(request.uri().path());
        let span = info_span!(
            "grpc",
            otel.name = format!("{service}/{method}"),
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = method,
            rpc.grpc.status_code = Empty,
            connito.service = self.layer.name,
        );
        trace::attach_headers(&span, request.headers());
        let mut rpc = Rpc {
            service: service.to_owned(),
            method: method.to_owned(),
            span: span.clone(),
            started: Instant::now(),
            code: None,
        };
        let shutdown = self.layer.shutdown.clone();
        let answer = span.in_scope(|| self.inner.call(request));
        let answer = async move {
            let response = answer.await?;
            rpc.answered(response.headers());
            Ok(response.map(|body| Body::new(WatchedBody::new(body, rpc, shutdown))))
        };
        Box::pin(answer.instrument(span))
    }
}

/// Splits `/package.Service/Method`.
fn split(path: &str) -> (&str, &str) {
    path.trim_start_matches('/').split_once('/').unwrap_or(("", path))
}

/// One RPC, counted when it ends, however it ends.
#[derive(Debug)]
pub(super) struct Rpc {
    service: String,
    method: String,
    span: Span,
    started: Instant,
    code: Option<Code>,
}

impl Rpc {
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Measures the time to the answer, or to the first header of a stream.
    fn answered(&mut self, headers: &HeaderMap) {
        // An answer without a body has its status in the headers.
        self.saw(headers);
        let (service, method) = self.labels();
        histogram!("rpc_seconds", "service" => service, "method" => method)
            .record(self.started.elapsed().as_secs_f64());
    }

    /// Takes the status from headers or trailers, if it is there.
    pub(super) fn saw(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }

    /// Returns the labels of metrics. What is not implemented has a name of the caller's choice,
    /// which must not become a new time series.
    fn labels(&self) -> (String, String) {
        if self.code == Some(Code::Unimplemented) {
            ("unknown".to_owned(), "unknown".to_owned())
        } else {
            (self.service.clone(), self.method.clone())
        }
    }
}

impl Drop for Rpc {
    fn drop(&mut self) {
        // No status was sent: the client went away, or the answer was cut.
        let code = self.code.unwrap_or(Code::Cancelled);
        self.span.record("rpc.grpc.status_code", i32::from(code));
        let (service, method) = self.labels();
        let code = format!("{code:?}");
        counter!("rpc_requests_total", "service" => service, "method" => method, "code" => code)
            .increment(1);
    }
}
