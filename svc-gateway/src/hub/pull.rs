//! One attempt on one miner's file: found, fetched, verified, and stored as its submission.
//!
//! The attempt holds a lease of its own, so that no two gateways fetch the same file. The miner's turn to
//! upload it takes only to store what it has: until then the miner may upload, and an upload comes first.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use checkpoint::Manifest;
use domain::{BlockNumber, ExpertGroup, Hotkey, HubPlace};
use kit::Shutdown;
use store::Lease;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Span, info, warn};

use super::{
    Failure, Trouble,
    bucket::{Bucket, Pace},
    client::{Client, Session},
    commit,
    fetch::{Fetch, Got},
    listing,
    memory::{self, Attempt},
    place::Place,
};
use crate::{
    admit::{self, Claim},
    app::App,
    error::Error,
    intake::{Intake, Received, Wanted},
    marks, metrics, refusals,
    spool::Room,
    submission,
    turn::Turn,
    view::Round,
};

/// How often to look whether an upload of the miner's that is under way has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What a pull needs to know. Nothing of it changes while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) round: Arc<Round>,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) group: ExpertGroup,
    pub(crate) block: BlockNumber,
    pub(crate) hotkey: Hotkey,
    pub(crate) place: HubPlace,
    /// How many attempts were known when it was given.
    pub(crate) attempts: usize,
    /// Why the last one brought nothing.
    pub(crate) last: Option<String>,
    /// Cancelled when the file is not wanted any more.
    pub(crate) stop: Shutdown,
}

