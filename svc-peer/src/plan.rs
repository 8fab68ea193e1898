//! What a merge is to do: one round, as the scheduler asks for it.

use std::{collections::BTreeMap, time::Duration};

use domain::{ExpertGroup, GlobalVersion, Hotkey, ModelHash, RoundId};
use tokio::time::Instant;

/// A global model in the artifact store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Model {
    /// Block number stamped on it.
    pub(crate) global_version: GlobalVersion,
    /// Model hash of the expert group's slice.
    pub(crate) model_hash: ModelHash,
    /// Key of its folder.
    pub(crate) prefix: String,
}

/// A miner's file that goes into the local pseudo-gradient.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Contribution {
    /// The miner.
    pub(crate) hotkey: Hotkey,
    /// Key of the file.
    pub(crate) key: String,
    /// Model hash that the file must have.
    pub(crate) model_hash: ModelHash,
    /// Share in the weighted mean.
    pub(crate) weight: f64,
}

/// The merge of one round.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// Round to merge.
    pub(crate) round: RoundId,
    /// Its base model.
    pub(crate) base: Model,
    /// Expert group that is merged.
    pub(crate) group: ExpertGroup,
    /// Version of the model to be made.
    pub(crate) new_version: GlobalVersion,
    /// Files that go into the local pseudo-gradient.
    pub(crate) contributions: Vec<Contribution>,
    /// The other validators of the round, with their axons (`ip:port`, empty when they have none).
    pub(crate) validators: BTreeMap<Hotkey, String>,
    /// This validator.
    pub(crate) hotkey: Hotkey,
    /// How long the others are waited for.
    pub(crate) deadline: Duration,
    /// Whether to step alone while others should be there.
    pub(crate) allow_solo: bool,
    /// Trace context of the round.
    pub(crate) traceparent: String,
}

impl Plan {
    /// Key prefix of the model to be made.
    pub(crate) fn new_prefix(&self) -> String {
        format!("models/{}", self.new_version)
    }

    /// How long to pause between two tries: `most`, or less where the deadline is near.
    pub(crate) fn pace(&self, most: Duration) -> Duration {
        most.min(self.deadline / 40).max(Duration::from_millis(10))
    }

    /// Name of the file with the momentum of the merged group.
    pub(crate) fn optimizer_file(&self) -> String {
        format!("optimizer_{}.safetensors", self.group)
    }

    /// Key of a file that belongs to the round.
    pub(crate) fn round_key(&self, name: &str) -> String {
        format!("rounds/{}/{name}", self.round)
    }
}

/// When the parts of a merge must be over: fractions of its deadline, the same for everybody. See
/// [`crate::members`] for the stages of the agreement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timetable {
    start: Instant,
    total: Duration,
}

impl Timetable {
    /// A merge that starts at `start` and may take `total`.
    pub(crate) fn new(start: Instant, total: Duration) -> Self {
        Self { start, total }
    }

    fn at(self, fraction: f64) -> Instant {
        self.start + self.total.mul_f64(fraction)
    }

    /// Nobody new is met from here on.
    pub(crate) fn closed(self) -> Instant {
        self.at(0.35)
    }

    /// The members are decided from here on. What lies between is for clocks that differ, and for
    /// answers on their way.
    pub(crate) fn deciding(self) -> Instant {
        self.at(0.44)
    }

    /// Who is silent from here on is left out.
    pub(crate) fn dropping(self) -> Instant {
        self.at(0.49)
    }

    /// Who disagrees with most from here on is left out.
    pub(crate) fn last(self) -> Instant {
        self.at(0.54)
    }

    /// The members must be agreed.
    pub(crate) fn agreed(self) -> Instant {
        self.at(0.6)
    }

    /// A member whose gradient has not come is left out of the slice.
    pub(crate) fn gradients(self) -> Instant {
        self.at(0.8)
    }

    /// Everything must be over.
    pub(crate) fn end(self) -> Instant {
        self.at(1.0)
    }

    /// When it started.
    pub(crate) fn start(self) -> Instant {
        self.start
    }
}
