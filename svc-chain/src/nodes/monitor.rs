//! Asks every endpoint how the chain stands, again and again, all of them at the same times.

use std::time::Duration;

use futures::future::join_all;
use kit::Shutdown;
use subxt::{
    SubstrateConfig,
    config::RpcConfigFor,
    rpcs::{self, methods::LegacyRpcMethods},
};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::debug;

use super::{News, Nodes, health::Told};
use crate::chain::Block;

/// See the module. One task: a slow endpoint holds up its own probes and no others'.
pub(super) async fn run(nodes: Nodes, shutdown: Shutdown) {
    let (first, every) = (Instant::now(), nodes.0.settings.probe_interval);
    let endpoints = (0..nodes.count()).map(|rank| watch(&nodes, rank, first + every, every));
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = join_all(endpoints) => {}
    }
}

async fn watch(nodes: &Nodes, rank: usize, first: Instant, every: Duration) {
    let mut ticks = interval_at(first, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        probe(nodes, rank).await;
    }
}

/// Asks one endpoint once. Whatever comes of it is on the board.
pub(super) async fn probe(nodes: &Nodes, rank: usize) {
    match ask(nodes, rank).await {
        Ok(Ok(told)) => nodes.hear(rank, News::Probed(told)),
        Ok(Err(lie)) => nodes.lied(rank, lie),
        Err(error) => debug!(%error, rank, "endpoint does not say how the chain stands"),
    }
}

/// What an endpoint tells, or why that cannot be true.
async fn ask(nodes: &Nodes, rank: usize) -> Result<Result<Told, &'static str>, rpcs::Error> {
    const GONE: &str = "it has no header of a head that it told of";
    let methods: LegacyRpcMethods<RpcConfigFor<SubstrateConfig>> =
        LegacyRpcMethods::new(nodes.only(rank));
    // Alone: after a rest, one call is let through.
    let Some(best) = methods.chain_get_header(None).await? else { return Ok(Err(GONE)) };
    let finalized = async {
        let hash = methods.chain_get_finalized_head().await?;
        Ok((hash, methods.chain_get_header(Some(hash)).await?))
    };
    let version = methods.state_get_runtime_version(None);
    let ((hash, finalized), version) = futures::try_join!(finalized, version)?;
    let Some(finalized) = finalized else { return Ok(Err(GONE)) };
    let (best, finalized) = (Block::of(&best), Block::of(&finalized));
    if finalized.hash.0 != hash.0 {
        return Ok(Err("the header of its final head has another hash"));
    }
    Ok(Ok(Told { best, finalized, spec: version.spec_version }))
}
