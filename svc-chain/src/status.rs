//! How the service stands, as far as reading the chain goes.

use proto::{chain::v1, common::v1 as common};

use crate::{
    blocks::Blocks,
    chain::Block,
    config::Follow,
    degradations::{Degradation, Degradations},
    nodes::Nodes,
    quorum::Quorum,
    runtime::Runtime,
    snapshots::Snapshots,
};

/// What is known without asking anybody. What concerns writing is left to its owner.
pub(crate) async fn of_reading(
    nodes: &Nodes,
    runtime: &Runtime,
    blocks: &Blocks,
    snapshots: &Snapshots,
    quorum: &Quorum,
    degradations: &Degradations,
) -> v1::GetStatusResponse {
    let runtimes = runtime.watch();
    let runtimes = runtimes.borrow().clone();
    // A store that is away hides the snapshots and nothing else.
    let kept = snapshots.list().await.unwrap_or_default();
    v1::GetStatusResponse {
        best: blocks.tip(Follow::Best).map(block),
        finalized: blocks.tip(Follow::Finalized).map(block),
        endpoints: endpoints(nodes),
        spec_version: runtimes.spec,
        missing: runtimes.missing().to_vec(),
        quorum: u32::try_from(quorum.wanted()).unwrap_or(u32::MAX),
        degradations: degradations.list().into_iter().map(degradation).collect(),
        snapshots: kept.into_iter().map(|number| number.0).collect(),
        ..v1::GetStatusResponse::default()
    }
}

fn endpoints(nodes: &Nodes) -> Vec<v1::Endpoint> {
    let board = nodes.board();
    let board = board.borrow();
    let endpoint = |(rank, health): (usize, &crate::nodes::Health)| v1::Endpoint {
        url: nodes.url(rank).to_owned(),
        rank: u32::try_from(rank).unwrap_or(u32::MAX),
        in_use: board.current() == Some(rank),
        state: board.state(rank).as_str().to_owned(),
        best: health.best,
        lag: board.lag(rank),
        latency_us: health
            .latency
            .map_or(0, |latency| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)),
        errors: health.errors,
        spec_version: health.told.map_or(0, |told| told.spec),
        last_error: health.last_error.clone(),
    };
    board.endpoints().iter().enumerate().map(endpoint).collect()
}

pub(crate) fn block(block: Block) -> v1::Block {
    v1::Block {
        number: block.number.0,
        hash: block.hash.0.to_vec().into(),
        parent_hash: block.parent.0.to_vec().into(),
    }
}

pub(crate) fn degradation(degradation: Degradation) -> common::Degradation {
    let Degradation { kind, detail, block } = degradation;
    common::Degradation { kind, detail, block: block.0 }
}
