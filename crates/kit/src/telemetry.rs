//! Logs, traces and metrics of the process.
//!
//! Installed once per process; the first caller's name and settings stay. Without a collector the
//! spans still have ids, so that logs carry them and they travel to other services.

mod format;

use std::{
    fs::OpenOptions,
    io::{IsTerminal as _, stderr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::{level_filters::LevelFilter, warn};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    fmt::{self, writer::BoxMakeWriter},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use self::format::WithTraceId;
use crate::{Common, LogFormat, Shutdown};

/// Buckets of histograms of seconds: a fast RPC to a long evaluation.
const SECONDS: &[f64] =
    &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0];
/// Buckets of histograms of bytes: 1 KiB to 16 GiB.
const BYTES: &[f64] = &[
    1024.0,
    16384.0,
    262_144.0,
    4_194_304.0,
    67_108_864.0,
    1_073_741_824.0,
    4_294_967_296.0,
    17_179_869_184.0,
];
const UPKEEP: Duration = Duration::from_secs(5);

static INSTALLED: Mutex<Option<Telemetry>> = Mutex::new(None);

/// The installed telemetry: a handle to read metrics and send what spans are left.
#[derive(Debug, Clone)]
pub struct Telemetry {
    metrics: PrometheusHandle,
    tracer: SdkTracerProvider,
}

/// Installs the process's subscriber, tracer and metrics recorder, or returns what is installed.
///
/// `name` becomes `service.name` of the spans, [`Common::instance`] (or the process id)
/// `service.instance.id`. Must be called in a runtime when there is a collector.
///
/// # Errors
///
/// When the endpoint or the log filter is malformed, or something else has installed a subscriber
/// or recorder.
pub fn install(name: &str, common: &Common) -> anyhow::Result<Telemetry> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(telemetry) = &*installed {
        return Ok(telemetry.clone());
    }

    let filter = EnvFilter::builder()
        .parse(&common.log_filter)
        .with_context(|| format!("log_filter `{}`", common.log_filter))?;
    let json = match common.log_format {
        LogFormat::Json => true,
        LogFormat::Human => false,
        LogFormat::Auto => common.log_file.is_some() || !stderr().is_terminal(),
    };
    let lines = fmt::layer().with_writer(writer(common)?);
    let lines = if json {
        let format = fmt::format().json().flatten_event(true).with_span_list(false);
        lines.json().event_format(WithTraceId::json(format)).boxed()
    } else {
        let format = fmt::format().with_ansi(common.log_file.is_none() && stderr().is_terminal());
        lines.event_format(WithTraceId::human(format)).boxed()
    };

    let tracer = tracer_provider(name, common)?;
    let spans = tracing_opentelemetry::layer().with_tracer(tracer.tracer(name.to_owned()));
    tracing_subscriber::registry()
        .with(spans.with_filter(LevelFilter::INFO))
        .with(lines.with_filter(filter))
        .try_init()
        .context("install the tracing subscriber")?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());

    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("seconds".to_owned()), SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("bytes".to_owned()), BYTES)
        })
        .context("configure histograms")?
        .install_recorder()
        .context("install the metrics recorder")?;
    let telemetry = Telemetry { metrics, tracer };
    *installed = Some(telemetry.clone());
    Ok(telemetry)
}

/// Where log lines go.
fn writer(common: &Common) -> anyhow::Result<BoxMakeWriter> {
    let Some(path) = &common.log_file else { return Ok(BoxMakeWriter::new(stderr)) };
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.with_context(|| format!("open the log file {}", path.display()))?;
    Ok(BoxMakeWriter::new(Mutex::new(file)))
}

fn tracer_provider(name: &str, common: &Common) -> anyhow::Result<SdkTracerProvider> {
    let instance = match common.instance.as_str() {
        "" => std::process::id().to_string(),
        instance => instance.to_owned(),
    };
    let resource = Resource::builder()
        .with_service_name(name.to_owned())
        .with_attribute(KeyValue::new("service.instance.id", instance))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let builder = SdkTracerProvider::builder().with_resource(resource);
    let Some(endpoint) = &common.otlp_endpoint else { return Ok(builder.build()) };
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .with_context(|| format!("build the OTLP exporter to `{endpoint}`"))?;
    Ok(builder.with_batch_exporter(exporter).build())
}

impl Telemetry {
    /// Returns the handle that renders the metrics as Prometheus text.
    #[must_use]
    pub fn metrics(&self) -> PrometheusHandle {
        self.metrics.clone()
    }

    /// Sends the spans that have ended but were not sent yet.
    pub async fn flush(&self) {
        let tracer = self.tracer.clone();
        // It blocks on the exporter, which needs the runtime.
        match tokio::task::spawn_blocking(move || tracer.force_flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "spans were lost"),
            Err(error) => warn!(%error, "spans were lost"),
        }
    }

    /// Keeps the recorder's memory bounded when nobody scrapes.
    pub(crate) fn spawn_upkeep(&self, shutdown: &Shutdown) {
        let (metrics, stop) = (self.metrics(), shutdown.clone());
        shutdown.spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(UPKEEP) => metrics.run_upkeep(),
                    () = stop.cancelled() => return,
                }
            }
        });
    }
}
