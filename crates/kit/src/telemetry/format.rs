//! Log lines with the trace id of the span that they were written in.

use std::fmt;

use opentelemetry::{Context, trace::TraceContextExt as _};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Formats as `inner`, and adds `trace_id` and `span_id` where there is a span.
pub(super) struct WithTraceId<F> {
    inner: F,
    json: bool,
}

impl<F> WithTraceId<F> {
    /// For an `inner` that writes one JSON object.
    pub(super) fn json(inner: F) -> Self {
        Self { inner, json: true }
    }

    /// For an `inner` that writes one line of text.
    pub(super) fn human(inner: F) -> Self {
        Self { inner, json: false }
    }
}

impl<S, N, F> FormatEvent<S, N> for WithTraceId<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // The layer of spans has made the entered span the current context of this thread.
        let span = Context::map_current(|context| context.span().span_context().clone());
        if !span.is_valid() {
            return self.inner.format_event(ctx, writer, event);
        }
        let mut line = String::new();
        self.inner.format_event(ctx, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        let (trace_id, span_id) = (span.trace_id(), span.span_id());
        match line.strip_suffix('}').filter(|_| self.json) {
            Some(open) => {
                writeln!(writer, r#"{open},"trace_id":"{trace_id}","span_id":"{span_id}"}}"#)
            }
            None => writeln!(writer, "{line} trace_id={trace_id}"),
        }
    }
}