/// How a pull ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The file is the miner's submission.
    Stored,
    /// It is none, and that is the miner's fault.
    Refused(&'static str),
    /// It could not be had.
    Failed(&'static str),
    /// Somebody else has done it, or does it: the miner itself, or another gateway.
    Yielded,
}

impl Ended {
    /// Whether the hub has answered; none where that is not known.
    pub(crate) fn reached(self) -> Option<bool> {
        match self {
            Self::Stored | Self::Refused(_) => Some(true),
            Self::Failed("hub_unreachable" | "hub_token") => Some(false),
            Self::Failed(_) | Self::Yielded => None,
        }
    }

    fn count(self) {
        match self {
            Self::Stored => metrics::hub_pull("stored", ""),
            Self::Refused(reason) => metrics::hub_pull("refused", reason),
            Self::Failed(reason) => metrics::hub_pull("failed", reason),
            Self::Yielded => metrics::hub_pull("yielded", ""),
        }
    }
}

/// What all pulls share.
#[derive(Debug)]
pub(crate) struct Pulls {
    pub(crate) app: App,
    pub(crate) client: Client,
    pub(crate) all: Arc<Mutex<Bucket>>,
}

impl Pulls {
    /// Does one attempt, and remembers it; none while another gateway does one.
    pub(crate) async fn pull(&self, order: &Order) -> Ended {
        self.alone(order).await.unwrap_or_else(|error| Ended::Failed(error.reason()))
    }

    /// Takes the lease, works while it is held, and lets go of it.
    async fn alone(&self, order: &Order) -> Result<Ended, Error> {
        let (store, ttl) = (&self.app.store, self.app.config.upload_lease);
        let unusable = |error| Error::unavailable("use the store", error);
        let name = format!("pull/{}/{}", order.round.id, order.hotkey);
        let Some(lease) = store.acquire(&name, ttl).await.map_err(unusable)? else {
            return Ok(Ended::Yielded);
        };
        let ended = marks::while_held(store, &lease, ttl, Box::pin(self.attempt(order))).await;
        ended.as_ref().map_or_else(|error| Ended::Failed(error.reason()), |ended| *ended).count();
        if let Err(error) = store.release(lease).await {
            warn!(%error, round = %order.round.id, "a pull's lease was not released; it runs out");
        }
        ended
    }

    async fn attempt(&self, order: &Order) -> Result<Ended, Error> {
        // Once more, with the lease in hand: another gateway may just have ended.
        let unusable = |error| Error::unavailable("use the store", error);
        let known = memory::of_miner(&self.app.store, order.round.id, &order.hotkey).await;
        let known = known.map_err(unusable)?.count();
        let submitted = marks::is_submitted(&self.app.store, order.round.id, &order.hotkey).await?;
        if known != order.attempts || submitted {
            return Ok(Ended::Yielded);
        }
        let ended = match self.work(order).await {
            Ok(()) => return Ok(Ended::Stored),
            Err(Trouble::Gateway(Error::AlreadySubmitted { .. })) => return Ok(Ended::Yielded),
            Err(Trouble::Gateway(error @ (Error::Stopping | Error::RoundClosed { .. }))) => {
                info!(%error, hotkey = %order.hotkey, "a pull ends early");
                return Ok(Ended::Yielded);
            }
            Err(Trouble::Fault(fault)) => self.refuse(order, &Error::Hub(fault)).await?,
            Err(Trouble::Gateway(error)) if refusals::is_of_the_miner(&error) => {
                self.refuse(order, &error).await?
            }
            Err(Trouble::Gateway(error)) => {
                self.fail(order, error.reason(), &error.to_string()).await?
            }
            Err(Trouble::Failure(failure)) => {
                self.fail(order, failure.reason(), &failure.to_string()).await?
            }
        };
        Ok(ended)
    }

    /// The miner's fault: remembered and told once, unless the miner has uploaded in the meantime.
    async fn refuse(&self, order: &Order, error: &Error) -> Result<Ended, Error> {
        let reason = error.reason();
        Span::current().record("reason", reason);
        if marks::is_submitted(&self.app.store, order.round.id, &order.hotkey).await? {
            return Ok(Ended::Yielded);
        }
        if self.remember(order, reason, true).await? {
            info!(%error, hotkey = %order.hotkey, repo = order.place.repo, "a file of the hub is refused");
            // What is known of an upload's content says more than that the hub has nothing.
            if !matches!(error, Error::Hub(_)) || !self.is_refused(order) {
                refusals::tell(&self.app, &order.round, &order.hotkey, error);
            }
        }
        Ok(Ended::Refused(reason))
    }

    /// Whether the scheduler says that an upload of this miner was refused.
    fn is_refused(&self, order: &Order) -> bool {
        let Ok(seen) = self.app.latest.any() else { return false };
        let round = seen.view.round.as_ref().filter(|round| round.id == order.round.id);
        let miner = round.and_then(|round| round.miners.get(&order.hotkey));
        miner.is_some_and(|miner| !miner.reason.is_empty())
    }

    /// Nobody's fault but the hub's or ours: remembered, and logged where it is another than before.
    async fn fail(&self, order: &Order, reason: &'static str, why: &str) -> Result<Ended, Error> {
        Span::current().record("reason", reason);
        if order.last.as_deref() != Some(reason) {
            info!(reason, why, hotkey = %order.hotkey, repo = order.place.repo,
                "a file of the hub is not to be had yet");
        }
        self.remember(order, reason, false).await?;
        Ok(Ended::Failed(reason))
    }

    async fn remember(&self, order: &Order, reason: &str, settled: bool) -> Result<bool, Error> {
        let block = self.app.latest.any().map_or(order.block, |seen| seen.view.block);
        let attempt = Attempt { reason: reason.to_owned(), settled, block };
        let at = (order.round.id, &order.hotkey, order.attempts);
        memory::remember(&self.app.store, at, &attempt, self.app.config.mark_ttl)
            .await
            .map_err(|error| Error::unavailable("use the store", error))
    }

    /// Finds, fetches and stores.
    async fn work(&self, order: &Order) -> Result<(), Trouble> {
        let limit = self.app.config.hub.file_timeout;
        let begin = Instant::now();
        let fetched = tokio::select! {
            fetched = timeout(limit, Box::pin(self.fetch(order))) => fetched,
            () = order.stop.cancelled() => return Err(Error::Stopping.into()),
        };
        // The room is held until the file is stored.
        let (claim, intake, _room) = fetched.map_err(|_| Failure::Slow { limit })??;
        let file = intake.finish(&self.app).await?;
        let submitted = self.keep(order, &claim, &file).await?;
        self.app.stored.add();
        info!(key = %submitted.key, bytes = submitted.bytes, hotkey = %order.hotkey,
            repo = order.place.repo, took = ?begin.elapsed(), "stored a file of the hub");
        submission::announce(&self.app, &claim, &submitted).await;
        Ok(())
    }

    async fn fetch(&self, order: &Order) -> Result<(Claim, Intake, Room), Trouble> {
        let place = Place::try_from(&order.place)?;
        let mut session = Session::new(&self.client, &place);
        let commit = commit::resolve(&mut session, &place).await?;
        let file = listing::find(&mut session, &place, &commit, order.group).await?;
        let claim = admit::admit_pull(&order.hotkey, file.name(), &order.round)?;

        let limit = submission::largest_file(&order.manifest, order.group)
            .ok_or(Error::NoCheckpoint)?
            .min(self.app.config.max_upload_bytes);
        if file.size > limit {
            return Err(Error::TooLarge { limit }.into());
        }
        let (app, hash) = (&self.app, claim.model_hash);
        let wanted = Wanted::new(app, &order.manifest, order.group, hash, Some(file.size))?;
        let room = app.spool.reserve(file.size)?;
        let intake = Intake::begin(app, &wanted)?;
        let url = self.client.url(&[&place.repo, "resolve", commit.as_str(), &file.path])?;
        let hub = &app.config.hub;
        let fetch = Fetch {
            url,
            commit: &commit,
            file: &file,
            pace: Pace::new(Arc::clone(&self.all), hub.bytes_per_second_per_miner),
            least: hub.least_bytes_per_second,
            got: Got::nothing(intake, &file),
        };
        Ok((claim, fetch.run(&mut session).await?, room))
    }

    /// Stores the file when it is the miner's turn: an upload that is under way is waited for, as it may fail.
    async fn keep(
        &self,
        order: &Order,
        claim: &Claim,
        file: &Received,
    ) -> Result<marks::Submitted, Error> {
        loop {
            match Turn::take(&self.app, claim).await {
                Ok(turn) => {
                    let lease: &Lease = turn.lease();
                    let kept = turn.during(submission::keep(&self.app, lease, claim, file)).await;
                    turn.end().await;
                    return kept;
                }
                Err(Error::UploadInProgress { .. }) => {
                    let seen = self.app.latest.fresh()?;
                    let open = |round: &Arc<Round>| round.id == claim.round && round.open;
                    if !seen.view.round.as_ref().is_some_and(open) {
                        return Err(Error::RoundClosed { round: claim.round });
                    }
                    tokio::select! {
                        () = sleep(LOOK_AGAIN) => {}
                        () = order.stop.cancelled() => return Err(Error::Stopping),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}
