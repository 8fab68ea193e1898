//! Follows the chain on the endpoint in use.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use domain::BlockNumber;
use kit::Shutdown;
use subxt::rpcs::{self, client::RpcSubscription};
use tokio::time::{sleep, timeout_at};
use tracing::{debug, info, warn};

use super::{
    Blocks, Branch, Reorganisation,
    lead::{Sources, lead},
};
use crate::{
    chain::{Block, Chain, Header},
    config::Follow,
    degradations::Kind,
    error::Error,
    metrics,
};

/// Pauses between subscriptions grow from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Why a subscription ended.
enum Ended {
    /// Another endpoint is in use.
    Moved,
    /// Of itself, or because something failed.
    Failed(String),
}

impl Blocks {
    /// Follows best or final blocks until `shutdown`.
    pub(crate) async fn follow(
        self,
        chain: Chain,
        finality: Follow,
        stall: Duration,
        shutdown: Shutdown,
    ) {
        let pauses = || {
            let pauses = ExponentialBuilder::default()
                .with_min_delay(BACKOFF.0)
                .with_max_delay(BACKOFF.1)
                .without_max_times()
                .with_jitter();
            pauses.build()
        };
        let (mut branch, mut backoff) = (Branch::default(), pauses());
        loop {
            let before = branch.tip();
            let ended = tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.subscription(&chain, finality, stall, &mut branch) => ended,
            };
            let why = match ended {
                Ended::Moved => continue,
                Ended::Failed(why) => why,
            };
            metrics::resubscribed();
            if branch.tip() != before {
                backoff = pauses();
            }
            let pause = backoff.next().unwrap_or(BACKOFF.1);
            warn!(reason = %why, ?pause, "block subscription ended, making another one");
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Follows one subscription on the endpoint in use.
    async fn subscription(
        &self,
        chain: &Chain,
        finality: Follow,
        stall: Duration,
        branch: &mut Branch,
    ) -> Ended {
        let nodes = chain.nodes();
        let mut board = nodes.board();
        let rank = match board.wait_for(|board| board.current().is_some()).await {
            Ok(board) => board.current().unwrap_or_default(),
            Err(_) => return Ended::Failed("nobody asks the endpoints any more".to_owned()),
        };
        let only = match chain.only(rank).await {
            Ok(only) => only,
            Err(error) => return Ended::Failed(error.to_string()),
        };
        let mut headers = match subscribe(&only, finality).await {
            Ok(headers) => headers,
            Err(error) => return Ended::Failed(error.to_string()),
        };
        let mut last = tokio::time::Instant::now();
        loop {
            let head = tokio::select! {
                header = timeout_at(last + stall, headers.next()) => match header {
                    Ok(Some(Ok(header))) => Block::of(&header),
                    Ok(Some(Err(error))) => return Ended::Failed(error.to_string()),
                    Ok(None) => {
                        let why = format!("{}: the connection was lost", nodes.url(rank));
                        nodes.failed(rank, why.clone()).await;
                        return Ended::Failed(why);
                    }
                    Err(_) => {
                        let why = format!("{}: no block for {stall:?}", nodes.url(rank));
                        nodes.failed(rank, why.clone()).await;
                        return Ended::Failed(why);
                    }
                },
                // A subscription may go silent while the node goes on: what it tells when it is
                // asked is a head like any other.
                changed = board.changed() => {
                    if changed.is_err() {
                        return Ended::Failed("nobody asks the endpoints any more".to_owned());
                    }
                    let board = board.borrow_and_update();
                    if board.current() != Some(rank) {
                        return Ended::Moved;
                    }
                    let Some(told) = board.told() else { continue };
                    let head = match finality {
                        Follow::Best => told.best,
                        Follow::Finalized => told.finalized,
                    };
                    // What it told a while ago may have been overtaken.
                    if branch.tip().is_some_and(|tip| head.number <= tip.number) {
                        continue;
                    }
                    head
                }
            };
            // A header that is not above the tip and not known may be of a branch that was left
            // meanwhile: it waited behind what a probe told. The node says which one is its head now.
            let waited = branch.tip().is_some_and(|tip| head.number <= tip.number)
                && branch.at(head.number) != Some(head);
            let head = if waited && finality == Follow::Best {
                match only.best().await {
                    Ok(best) => best,
                    Err(error) => return Ended::Failed(error.to_string()),
                }
            } else {
                head
            };
            if branch.tip().is_none_or(|tip| head.number > tip.number) {
                last = tokio::time::Instant::now();
            }
            let from = Sources { now: &only, abandoned: chain };
            if let Err(error) = self.arrived(from, finality, branch, head).await {
                return Ended::Failed(error.to_string());
            }
            if finality == Follow::Best {
                nodes.head(rank, head.number.0);
            }
        }
    }

    /// Tells of a head, after the blocks before it that were not told yet.
    async fn arrived(
        &self,
        from: Sources<'_>,
        finality: Follow,
        branch: &mut Branch,
        head: Block,
    ) -> Result<(), Error> {
        let path = lead(from, branch, &Branch::from(head)).await?;
        if path.is_empty() {
            return Ok(());
        }
        if branch.tip().is_none() {
            info!(block = %head.number, finality = finality.as_str(), "first block");
        }
        for block in path {
            if let Some(reorganisation) = branch.put(block) {
                self.reorganised(finality, &reorganisation);
            }
        }
        let shared = Arc::new(branch.clone());
        self.line(finality).send_replace(shared);
        if finality == self.follow {
            metrics::head(head.number.0);
            self.newest.send_replace(Some(head));
        }
        if finality == Follow::Finalized {
            metrics::finalized(head.number.0);
        }
        Ok(())
    }

    fn reorganised(&self, finality: Follow, reorganisation: &Reorganisation) {
        let Reorganisation { ancestor, abandoned } = reorganisation;
        let depth = abandoned.number.0.saturating_sub(ancestor.number.0);
        metrics::reorganised(finality.as_str(), depth);
        info!(
            finality = finality.as_str(), depth, ancestor = %ancestor.number,
            abandoned = %abandoned.hash, "reorganisation"
        );
        let last_final = self.tip(Follow::Finalized).map_or(BlockNumber(0), |block| block.number);
        if finality == Follow::Finalized || ancestor.number < last_final {
            let detail = format!(
                "{} was final, and block {} with {} was taken back",
                last_final, abandoned.number, abandoned.hash
            );
            self.degradations.note(Kind::FinalityBroken, detail, abandoned.number);
        } else {
            debug!(%last_final, "what is final stays");
        }
    }
}

async fn subscribe(
    chain: &Chain,
    finality: Follow,
) -> Result<RpcSubscription<Header>, rpcs::Error> {
    match finality {
        Follow::Best => chain.methods().chain_subscribe_new_heads().await,
        Follow::Finalized => chain.methods().chain_subscribe_finalized_heads().await,
    }
}
