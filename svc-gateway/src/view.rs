//! What the gateway knows of the validator: the scheduler's round view, parsed, and how old it is.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use checkpoint::Manifest;
use domain::{
    BlockNumber, ExpertGroup, GlobalVersion, Hotkey, HubPlace, Improvement, ModelHash, RoundId,
    Schedule, Uid,
};
use proto::{
    InvalidField,
    convert::{parse, required},
    scheduler::v1 as wire,
};
use tokio::{sync::watch, time::Instant};

use crate::error::Error;

/// The validator's state at one block.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// This validator's hotkey.
    pub(crate) hotkey: Hotkey,
    /// Newest block.
    pub(crate) block: BlockNumber,
    /// Lengths of the phases.
    pub(crate) schedule: Schedule,
    /// The model that is served; absent before the first one.
    pub(crate) base: Option<Base>,
    /// The group that this validator evaluates.
    pub(crate) expert_group: ExpertGroup,
    /// The open round, if any.
    pub(crate) round: Option<Arc<Round>>,
    /// Hotkeys that count as validators, ascending.
    pub(crate) validators: Vec<Hotkey>,
}

/// A global model in the artifact store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    /// Block stamped on it.
    pub(crate) version: GlobalVersion,
    /// Its hash, as committed on chain.
    pub(crate) model_hash: ModelHash,
    /// Key of its folder.
    pub(crate) prefix: String,
}

/// A round, as far as uploads need it.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    /// Its name.
    pub(crate) id: RoundId,
    /// Whether its scores are still open.
    pub(crate) open: bool,
    /// Whether it is over.
    pub(crate) closed: bool,
    /// Whether uploads may begin.
    pub(crate) uploads_open: bool,
    /// W3C trace context of everything done for it.
    pub(crate) traceparent: String,
    /// Mean loss of the base model, once measured.
    pub(crate) baseline: Option<f64>,
    /// The roster.
    pub(crate) miners: BTreeMap<Hotkey, Miner>,
}

/// A miner of the roster.
#[derive(Debug, Clone)]
pub(crate) struct Miner {
    /// Its slot.
    pub(crate) uid: Uid,
    /// Whether it is this validator's to evaluate first.
    pub(crate) assigned: bool,
    /// Whether its upload is taken.
    pub(crate) may_upload: bool,
    /// The hash that it revealed.
    pub(crate) model_hash: Option<ModelHash>,
    /// The signature that it committed before, as on chain.
    pub(crate) signature: String,
    /// Where it says that the file lies, if it does.
    pub(crate) hub: Option<HubPlace>,
    /// Whether the scheduler still waits for its file.
    pub(crate) pending: bool,
    /// What became of it so far, in the scheduler's word.
    pub(crate) outcome: String,
    /// Mean loss, once evaluated.
    pub(crate) loss: Option<f64>,
    /// By how much that is better than the base model's, as scores count it.
    pub(crate) raw_score: Option<f64>,
    /// The same batch by batch.
    pub(crate) improvement: Option<Improvement>,
    /// Rank score, once final.
    pub(crate) score: Option<f64>,
    /// Why the outcome is what it is, or why it may not upload.
    pub(crate) reason: String,
    /// The same for a person.
    pub(crate) detail: String,
}

impl TryFrom<wire::RoundView> for View {
    type Error = InvalidField;

