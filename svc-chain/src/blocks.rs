//! The head of the chain: one task follows it, and everyone who watches gets every block.
//!
//! Heights only grow, one by one. What a connection skipped is filled in by number; what a watcher
//! was too slow for, it reads again. A reorganisation is counted and logged, and its heights are
//! not told twice: who depends on a block keeps its hash.

use std::time::Duration;

use domain::BlockNumber;
use futures::{Stream, stream};
use kit::Shutdown;
use subxt::rpcs::{self, client::RpcSubscription};
use tokio::{
    sync::{broadcast, watch},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    chain::{Block, Chain, Header},
    config::Follow,
    error::Error,
    metrics,
};

/// Blocks that a slow watcher may be behind before it reads them again.
const BUFFER: usize = 256;
/// Pauses between subscriptions grow from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The head as it moves. Clones see the same one.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    newest: watch::Sender<Option<Block>>,
    every: broadcast::Sender<Block>,
}

impl Default for Head {
    fn default() -> Self {
        Self { newest: watch::Sender::default(), every: broadcast::Sender::new(BUFFER) }
    }
}

impl Head {
    /// The newest block; `None` before the first.
    pub(crate) fn newest(&self) -> Result<Block, Error> {
        let newest = *self.newest.borrow();
        newest.ok_or_else(|| Error::Unreachable("no block was seen yet".to_owned()))
    }

    /// The newest block, and its changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Block>> {
        self.newest.subscribe()
    }

    /// Every block from the newest on, in order and without gaps; ends at `shutdown`.
    pub(crate) fn watch(
        &self,
        chain: Chain,
        shutdown: Shutdown,
    ) -> impl Stream<Item = Block> + Send + use<> {
        let watcher = Watcher { every: self.every.subscribe(), next: None, ready: None, chain };
        // After the subscription: what comes between the two comes twice, and is told once.
        let first = *self.newest.borrow();
        let watcher = Watcher { ready: first, ..watcher };
        stream::unfold((watcher, shutdown), |(mut watcher, shutdown)| async move {
            let item = tokio::select! {
                () = shutdown.cancelled() => return None,
                item = watcher.next() => item?,
            };
            Some((item, (watcher, shutdown)))
        })
    }

    fn tell(&self, block: Block) {
        metrics::head(block.number.0);
        // Without watchers there is nobody to tell.
        let _ = self.every.send(block);
        self.newest.send_replace(Some(block));
    }

    /// Follows the chain until `shutdown`.
    pub(crate) async fn follow(
        self,
        chain: Chain,
        follow: Follow,
        stall: Duration,
        shutdown: Shutdown,
    ) {
        let mut backoff = BACKOFF.0;
        loop {
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.subscription(&chain, follow, stall, &mut backoff) => ended,
            };
            metrics::resubscribed();
            warn!(reason = %ended, pause = ?backoff, "block subscription ended, making another one");
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Follows one subscription; returns why it ended.
    async fn subscription(
        &self,
        chain: &Chain,
        follow: Follow,
        stall: Duration,
        backoff: &mut Duration,
    ) -> String {
        let mut headers = match subscribe(chain, follow).await {
            Ok(headers) => headers,
            Err(error) => return error.to_string(),
        };
        loop {
            let header = match timeout(stall, headers.next()).await {
                Ok(Some(Ok(header))) => header,
                Ok(Some(Err(error))) => return error.to_string(),
                Ok(None) => return "the connection was lost".to_owned(),
                Err(_) => {
                    chain.reconnect().await;
                    return format!("no block for {stall:?}");
                }
            };
            if let Err(error) = self.arrived(chain, Block::of(&header)).await {
                return error.to_string();
            }
            *backoff = BACKOFF.0;
        }
    }

    /// Tells of a block, after those before it that were not told yet.
    async fn arrived(&self, chain: &Chain, block: Block) -> Result<(), Error> {
        let Some(last) = *self.newest.borrow() else {
            info!(block = %block.number, "first block");
            self.tell(block);
            return Ok(());
        };
        if block == last {
            return Ok(());
        }
        if block.number <= last.number {
            if block.number == last.number {
                reorganised(&last, &block);
            }
            return Ok(());
        }
        let mut last = last;
        for number in last.number.0 + 1..block.number.0 {
            let missed = chain.block(BlockNumber(number)).await?;
            self.linked(&last, missed);
            last = missed;
        }
        self.linked(&last, block);
        Ok(())
    }

    fn linked(&self, last: &Block, block: Block) {
        if block.parent != last.hash {
            reorganised(last, &block);
        }
        self.tell(block);
    }
}

fn reorganised(last: &Block, block: &Block) {
    metrics::reorganised();
    warn!(last = %last.number, last_hash = %last.hash, block = %block.number, hash = %block.hash, "reorganisation");
}

async fn subscribe(chain: &Chain, follow: Follow) -> Result<RpcSubscription<Header>, rpcs::Error> {
    match follow {
        Follow::Best => chain.methods().chain_subscribe_new_heads().await,
        Follow::Finalized => chain.methods().chain_subscribe_finalized_heads().await,
    }
}

struct Watcher {
    every: broadcast::Receiver<Block>,
    /// Height that was not told yet; `None` before the first.
    next: Option<u64>,
    /// A block that was received, and is told once its turn has come.
    ready: Option<Block>,
    chain: Chain,
}

impl Watcher {
    /// The next block; `None` once nobody follows the chain any more.
    async fn next(&mut self) -> Option<Block> {
        loop {
            let block = match self.ready {
                Some(block) => block,
                None => match self.every.recv().await {
                    Ok(block) => block,
                    // The next one that is received shows what was missed.
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            };
            let next = self.next.unwrap_or(block.number.0);
            if block.number.0 > next {
                self.ready = Some(block);
                match self.chain.block(BlockNumber(next)).await {
                    Ok(missed) => return Some(self.told(missed)),
                    // The node that answers now may be behind the one that told of the head.
                    Err(error) => {
                        debug!(%error, block = next, "missed block is asked for again");
                        sleep(BACKOFF.0).await;
                        continue;
                    }
                }
            }
            self.ready = None;
            if block.number.0 == next {
                return Some(self.told(block));
            }
        }
    }

    fn told(&mut self, block: Block) -> Block {
        self.next = Some(block.number.0 + 1);
        block
    }
}
