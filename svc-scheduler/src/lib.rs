//! The control plane of one validator: turns blocks into phases, phases into a round, and the round
//! into work for the other services.
//!
//! The rules are [`domain::apply`], which is pure. This crate drives it: one loop
//! (`engine`) owns the state, saves it under the leader's fence before anything happens because
//! of it, and keeps one task per unfinished effect (`effects`). It does not sign, parse
//! checkpoints, evaluate or merge: it has that done.

mod config;
mod effects;
mod engine;
mod error;
mod freeze;
mod grpc;
mod leader;
mod merge;
mod metrics;
mod record;
mod resync;
mod reveals;
mod view;

use anyhow::Context as _;
pub use config::{
    Config, DuplicatesConfig, EarlyStopConfig, Evaluation, OwnDataConfig, PolicyConfig, Retention,
    WeightsKind,
};
use kit::{Common, GrpcServer, Shutdown};
use proto::scheduler::v1::scheduler_service_server::SchedulerServiceServer;
use store::{Artifacts, Store};

use crate::{
    grpc::{Handler, JobTerms},
    leader::Leader,
};

/// Runs the scheduler until `shutdown`.
pub async fn run(config: Config, common: Common, shutdown: Shutdown) -> anyhow::Result<()> {
    let policy = config.policy(&common.phases).context("check the policy")?;
    let store = Store::open(&common.store_url, &common.namespace)?;
    let artifacts = Artifacts::open(&common.artifacts_url, &common.data_dir.join("cache"))?;

    let server = GrpcServer::bind(config.grpc_addr, &common.tls).await?;
    let terms = JobTerms {
        terms: policy.terms,
        block_time: config.block_time,
        lease_blocks: config.evaluation.lease_blocks,
    };
    let leader = Leader::new(config, common, policy, store, artifacts.clone())?;
    let handler = Handler::new(leader.engine(), artifacts, terms, shutdown.clone());
    let server = server
        .named("svc-scheduler")
        .reflect(proto::DESCRIPTOR)
        .add(SchedulerServiceServer::new(handler));
    let health = server.health();
    let leading = shutdown.spawn(leader.run(health, shutdown.clone()));
    kit::serve(server, shutdown).await?;
    leading.await.context("join the leader")
}
