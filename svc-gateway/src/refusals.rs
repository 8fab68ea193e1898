//! Remembers why a miner's upload was refused: for the round's record, which the scheduler writes, and for
//! the miner's receipt, which any gateway may be asked for.
//!
//! Knows only miners that proved who they are. A refusal never covers a stored file: the scheduler takes none
//! for a miner that has one, and a receipt looks for the file first.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use domain::{Hotkey, RoundId};
use serde::{Deserialize, Serialize};
use store::{Store, StoreError};
use tracing::{Instrument as _, Span, info, warn};

use crate::{app::App, error::Error, view::Round};

/// Longest detail that is kept, in bytes: a reason's sentence holds words of the client.
const MAX_DETAIL: usize = 512;

/// The last upload of a miner that was refused in a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    /// Stable reason.
    pub(crate) reason: String,
    /// What happened, for a person.
    pub(crate) detail: String,
    /// HTTP status of the answer.
    pub(crate) status: u16,
    /// Newest block when it was refused.
    pub(crate) block: u64,
    /// Bytes of the file that had come until then.
    pub(crate) bytes: u64,
}

/// Whom a refusal says something of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// The upload: what was sent, when, or over which connection.
    Upload,
    /// The validator: the upload may have been good. It is told as well, so that nobody takes the miner
    /// for one that never came.
    Validator,
    /// Nothing that is new. Nothing of a file was looked at, and what is known of the miner's upload, be it
    /// stored, under way or refused, says more than this would.
    Nothing,
    /// Somebody who did not prove to be a miner, or no upload at all.
    Nobody,
}

fn about(error: &Error) -> About {
    match error {
        // What the miner sent. A wrong hash, file or commitment is its fault in the scores as well.
        Error::MissingField { .. }
        | Error::RepeatedField { .. }
        | Error::InvalidField { .. }
        | Error::MissingFile
        | Error::Form(_)
        | Error::TooLarge { .. }
        | Error::BlockHex { .. }
        | Error::SignatureReused
        | Error::NotAssigned { .. }
        | Error::NothingCommitted { .. }
        | Error::UnusableCommitment { .. }
        | Error::NotCommittedHash { .. }
        | Error::CommittedSignature { .. }
        | Error::UnsafeFileName { .. }
        | Error::Extension
        // What it named on a hub.
        | Error::Hub(_) => About::Upload,
        // When it came: too early, too late, or signed for another time.
        Error::OriginBlock { .. }
        | Error::NotSubmissionPhase { .. }
        | Error::UploadsClosed
        | Error::RoundClosed { .. } => About::Upload,
        // How it came. Nobody can tell whether the file was good: scores do not count it.
        Error::TooSlow { .. } | Error::Crawling(_) | Error::BrokenOff { .. } => About::Upload,
        Error::Content(refusal) if refusal.is_miners_fault() => About::Upload,
        Error::Content(_) | Error::Unavailable { .. } | Error::NoRoom | Error::Stopping => {
            About::Validator
        }
        Error::AlreadySubmitted { .. }
        | Error::UploadInProgress { .. }
        | Error::RateLimited { .. }
        | Error::Crowded { .. }
        | Error::Busy => About::Nothing,
        // Of a request to `/files`: the upload stays as it is, or its sender has given it up.
        Error::ChecksumMismatch
        | Error::OffsetMismatch { .. }
        | Error::UploadLocked
        | Error::UploadGone { .. } => About::Nothing,
        Error::TokenMissing
        | Error::TokenWrong
        | Error::NoRoute
        | Error::NoMethod
        | Error::NotReady
        | Error::StaleView { .. }
        | Error::NoCheckpoint
        | Error::NoSlice { .. }
        | Error::RangeUnsatisfiable { .. }
        | Error::SeveralRanges { .. }
        | Error::PreconditionFailed
        | Error::Checking
        | Error::WrongTarget { .. }
        | Error::RequestSignature { .. }
        | Error::NotOnRoster { .. }
        | Error::UnknownRound { .. }
        | Error::NotYours { .. } => About::Nobody,
        // Seen in the headers, before anybody's signature is.
        Error::InvalidHeader { .. }
        | Error::LengthDeferred
        | Error::TusVersion
        | Error::MediaType
        | Error::ChecksumAlgorithm
        | Error::NoUpload
        | Error::UploadElsewhere => About::Nobody,
    }
}

