//! `GET /submissions/{round}/{hotkey}`: what became of a miner's file, told to the miner alone.
//!
//! Four places know something: the scheduler's view of the open round, the marks that gateways share (what is
//! stored, what was refused, what is arriving), and the signed record of a round that is over. Nothing here
//! decides anything. Of other miners nothing is told: not who they are, not what they lost.

mod past;

use axum::{
    Json,
    extract::{Path, RawQuery, Request, State, rejection::PathRejection},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use domain::{BlockNumber, Hotkey, Improvement, ModelHash, RoundId, Uid};
pub(crate) use past::Past;
use serde::Serialize;
use tracing::{info, instrument};

use crate::{
    app::App,
    arriving::Progress,
    error::Error,
    marks::{self, Submitted},
    refusals::{self, Refused},
    signed,
    view::{Miner, Round, View},
};

/// The answer. What is not known, or not so, is null.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Receipt {
    round: RoundId,
    /// Whose answer it is.
    validator: Hotkey,
    hotkey: Hotkey,
    uid: Option<Uid>,
    /// Newest block known here.
    block: BlockNumber,
    /// What became of the file, in one word.
    state: String,
    reason: Option<String>,
    detail: Option<String>,
    receiving: Option<Progress>,
    file: Option<File>,
    last_refusal: Option<Refused>,
    /// Mean loss, in nats per token, and the base model's on the same batches.
    loss: Option<f64>,
    baseline: Option<f64>,
    raw_score: Option<f64>,
    improvement: Option<Improvement>,
    /// Rank score of the round.
    score: Option<f64>,
    record: Option<past::Facts>,
}

/// A stored file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct File {
    key: String,
    bytes: u64,
    sha256: String,
    model_hash: ModelHash,
    block: BlockNumber,
}

impl From<Submitted> for File {
    fn from(submitted: Submitted) -> Self {
        let Submitted { hotkey: _, key, model_hash, sha256, bytes, block, .. } = submitted;
        Self { key, bytes, sha256, model_hash, block: BlockNumber(block) }
    }
}

impl From<domain::Submission> for File {
    fn from(submission: domain::Submission) -> Self {
        let domain::Submission { hotkey: _, key, model_hash, sha256, bytes, block } = submission;
        Self { key, bytes, sha256, model_hash, block }
    }
}

/// What gateways know of a miner in a round.
#[derive(Debug, Default)]
struct Marks {
    stored: Option<Submitted>,
    refused: Option<Refused>,
    arriving: Option<Progress>,
}

