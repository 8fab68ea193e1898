//! Trace context as text: the `traceparent` of [W3C Trace Context].
//!
//! A `traceparent` (`00-<trace id>-<span id>-<flags>`) can be saved with a round, so that whoever
//! leads it next continues the same trace.
//!
//! [W3C Trace Context]: https://www.w3.org/TR/trace-context/

use std::collections::HashMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::{SpanId, TraceContextExt as _, TraceId},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{IdGenerator as _, RandomIdGenerator},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

const TRACEPARENT: &str = "traceparent";

/// Returns a new random `traceparent`, sampled: the root of a trace that has no span yet.
#[must_use]
pub fn root() -> String {
    let ids = RandomIdGenerator::default();
    format(ids.new_trace_id(), ids.new_span_id(), true)
}

/// Makes `span` a child of `traceparent`, which was saved or received.
///
/// Does nothing when `traceparent` is malformed, or `span` is disabled. Must be called before
/// `span` is entered for the first time.
pub fn attach(span: &Span, traceparent: &str) {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    set_parent(span, extract(&carrier));
}

/// Returns the `traceparent` of the current span, if telemetry is installed and there is one.
#[must_use]
pub fn current() -> Option<String> {
    let context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| format(span.trace_id(), span.span_id(), span.is_sampled()))
}

/// Returns the trace id of a `traceparent`: 32 hex digits, as in logs.
#[must_use]
pub fn trace_id(traceparent: &str) -> Option<&str> {
    traceparent.split('-').nth(1).filter(|id| id.len() == 32)
}

fn format(trace: TraceId, span: SpanId, sampled: bool) -> String {
    format!("00-{trace}-{span}-{:02x}", u8::from(sampled))
}

/// Makes `span` a child of what `headers` carry.
pub(crate) fn attach_headers(span: &Span, headers: &HeaderMap) {
    set_parent(span, extract(&Headers(headers)));
}

/// Writes the context of the current span to `headers`.
pub(crate) fn inject_headers(headers: &mut HeaderMap) {
    TraceContextPropagator::new()
        .inject_context(&Span::current().context(), &mut HeadersMut(headers));
}

fn extract(carrier: &dyn Extractor) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), carrier)
}

fn set_parent(span: &Span, parent: Context) {
    if parent.span().span_context().is_valid() {
        // It fails for a span that is filtered out, and without telemetry: nothing to trace then.
        let _ = span.set_parent(parent);
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
