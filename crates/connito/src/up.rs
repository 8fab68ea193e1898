//! One validator: all five services in one process.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use kit::{Common, Shutdown};
use svc_peer::{Conduct, Honest};

/// Arguments of `connito up`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file of this host; defaults and the environment do without
    #[arg(long, env = "CONNITO_CONFIG")]
    config: Option<PathBuf>,

    /// WebSocket address of the chain, in place of `chain.endpoints`
    #[arg(long)]
    chain: Option<String>,
}

/// The configuration of all five services: one file, a section each.
#[derive(Debug, Clone)]
pub struct ValidatorConfig {
    /// What all share.
    pub common: Common,
    /// The chain service.
    pub chain: svc_chain::Config,
    /// The scheduler.
    pub scheduler: svc_scheduler::Config,
    /// The gateway.
    pub gateway: svc_gateway::Config,
    /// The evaluator.
    pub evaluator: svc_evaluator::Config,
    /// The merger.
    pub peer: svc_peer::Config,
}

impl ValidatorConfig {
    /// Reads file, environment and defaults; an unknown key is an error that names it.
    pub fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        Ok(Self {
            common: kit::config::load(path, "common")?,
            chain: kit::config::load(path, "chain")?,
            scheduler: kit::config::load(path, "scheduler")?,
            gateway: kit::config::load(path, "gateway")?,
            evaluator: kit::config::load(path, "evaluator")?,
            peer: kit::config::load(path, "peer")?,
        })
    }
}

/// A validator that runs in this process.
#[derive(Debug)]
pub struct Validator;

impl Validator {
    /// Runs the five services until `shutdown`, or until one of them fails: then all are stopped.
    pub async fn run(config: ValidatorConfig, shutdown: Shutdown) -> anyhow::Result<()> {
        Self::run_as(Arc::new(Honest), config, shutdown).await
    }

    /// As [`Self::run`], with another conduct towards other validators: for the demonstration.
    pub(crate) async fn run_as(
        conduct: Arc<dyn Conduct>,
        config: ValidatorConfig,
        shutdown: Shutdown,
    ) -> anyhow::Result<()> {
        let ValidatorConfig { common, chain, scheduler, gateway, evaluator, peer } = config;
        let stop = shutdown.child();
        let all = |name: &'static str, result: anyhow::Result<()>| {
            stop.cancel();
            result.context(name)
        };
        let results = tokio::join!(
            async { all("svc-chain", svc_chain::run(chain, common.clone(), stop.child()).await) },
            async {
                let run = svc_scheduler::run(scheduler, common.clone(), stop.child());
                all("svc-scheduler", run.await)
            },
            async {
                all("svc-gateway", svc_gateway::run(gateway, common.clone(), stop.child()).await)
            },
            async {
                let run = svc_evaluator::run(evaluator, common.clone(), stop.child());
                all("svc-evaluator", run.await)
            },
            async {
                let run = svc_peer::run_as(conduct, peer, common.clone(), stop.child());
                all("svc-peer", run.await)
            },
        );
        results.0.and(results.1).and(results.2).and(results.3).and(results.4)
    }
}

pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    let mut config = ValidatorConfig::load(args.config.as_deref())?;
    if let Some(chain) = &args.chain {
        config.chain.endpoints = vec![chain.clone()];
    }
    let admin = config.scheduler.admin_addr;
    let common = config.common.clone();
    kit::run("connito", &common, admin, async move |shutdown| {
        Box::pin(Validator::run(config, shutdown)).await
    })
}
