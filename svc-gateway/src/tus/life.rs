//! How long an unfinished upload lives, and how its end is made known.

use std::time::{Duration, SystemTime};

use domain::{Phase, RoundId};
use store::Lease;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    part::{Part, UploadId},
    table::Looked,
};
use crate::{
    admit::Claim,
    app::App,
    error::{Error, Gone},
    marks::{self, End, Place},
    turn::Turn,
    view::View,
};

/// Length of a block on the live chain. Only what clients are told of the future depends on it.
const BLOCK: Duration = Duration::from_secs(12);

/// How often an upload that was taken over is made known, at most.
const TRIES: u32 = 8;

/// Whether an upload can become nothing any more: every byte has to come in the Submission phase of its
/// round, or in a request that began in it.
pub(super) fn is_over(view: &View, part: &Part) -> bool {
    if part.is_whole() {
        view.round.as_ref().is_none_or(|round| round.id != part.info.round || !round.open)
    } else {
        left(view, part.info.round).is_zero()
    }
}

/// Refuses to go on with an upload of a round that takes none now.
pub(super) fn check_open(view: &View, round: RoundId) -> Result<(), Error> {
    if left(view, round).is_zero() {
        return Err(Error::UploadGone { why: Gone::Expired });
    }
    let open = view.round.as_ref().is_some_and(|open| open.id == round && open.uploads_open);
    if open { Ok(()) } else { Err(Error::UploadsClosed) }
}

/// About how long uploads are still taken in this round.
fn left(view: &View, round: RoundId) -> Duration {
    let cycle = view.schedule.cycle_of_round(round);
    let (_, last) = view.schedule.phase_range(cycle, Phase::Submission);
    let blocks = (last.0 + 1).saturating_sub(view.block.0);
    BLOCK.saturating_mul(u32::try_from(blocks).unwrap_or(u32::MAX))
}

/// When an upload is given up, as `Upload-Expires` says it.
pub(super) fn expires(app: &App, looked: &Looked) -> Option<String> {
    let view = app.latest.any().ok()?;
    let idle = app.config.tus_idle.saturating_sub(looked.silent);
    let left = idle.min(left(&view.view, looked.info.round));
    Some(httpdate::fmt_http_date(now() + left))
}

#[expect(
    clippy::disallowed_methods,
    reason = "clients are told a date of their own clock's kind; nothing is decided by it"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

/// URL of this gateway, to which a path may be added; empty where none is known.
pub(super) fn home(app: &App) -> &str {
    app.config.advertised_http_url.trim_end_matches('/')
}

/// Makes known that an upload lies here; false when the miner has a newer one. The turn is held.
pub(super) async fn settle_here(
    app: &App,
    lease: &Lease,
    claim: &Claim,
    id: &UploadId,
) -> Result<bool, Error> {
    let url = home(app);
    match marks::place(&app.store, &claim.hotkey).await? {
        Some(place) if place.id != *id => return Ok(false),
        Some(place) if place.url == url => return Ok(true),
        // The files went over to this gateway, or the store has lost its memory.
        Some(_) | None => {}
    }
    let place = Place { id: id.clone(), round: claim.round, url: url.to_owned() };
    let ttl = app.config.mark_ttl;
    marks::put_place(&app.store, lease, &claim.hotkey, &place, ttl).await.map(|()| true)
}

/// Makes known that an upload which a process before this one left lies here now.
pub(super) async fn take_over(app: App, claim: Claim, id: UploadId) {
    // The turn of a process that died is free when its lease has run out.
    for _ in 0..TRIES {
        let taken = async {
            let place = marks::place(&app.store, &claim.hotkey).await?;
            if place.is_none_or(|place| place.id != id || place.url == home(&app)) {
                return Ok(true);
            }
            let turn = Turn::take(&app, &claim).await?;
            let settled = settle_here(&app, turn.lease(), &claim, &id).await;
            turn.end().await;
            settled
        };
        match taken.await {
            Ok(_) | Err(Error::AlreadySubmitted { .. }) => return,
            Err(error) => info!(?id, %error, "an upload that was taken over is not known yet"),
        }
        tokio::select! {
            () = sleep(app.config.upload_lease / 2) => {}
            () = app.shutdown.cancelled() => return,
        }
    }
    warn!(?id, "an upload that was taken over is not known to other gateways");
}

/// Makes known what became of an upload.
pub(super) async fn tell(app: &App, id: &UploadId, end: &End) -> bool {
    marks::put_end(&app.store, id, end, app.config.mark_ttl).await.is_ok()
}
