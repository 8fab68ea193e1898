//! How long an unfinished upload lives, and how its end is made known.

use std::time::{Duration, SystemTime};

use domain::{Phase, RoundId};

use super::{
    part::{Part, UploadId},
    table::Looked,
};
use crate::{
    app::App,
    error::{Error, Gone},
    marks::{self, End},
    view::View,
};

/// Length of a block on the live chain. Only what clients are told of the future depends on it.
const BLOCK: Duration = Duration::from_secs(12);

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

/// Makes known what became of an upload.
pub(super) async fn tell(app: &App, id: &UploadId, end: &End) -> bool {
    marks::put_end(&app.store, id, end, app.config.mark_ttl).await.is_ok()
}
