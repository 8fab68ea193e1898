//! Rounds that are over, as far as a miner is told of its own part: read from the records that the scheduler
//! has signed.
//!
//! A record has everything of everybody and may be large. It never changes, so what is picked out of the last
//! few is kept, and one at a time is read; who asks for what is kept, or for what does not exist, waits for
//! nobody.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use domain::{
    BlockNumber, Cause, Hotkey, Improvement, Reason, RoundId, Submission, Uid, Verdict,
    WeightsOrigin, mean,
};
use serde::{Deserialize, Serialize};
use store::Artifacts;
use tokio::sync::Mutex as Turn;

use crate::error::Error;

/// Largest record that is read, in bytes.
const MAX_RECORD: u64 = 64 << 20;
/// Rounds that are kept.
const KEPT: usize = 8;

/// The rounds that were asked for last.
#[derive(Debug, Default)]
pub(crate) struct Past {
    kept: Mutex<VecDeque<(RoundId, Arc<Round>)>>,
    reading: Turn<()>,
}

impl Past {
    /// A round that has a record.
    pub(crate) async fn round(
        &self,
        artifacts: &Artifacts,
        round: RoundId,
    ) -> Result<Option<Arc<Round>>, Error> {
        let failed = |why: String| Error::unavailable("read the record of the round", why);
        if let Some(known) = self.known(round) {
            return Ok(Some(known));
        }
        let key = format!("rounds/{round}/record.json");
        if !artifacts.exists(&key).await.map_err(|error| failed(error.to_string()))? {
            return Ok(None);
        }
        let _turn = self.reading.lock().await;
        // Somebody may have read it meanwhile.
        if let Some(known) = self.known(round) {
            return Ok(Some(known));
        }
        let json = artifacts.get_bytes(&key, MAX_RECORD).await;
        let json = json.map_err(|error| failed(error.to_string()))?;
        let reading = tokio::task::spawn_blocking(move || Round::read(&json));
        let read = reading.await.map_err(|error| failed(error.to_string()))?;
        let read = Arc::new(read.map_err(|error| failed(error.to_string()))?);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.truncate(KEPT - 1);
        kept.push_front((round, Arc::clone(&read)));
        Ok(Some(read))
    }

    fn known(&self, round: RoundId) -> Option<Arc<Round>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(id, _)| *id == round).map(|(_, known)| Arc::clone(known))
    }
}

/// A round, by its record.
#[derive(Debug)]
pub(crate) struct Round {
    /// Its miners.
    pub(crate) miners: BTreeMap<Hotkey, Miner>,
    weights: BTreeMap<Uid, f64>,
    weights_origin: WeightsOrigin,
    closed_at: BlockNumber,
    digest: String,
    signature: String,
}

/// A miner's part in a record.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Miner {
    hotkey: Hotkey,
    /// Slot at the freeze.
    pub(crate) uid: Uid,
    fault: Option<Cause>,
    refused: Option<Cause>,
    /// Its stored file.
    pub(crate) submission: Option<Submission>,
    verdict: Option<Verdict>,
    /// Rank score; none when the round writes nothing for it.
    pub(crate) score: Option<f64>,
    reason: Option<Reason>,
    #[serde(default)]
    duplicates: Vec<Hotkey>,
}

/// What an evaluation found, without the batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measured {
    pub(crate) loss: Option<f64>,
    pub(crate) baseline: Option<f64>,
    pub(crate) raw: Option<f64>,
    pub(crate) improvement: Option<Improvement>,
}

/// What the signed record says of a miner, and how to tell the record.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Facts {
    /// Block at which the round ended.
    closed_at: BlockNumber,
    /// SHA-256 over the record, hex; the validator signed it.
    digest: String,
    /// sr25519 over `connito.record.v1:` and the digest, hex.
    signature: String,
    /// Share of the weights that the miner's slot got in this round.
    weight: f64,
    /// Where the weights come from.
    weights_origin: WeightsOrigin,
    /// How many submissions are equal, or nearly equal, to this one.
    duplicates: usize,
}

/// As it is stored. The rest of a record is passed over.
#[derive(Deserialize)]
struct Signed {
    record: Record,
    digest: String,
    signature: String,
}

#[derive(Deserialize)]
struct Record {
    closed_at: BlockNumber,
    miners: Vec<Miner>,
    weights: Vec<(Uid, f64)>,
    #[serde(default)]
    weights_origin: WeightsOrigin,
}

impl Round {
    fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        let Signed { record, digest, signature } = serde_json::from_slice(json)?;
        let Record { closed_at, miners, weights, weights_origin } = record;
        let miners = miners.into_iter().map(|miner| (miner.hotkey.clone(), miner)).collect();
        let weights = weights.into_iter().collect();
        Ok(Self { miners, weights, weights_origin, closed_at, digest, signature })
    }

    #[cfg(test)]
    pub(crate) fn read_for_tests(json: &serde_json::Value) -> Self {
        Self::read(json.to_string().as_bytes()).unwrap()
    }

    /// What the record says of a miner that is in it.
    pub(crate) fn facts(&self, miner: Option<&Miner>) -> Facts {
        let weight = miner.and_then(|miner| self.weights.get(&miner.uid));
        Facts {
            closed_at: self.closed_at,
            digest: self.digest.clone(),
            signature: self.signature.clone(),
            weight: weight.copied().unwrap_or(0.0),
            weights_origin: self.weights_origin,
            duplicates: miner.map_or(0, |miner| miner.duplicates.len()),
        }
    }
}

impl Miner {
    /// What became of it, in the words of the round view, and why: a reason, and a sentence where there
    /// is one.
    pub(crate) fn outcome(&self) -> (&'static str, Option<(String, Option<String>)>) {
        let because = |cause: &Cause| Some((cause.reason.clone(), Some(cause.detail.clone())));
        let judged = || self.reason.map(|reason| (reason.as_str().to_owned(), None));
        let ours = self.reason.is_some_and(|reason| !reason.is_miners_fault());
        match (&self.verdict, &self.submission) {
            (Some(Verdict::Invalid(cause)), _) => ("invalid", because(cause)),
            (Some(_), _) if ours => ("not_evaluated", judged()),
            (Some(Verdict::OutOfReach { .. }), _) => {
                ("scored", judged().or(Some(("out_of_reach".to_owned(), None))))
            }
            (Some(Verdict::Measured { .. }), _) => ("scored", judged()),
            (None, Some(_)) => ("not_evaluated", judged()),
            (None, None) => match (&self.refused, &self.fault) {
                (Some(cause), _) => ("refused", because(cause)),
                (None, Some(cause)) => ("absent", because(cause)),
                (None, None) => ("absent", judged()),
            },
        }
    }

    /// What was measured, if anything was.
    pub(crate) fn measured(&self) -> Option<Measured> {
        let (baseline, losses, raw, improvement) = match self.verdict.as_ref()? {
            Verdict::Measured { baseline, losses, raw, improvement, .. } => {
                (baseline, losses, Some(*raw), *improvement)
            }
            Verdict::OutOfReach { baseline, losses, improvement, .. } => {
                (baseline, losses, None, *improvement)
            }
            Verdict::Invalid(_) => return None,
        };
        Some(Measured { loss: mean(losses), baseline: mean(baseline), raw, improvement })
    }
}
