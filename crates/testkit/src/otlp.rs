//! A collector of spans in the test's own process.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::bail;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, codec::CompressionEncoding, transport::Server};

/// A span as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// 32 hex digits.
    pub trace_id: String,
    /// 16 hex digits.
    pub span_id: String,
    /// 16 hex digits, or empty for the root of a trace.
    pub parent_span_id: String,
    /// Name of the operation.
    pub name: String,
    /// Which service it came from: `service.name`.
    pub service_name: String,
    /// Which process of the service: `service.instance.id`.
    pub instance_id: String,
    /// Attributes of the span, as text.
    pub attributes: BTreeMap<String, String>,
    /// Begin, in nanoseconds since 1970.
    pub start_ns: u64,
    /// End, in nanoseconds since 1970.
    pub end_ns: u64,
}

impl Span {
    /// Returns an attribute as text, `""` if there is none.
    #[must_use]
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// An OTLP collector on loopback that keeps what it gets. Stopped when dropped.
#[derive(Debug)]
pub struct OtlpReceiver {
    addr: SocketAddr,
    spans: Arc<watch::Sender<Vec<Span>>>,
    server: JoinHandle<()>,
}

impl OtlpReceiver {
    /// Starts it on a free port.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let spans = Arc::new(watch::Sender::new(Vec::new()));
        let service = TraceServiceServer::new(Collector(Arc::clone(&spans)))
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(64 << 20);
        let server = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            if let Err(error) =
                Server::builder().add_service(service).serve_with_incoming(incoming).await
            {
                panic!("the collector failed: {error}");
            }
        });
        Ok(Self { addr, spans, server })
    }

    /// Returns what to set `otlp_endpoint` to.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns every span that has come so far, in the order they came.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.spans.borrow().clone()
    }

    /// Returns the spans of one trace that have come so far.
    #[must_use]
    pub fn trace(&self, trace_id: &str) -> Vec<Span> {
        self.spans.borrow().iter().filter(|span| span.trace_id == trace_id).cloned().collect()
    }

    /// Waits until what has come is `enough`, and returns it.
    ///
    /// # Errors
    ///
    /// When it is not after `within`; with the names of what has come.
    pub async fn wait_for(
        &self,
        within: Duration,
        mut enough: impl FnMut(&[Span]) -> bool,
    ) -> anyhow::Result<Vec<Span>> {
        let mut changes = self.spans.subscribe();
        let result = timeout(within, changes.wait_for(|spans| enough(spans))).await;
        match result {
            Ok(spans) => Ok(spans?.clone()),
            Err(_) => {
                let spans = self.spans.borrow();
                let names: Vec<_> = spans
                    .iter()
                    .map(|span| {
                        format!("{} of {} in {}", span.name, span.service_name, span.trace_id)
                    })
                    .collect();
                bail!("not enough spans after {within:?}: {names:#?}")
            }
        }
    }
}

impl Drop for OtlpReceiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The gRPC face of the receiver.
struct Collector(Arc<watch::Sender<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = Vec::new();
        for resource in request.into_inner().resource_spans {
            let about = resource.resource.map(|about| texts(about.attributes)).unwrap_or_default();
            let about = |name: &str| about.get(name).cloned().unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                received.push(Span {
                    trace_id: hex(&span.trace_id),
                    span_id: hex(&span.span_id),
                    parent_span_id: hex(&span.parent_span_id),
                    name: span.name,
                    service_name: about("service.name"),
                    instance_id: about("service.instance.id"),
                    attributes: texts(span.attributes),
                    start_ns: span.start_time_unix_nano,
                    end_ns: span.end_time_unix_nano,
                });
            }
        }
        self.0.send_modify(|spans| spans.append(&mut received));
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|pair| (pair.key, text(pair.value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        None => String::new(),
        Some(Value::StringValue(text)) => text,
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        Some(other) => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