    fn try_from(view: wire::RoundView) -> Result<Self, InvalidField> {
        let lengths = required("schedule", view.schedule)?.lengths;
        let lengths = <[u64; 9]>::try_from(lengths)
            .map_err(|l| InvalidField::new("schedule.lengths", format!("{} lengths", l.len())))?;
        Ok(Self {
            hotkey: parse("hotkey", &view.hotkey)?,
            block: BlockNumber(view.block),
            schedule: Schedule::new(lengths)
                .map_err(|error| InvalidField::new("schedule.lengths", error))?,
            base: view
                .base
                .filter(|base| !base.prefix.is_empty())
                .map(|base| {
                    Ok(Base {
                        version: GlobalVersion(base.global_version),
                        model_hash: parse("base.model_hash", &base.model_hash)?,
                        prefix: base.prefix,
                    })
                })
                .transpose()?,
            expert_group: ExpertGroup(view.expert_group),
            round: view.round.map(|round| Round::try_from(round).map(Arc::new)).transpose()?,
            validators: view
                .validators
                .iter()
                .map(|hotkey| parse("validators", hotkey))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<wire::Round> for Round {
    type Error = InvalidField;

    fn try_from(round: wire::Round) -> Result<Self, InvalidField> {
        let open = matches!(round.stage(), wire::RoundStage::Open | wire::RoundStage::Evaluating);
        let closed = round.stage() == wire::RoundStage::Closed;
        let mut miners = BTreeMap::new();
        for miner in round.miners {
            let hotkey: Hotkey = parse("round.miners.hotkey", &miner.hotkey)?;
            miners.insert(hotkey, Miner::try_from(miner)?);
        }
        Ok(Self {
            id: RoundId(round.round_id),
            open,
            closed,
            baseline: round.baseline,
            uploads_open: round.uploads_open,
            traceparent: round.traceparent,
            miners,
        })
    }
}

impl TryFrom<wire::Miner> for Miner {
    type Error = InvalidField;

    fn try_from(miner: wire::Miner) -> Result<Self, InvalidField> {
        let uid = u16::try_from(miner.uid)
            .map_err(|error| InvalidField::new("round.miners.uid", error))?;
        Ok(Self {
            uid: Uid(uid),
            assigned: miner.assigned,
            may_upload: miner.may_upload,
            model_hash: (!miner.model_hash.is_empty())
                .then(|| parse("round.miners.model_hash", &miner.model_hash))
                .transpose()?,
            signature: miner.signature,
            hub: (!miner.hub_repo.is_empty())
                .then_some(HubPlace { repo: miner.hub_repo, revision: miner.hub_revision }),
            pending: matches!(miner.outcome.as_str(), "pending" | "refused"),
            outcome: miner.outcome,
            loss: miner.loss,
            raw_score: miner.raw_score,
            improvement: miner.improvement.map(|found| Improvement {
                mean: found.mean,
                standard_error: found.standard_error,
                low: found.low,
                high: found.high,
                batches: found.batches as usize,
            }),
            score: miner.score,
            reason: miner.reason,
            detail: miner.detail,
        })
    }
}

/// A view, the manifest of its base model, and when it was seen.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The view.
    pub(crate) view: View,
    /// The base model's manifest; absent when there is no model or its manifest cannot be read.
    pub(crate) manifest: Option<Arc<Manifest>>,
    /// When it arrived.
    pub(crate) at: Instant,
}

impl Seen {
    /// The base model and its manifest.
    pub(crate) fn model(&self) -> Result<(&Base, &Arc<Manifest>), Error> {
        self.view.base.as_ref().zip(self.manifest.as_ref()).ok_or(Error::NoCheckpoint)
    }
}

/// Where handlers read the newest view.
#[derive(Debug, Clone)]
pub(crate) struct Latest {
    newest: watch::Receiver<Option<Arc<Seen>>>,
    max_age: Duration,
}

impl Latest {
    /// Reads from `newest`; what is older than `max_age` changes nothing any more.
    pub(crate) fn new(newest: watch::Receiver<Option<Arc<Seen>>>, max_age: Duration) -> Self {
        Self { newest, max_age }
    }

    /// The newest view, however old.
    pub(crate) fn any(&self) -> Result<Arc<Seen>, Error> {
        self.newest.borrow().clone().ok_or(Error::NotReady)
    }

    /// The newest view, if it is young enough to act on.
    pub(crate) fn fresh(&self) -> Result<Arc<Seen>, Error> {
        let seen = self.any()?;
        let age = seen.at.elapsed();
        if age > self.max_age { Err(Error::StaleView { age }) } else { Ok(seen) }
    }
}
