//! The evaluator: holds the base model on one device, pulls jobs from the scheduler, verifies and
//! scores submissions. It has no state but a cache: it can be killed at any moment, and its jobs go
//! to another worker.
//!
//! A job goes through `scheduler` and `lease` (leased, kept alive), `prepare` (`fetch`, `round_data`,
//! `verify`, staged) and `device` (`bench`: run) to `report`; `worker` is the pipeline of them.

mod bench;
mod config;
mod device;
mod error;
mod fetch;
mod grpc;
mod job;
mod lease;
mod memory;
mod metrics;
mod prepare;
mod report;
mod round_data;
mod scheduler;
mod status;
mod verify;
mod worker;

use anyhow::{Context as _, ensure};
pub use config::{Config, DataConfig};
use kit::{Common, GrpcServer, Shutdown};
use proto::{
    evaluator::v1::evaluator_service_server::{EvaluatorServiceServer, SERVICE_NAME},
    scheduler::v1::scheduler_service_client::SchedulerServiceClient,
};
use store::Artifacts;

/// Runs the evaluator until `shutdown`.
///
/// # Errors
///
/// When the device is not there, the address is taken, the artifact store or the scheduler's URL is
/// malformed; when the device or its memory failed on two jobs in a row, so that whoever supervises
/// the process starts it again. Not when the scheduler can't be reached: the evaluator is not ready
/// then, and goes on asking.
pub async fn run(config: Config, common: Common, shutdown: Shutdown) -> anyhow::Result<()> {
    ensure!(config.device.is_available(), "there is no device `{}`", config.device);
    model::use_threads(config.threads);
    let artifacts = Artifacts::open(&common.artifacts_url, &common.data_dir.join("cache"))
        .context("open the artifact store")?;
    let channel = kit::channel(&common.scheduler_url, &common.tls)?;
    let server = GrpcServer::bind(config.grpc_addr, &common.tls).await?;

    let name = config.worker_name(&common.instance);
    let (progress, status) = status::channel(name.clone(), config.device);
    let server = server
        .named("svc-evaluator")
        .reflect(proto::DESCRIPTOR)
        .add(EvaluatorServiceServer::new(grpc::Handler::new(status)));
    let health = server.health();
    // Ready once the scheduler has answered.
    health.set(SERVICE_NAME, false);

    let stop = shutdown.child();
    let scheduler = scheduler::Scheduler::new(name, SchedulerServiceClient::new(channel));
    let worker = worker::Worker {
        preparer: prepare::Preparer {
            fetcher: fetch::Fetcher::new(artifacts),
            data: round_data::RoundData::new(config.data(&common.data_dir)),
        },
        setup: config.bench(),
        reporter: report::Reporter::new(scheduler.clone(), progress, stop.clone()),
        scheduler,
        idle: config.idle,
        ready: Box::new(move |ready| health.set(SERVICE_NAME, ready)),
    };
    let pulling = shutdown.spawn({
        let (stop, server) = (stop.clone(), shutdown.clone());
        async move {
            let ended = Box::pin(worker.run(stop)).await;
            // Without a worker there is nothing to serve.
            server.cancel();
            ended
        }
    });
    kit::serve(server, shutdown).await?;
    Ok(pulling.await.context("join the worker")??)
}