/// `GET /submissions/{round}/{hotkey}`, signed as a download is.
pub(crate) async fn get(
    State(app): State<App>,
    path: Result<Path<(String, String)>, PathRejection>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Error> {
    let Path((round, hotkey)) = path.map_err(|_| Error::NoRoute)?;
    let receipt =
        receipt(&app, &round, &hotkey, query.unwrap_or_default(), request.into_body()).await?;
    let mut response = Json(receipt).into_response();
    let secret = HeaderValue::from_static("private, no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, secret);
    Ok(response)
}

#[instrument(name = "receipt", skip_all)]
async fn receipt(
    app: &App,
    round: &str,
    hotkey: &str,
    query: String,
    body: axum::body::Body,
) -> Result<Receipt, Error> {
    let invalid = |field, why: String| Error::InvalidField { field, why };
    let seen = app.latest.any()?;
    let round = round.parse().map(RoundId).map_err(|why| invalid("round", format!("{why}")))?;
    let hotkey: Hotkey = hotkey.parse().map_err(|why| invalid("hotkey", format!("{why}")))?;
    let fields = signed::fields(app, &query, body).await?;
    let signer = signed::hotkey(&fields, &seen.view, app)?;
    app.limits.hotkey(&signer)?;
    if signer != hotkey {
        return Err(Error::NotYours { hotkey });
    }
    if !is_round(&seen.view, round) {
        return Err(Error::UnknownRound { round });
    }

    let failed = |error| Error::unavailable("use the store", error);
    let marks = Marks {
        stored: marks::of(&app.store, round, &hotkey).await.map_err(failed)?,
        refused: refusals::last(&app.store, round, &hotkey).await.map_err(failed)?,
        arriving: app.arriving.anywhere(&app.store, round, &hotkey).await.map_err(failed)?,
    };
    let current = seen.view.round.as_ref().filter(|current| current.id == round);
    let receipt = match current.filter(|current| !current.closed) {
        Some(current) => Receipt::of_open(&seen.view, current, hotkey, marks),
        None => match app.past.round(&app.artifacts, round).await? {
            Some(past) => Receipt::of_past(&seen.view, round, &past, hotkey, marks),
            // Its record is on its way, or was never written.
            None => match current {
                Some(current) => Receipt::of_open(&seen.view, current, hotkey, marks),
                None if marks.stored.is_none() && marks.refused.is_none() => {
                    return Err(Error::UnknownRound { round });
                }
                None => Receipt::of_marks(&seen.view, round, hotkey, marks),
            },
        },
    };
    info!(hotkey = %receipt.hotkey, %round, state = receipt.state, "receipt asked for");
    Ok(receipt)
}

/// Whether a round of this name can have begun.
fn is_round(view: &View, round: RoundId) -> bool {
    let cycle = view.schedule.cycle_of_round(round);
    round.0 <= view.block.0 && view.schedule.round_id(cycle) == round
}

impl Receipt {
    fn new(view: &View, round: RoundId, hotkey: Hotkey, state: &str) -> Self {
        Self {
            round,
            validator: view.hotkey.clone(),
            hotkey,
            uid: None,
            block: view.block,
            state: state.to_owned(),
            reason: None,
            detail: None,
            receiving: None,
            file: None,
            last_refusal: None,
            loss: None,
            baseline: None,
            raw_score: None,
            improvement: None,
            score: None,
            record: None,
        }
    }

    /// In a round that goes on: the scheduler's word, and what the gateways know that it does not know yet.
    fn of_open(view: &View, round: &Round, hotkey: Hotkey, marks: Marks) -> Self {
        let Some(miner) = round.miners.get(&hotkey) else {
            return Self::not_on_roster(view, round.id, hotkey);
        };
        let mut receipt = Self::new(view, round.id, hotkey, &miner.outcome);
        receipt.uid = Some(miner.uid);
        let said = |text: &String| (!text.is_empty()).then(|| text.clone());
        receipt.reason = said(&miner.reason);
        // What is told of a submission that was measured compares it with another miner's.
        receipt.detail = said(&miner.detail).filter(|_| miner.outcome != "scored");
        receipt.loss = miner.loss;
        receipt.baseline = miner.loss.and(round.baseline);
        receipt.raw_score = miner.raw_score;
        receipt.improvement = miner.improvement;
        receipt.score = miner.score;
        if miner.pending {
            receipt.state_of(miner, &marks);
        }
        receipt.marked(marks);
        receipt
    }

    /// Of a miner whose file the scheduler still waits for.
    fn state_of(&mut self, miner: &Miner, marks: &Marks) {
        if marks.stored.is_some() {
            // The reporter will tell it.
            (self.state, self.reason, self.detail) = ("stored".to_owned(), None, None);
        } else if marks.arriving.is_some() {
            self.receiving = marks.arriving;
            (self.state, self.reason, self.detail) = ("receiving".to_owned(), None, None);
        } else if miner.outcome == "pending"
            && let Some(refused) = &marks.refused
        {
            self.refused(refused);
        }
    }

    /// In a round that is over: what its signed record says.
    fn of_past(
        view: &View,
        round: RoundId,
        past: &past::Round,
        hotkey: Hotkey,
        marks: Marks,
    ) -> Self {
        let Some(miner) = past.miners.get(&hotkey) else {
            return Self {
                record: Some(past.facts(None)),
                ..Self::not_on_roster(view, round, hotkey)
            };
        };
        let (state, cause) = miner.outcome();
        let mut receipt = Self::new(view, round, hotkey, state);
        receipt.marked(marks);
        receipt.uid = Some(miner.uid);
        (receipt.reason, receipt.detail) =
            cause.map_or((None, None), |(reason, detail)| (Some(reason), detail));
        receipt.file = miner.submission.clone().map(File::from).or(receipt.file);
        if let Some(measured) = miner.measured() {
            receipt.loss = measured.loss;
            receipt.baseline = measured.baseline;
            receipt.raw_score = measured.raw;
            receipt.improvement = measured.improvement;
        }
        receipt.score = miner.score;
        receipt.record = Some(past.facts(Some(miner)));
        receipt
    }

    /// In a round of which only the gateways' marks are left.
    fn of_marks(view: &View, round: RoundId, hotkey: Hotkey, marks: Marks) -> Self {
        let mut receipt = Self::new(view, round, hotkey, "stored");
        if marks.stored.is_none()
            && let Some(refused) = &marks.refused
        {
            receipt.refused(refused);
        }
        receipt.marked(marks);
        receipt
    }

    fn not_on_roster(view: &View, round: RoundId, hotkey: Hotkey) -> Self {
        let detail = format!("{hotkey} is not a miner of round {round}");
        Self {
            reason: Some("not_on_roster".to_owned()),
            detail: Some(detail),
            ..Self::new(view, round, hotkey, "absent")
        }
    }

    fn refused(&mut self, refused: &Refused) {
        self.state = "refused".to_owned();
        self.reason = Some(refused.reason.clone());
        self.detail = Some(refused.detail.clone());
    }

    fn marked(&mut self, marks: Marks) {
        self.file = marks.stored.map(File::from);
        self.last_refusal = marks.refused;
    }
}

#[cfg(test)]
mod tests;
