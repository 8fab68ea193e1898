//! The runtimes of the chain: whether the one in force has all that is used.
//!
//! A runtime may be upgraded at any block. Each new one is checked once; reads go on as far as they
//! work, and nothing may be signed for a runtime that lacks something.

use std::{collections::BTreeMap, sync::Arc};

use domain::BlockNumber;
use kit::{Health, Shutdown};
use proto::chain::v1::chain_service_server::SERVICE_NAME;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    chain::{AtBlock, BlockId, Chain},
    degradations::{Degradations, Kind},
    error::Error,
    metrics, selfcheck,
};

/// What is known of the chain's runtimes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Runtimes {
    /// Version of the one in force.
    pub(crate) spec: u32,
    /// By version: what it lacks.
    checked: BTreeMap<u32, Vec<String>>,
}

impl Runtimes {
    /// What the one in force lacks, by name.
    pub(crate) fn missing(&self) -> &[String] {
        self.checked.get(&self.spec).map_or(&[], Vec::as_slice)
    }
}

/// See the module. Clones are handles to the same knowledge.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    runtimes: Arc<watch::Sender<Runtimes>>,
    degradations: Degradations,
}

impl Runtime {
    pub(crate) fn new(degradations: Degradations) -> Self {
        Self { runtimes: Arc::default(), degradations }
    }

    /// What is known, and its changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Runtimes> {
        self.runtimes.subscribe()
    }

    /// Version of the runtime in force; 0 before one was seen.
    pub(crate) fn spec(&self) -> u32 {
        self.runtimes.borrow().spec
    }

    /// Whether the runtime in force has all that is used.
    pub(crate) fn ok(&self) -> Result<(), Error> {
        let runtimes = self.runtimes.borrow();
        match runtimes.missing() {
            [] => Ok(()),
            missing => Err(Error::Runtime { spec: runtimes.spec, missing: missing.to_vec() }),
        }
    }

    /// Looks at each new runtime that an endpoint tells of, and holds readiness to it, until
    /// `shutdown`.
    pub(crate) async fn follow(self, chain: Chain, health: Health, shutdown: Shutdown) {
        let (mut board, mut runtimes) = (chain.nodes().board(), self.watch());
        loop {
            let told = board.borrow_and_update().told();
            if let Some(told) = told.filter(|told| told.spec != self.spec()) {
                match chain.at(BlockId::Hash(told.best.hash)).await {
                    Ok(at) => self.now(&at, told.best.number),
                    Err(error) => {
                        warn!(%error, spec = told.spec, "new runtime cannot be looked at")
                    }
                }
            }
            let fit = runtimes.borrow_and_update().missing().is_empty();
            health.set(SERVICE_NAME, fit);
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = board.changed() => if changed.is_err() { return },
                changed = runtimes.changed() => if changed.is_err() { return },
            }
        }
    }

    /// A block was read: its runtime is in force now if it is a newer one.
    pub(crate) fn seen(&self, at: &AtBlock) {
        if at.spec_version() > self.spec() {
            self.now(at, BlockNumber(at.block_number()));
        }
    }

    /// The runtime of a block is the one in force.
    pub(crate) fn now(&self, at: &AtBlock, block: BlockNumber) {
        let spec = at.spec_version();
        if self.spec() == spec {
            return;
        }
        let known = self.runtimes.borrow().checked.get(&spec).cloned();
        let missing = known.unwrap_or_else(|| selfcheck::missing(at.metadata_ref()));
        let changed = self.runtimes.send_if_modified(|runtimes| {
            let changed = runtimes.spec != spec;
            runtimes.spec = spec;
            runtimes.checked.insert(spec, missing.clone());
            changed
        });
        if !changed {
            return;
        }
        metrics::spec_version(spec);
        metrics::runtime_missing(missing.len());
        if missing.is_empty() {
            info!(spec, "the runtime has all that is used");
        } else {
            let what = format!("the runtime of spec {spec} lacks {}", missing.join("; "));
            self.degradations.note(Kind::RuntimeLacks, what, block);
        }
    }
}
