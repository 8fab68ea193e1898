//! The owner of the hotkey's nonce: carries intents out, one extrinsic under way at a time.
//!
//! [`Worker::run`] waits for the lease and then reconciles at every block: whatever the records
//! say and whatever the chain says, it does the next thing. It keeps nothing that it could not
//! find out again, and may be dropped at any point.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kit::Shutdown;
use store::{Lease, Store};
use subxt::rpcs::methods::legacy::TransactionStatus;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tracing::{debug, info, warn};

use super::{Key, Outbox, machine::Policy};
use crate::{
    call::Target,
    chain::{Block, Chain},
    config::Config,
    degradations::Degradations,
    error::Error,
    keys::SigningKey,
    metrics,
    networks::Network,
    preflight::Preflight,
    submit::News,
    weights::Preference,
};

/// Pause after an error of the chain or the store, unless a block comes before it ends.
const PAUSE: Duration = Duration::from_secs(2);

/// What the worker needs.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(super) chain: Chain,
    pub(super) key: Arc<SigningKey>,
    pub(super) policy: Policy,
    pub(super) target: Target,
    pub(super) degradations: Degradations,
    owner: watch::Sender<bool>,
    preference: Preference,
    pinned_beacon: bool,
    /// Finished intents that are kept.
    pub(super) keep: usize,
    pub(super) store: Store,
    lease_ttl: Duration,
    wake: Arc<Notify>,
    head: watch::Receiver<Option<Block>>,
}

/// What an owner remembers between two looks, and may forget.
#[derive(Default)]
pub(super) struct Memory {
    /// Per intent under way: final blocks up to here were searched, in vain.
    pub(super) searched: BTreeMap<Key, u64>,
    /// Per intent under way: best block when this process handed it to a node last.
    pub(super) broadcast: BTreeMap<Key, u64>,
    /// The pool's news of the extrinsic under way: a reason to look, never believed.
    pub(super) news: Option<News>,
}

impl Worker {
    pub(crate) fn new(
        outbox: &Outbox,
        chain: Chain,
        key: Arc<SigningKey>,
        degradations: Degradations,
        config: &Config,
    ) -> Self {
        Self {
            policy: Policy { mortality: config.mortality, max_attempts: config.max_attempts },
            target: Target {
                netuid: config.netuid,
                mechanism: config.mechanism,
                version_key: config.version_key,
            },
            degradations,
            owner: outbox.owner.clone(),
            preference: config.commit_reveal,
            pinned_beacon: Network::is_public(chain.genesis()),
            lease_ttl: config.lease_ttl,
            keep: config.keep_intents,
            store: outbox.store.clone(),
            wake: Arc::clone(&outbox.wake),
            head: outbox.head.clone(),
            chain,
            key,
        }
    }

    /// What asks the chain before and after something is sent.
    pub(super) fn preflight(&self) -> Preflight<'_> {
        Preflight {
            chain: &self.chain,
            hotkey: self.key.hotkey(),
            target: self.target,
            preference: self.preference,
            pinned_beacon: self.pinned_beacon,
        }
    }

    /// Owns the nonce whenever nobody else does, until `shutdown`.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let name = format!("nonce/{}", self.key.hotkey());
        while !shutdown.is_cancelled() {
            let lease = tokio::select! {
                () = shutdown.cancelled() => return,
                lease = self.acquire(&name) => lease,
            };
            info!(fence = lease.fence(), "owns the nonce of the hotkey");
            self.owns(true);
            let stopped = tokio::select! {
                () = shutdown.cancelled() => true,
                () = self.renew(&lease) => false,
                () = self.own(&lease) => false,
            };
            self.owns(false);
            if stopped {
                // It runs out by itself if this fails.
                let _ = self.store.release(lease).await;
                return;
            }
            warn!("no longer owns the nonce of the hotkey");
        }
    }

    fn owns(&self, owner: bool) {
        metrics::nonce_owner(owner);
        self.owner.send_replace(owner);
    }

    async fn acquire(&self, name: &str) -> Lease {
        let mut warned = false;
        loop {
            match self.store.acquire(name, self.lease_ttl).await {
                Ok(Some(lease)) => return lease,
                Ok(None) => {}
                Err(error) if !warned => {
                    warn!(%error, "cannot ask for the nonce of the hotkey");
                    warned = true;
                }
                Err(_) => {}
            }
            sleep(self.lease_ttl / 4).await;
        }
    }

    /// Keeps the lease; returns once it is lost.
    async fn renew(&self, lease: &Lease) {
        loop {
            sleep(self.lease_ttl / 4).await;
            match self.store.renew(lease, self.lease_ttl).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => warn!(%error, "cannot renew the right to send extrinsics"),
            }
        }
    }

    /// Carries intents out; returns once another process owns the nonce.
    async fn own(&self, lease: &Lease) {
        let mut memory = Memory::default();
        let mut head = self.head.clone();
        loop {
            let pause = match self.reconcile(lease, &mut memory).await {
                Ok(()) => None,
                Err(Error::Fenced(_)) => return,
                Err(error) => {
                    warn!(%error, reason = error.reason(), "outbox cannot go on, trying again");
                    Some(sleep(PAUSE))
                }
            };
            tokio::select! {
                changed = head.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = news(&mut memory) => {}
                () = async { match pause { Some(pause) => pause.await, None => std::future::pending().await } } => {}
            }
        }
    }
}

/// Waits for news of the extrinsic under way; forever when there is none.
async fn news(memory: &mut Memory) {
    let Some(subscription) = &mut memory.news else { return std::future::pending().await };
    match subscription.next().await {
        Some(Ok(status)) => {
            debug!(?status, "the pool says");
            let gone = matches!(
                status,
                TransactionStatus::Dropped
                    | TransactionStatus::Invalid
                    | TransactionStatus::Usurped(_)
            );
            if gone {
                memory.broadcast.clear();
            }
        }
        Some(Err(_)) | None => memory.news = None,
    }
}