/// Whether a refusal says something of what the miner sent.
pub(crate) fn is_of_the_miner(error: &Error) -> bool {
    matches!(about(error), About::Upload)
}

/// Remembers, in the background, why an upload was refused. The miner is authenticated.
pub(crate) fn tell(app: &App, round: &Arc<Round>, hotkey: &Hotkey, error: &Error) {
    let told = matches!(about(error), About::Upload | About::Validator);
    if !told || !round.miners.contains_key(hotkey) {
        return;
    }
    let (reason, mut detail) = (error.reason(), error.to_string());
    let refused = Refused {
        reason: reason.to_owned(),
        detail: shortened(&detail).to_owned(),
        status: error.status().as_u16(),
        block: app.latest.any().map_or(0, |seen| seen.view.block.0),
        bytes: app.arriving.of(round.id, hotkey).map_or(0, |arriving| arriving.bytes),
    };
    detail.truncate(refused.detail.len());
    let (app, round, hotkey) = (app.clone(), round.id, hotkey.clone());
    app.shutdown.clone().spawn(
        async move {
            keep(&app, round, &hotkey, &refused).await;
            report(&app, round, &hotkey, reason, &detail).await;
        }
        .instrument(Span::current()),
    );
}

/// Where the last refusal of a miner in a round is kept.
fn key(round: RoundId, hotkey: &Hotkey) -> String {
    format!("refused/{round}/{hotkey}")
}

/// Keeps it for receipts. One per miner of the roster and round, and each has its end.
async fn keep(app: &App, round: RoundId, hotkey: &Hotkey, refused: &Refused) {
    let kept = match serde_json::to_vec(refused) {
        Ok(json) => {
            let ttl = app.config.mark_ttl;
            app.store.put_for(&key(round, hotkey), Bytes::from(json), ttl).await
        }
        Err(error) => return warn!(%error, "a refusal could not be written"),
    };
    if let Err(error) = kept {
        warn!(%error, %hotkey, %round, "a refusal was not kept for the miner's receipt");
    }
}

/// The last refusal of this miner in this round.
pub(crate) async fn last(
    store: &Store,
    round: RoundId,
    hotkey: &Hotkey,
) -> Result<Option<Refused>, StoreError> {
    let kept = store.get(&key(round, hotkey)).await?;
    Ok(kept.and_then(|json| serde_json::from_slice(&json).ok()))
}

async fn report(app: &App, round: RoundId, hotkey: &Hotkey, reason: &'static str, detail: &str) {
    for delay in [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(2)] {
        tokio::time::sleep(delay).await;
        match app.scheduler.report_refusal(round, hotkey, reason, detail).await {
            Ok(()) => return,
            Err(status) => info!(%status, "a refusal could not be reported"),
        }
    }
    warn!(%hotkey, %round, reason, "a refusal was not reported");
}

/// The beginning of a text, cut between characters.
fn shortened(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_DETAIL)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::samples;

    /// The column of the page says the same as the code.
    #[test]
    fn the_page_of_reasons_says_which_refusals_reach_the_record() {
        let page = include_str!("../../docs/reasons.md");
        let (_, section) = page.split_once("\n## HTTP\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let answers = samples::all().into_iter().filter(|error| !matches!(error, Error::Hub(_)));
        for error in answers {
            let reason = error.reason();
            let Some(row) = section.lines().find(|row| {
                row.starts_with('|')
                    && row.split('|').nth(1).unwrap().contains(&format!("`{reason}`"))
            }) else {
                // What is wrong with a file has one row for all.
                assert!(matches!(error, Error::Content(_)), "{reason} is not in the page");
                continue;
            };
            let says = row.split('|').nth(4).unwrap().trim();
            let told = matches!(about(&error), About::Upload | About::Validator);
            assert_eq!(says.starts_with("yes"), told, "{row}");
        }
    }

    #[test]
    fn a_detail_is_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let long = "ä".repeat(400);
        assert_eq!(shortened(&long).len(), MAX_DETAIL);
        assert_eq!(shortened(&format!("x{long}")).len(), MAX_DETAIL - 1);
    }
}
