//! What an operator may set of the scheduler: the section `[scheduler]`.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use domain::{
    CohortConfig, DegradationKind, DuplicatePolicy, EarlyStop, ExpertGroup, GlobalVersion, Hotkey,
    Keep, OwnDataPolicy, Policy, Schedule, Terms, TopK, TwoGroups, WeightPolicy,
};

/// Configuration of the scheduler, the control plane.
#[derive(Debug, Clone, confique::Config)]
pub struct Config {
    /// Address of the gRPC server.
    #[config(default = "127.0.0.1:50052")]
    pub grpc_addr: SocketAddr,

    /// Address of /healthz, /readyz and /metrics; nothing is served without it.
    pub admin_addr: Option<SocketAddr>,

    /// Time between two blocks: only for waits, never for what is decided.
    #[config(default = "12s", deserialize_with = humantime_serde::deserialize, validate(!block_time.is_zero(), "must not be zero"))]
    pub block_time: Duration,

    /// How long the leading scheduler keeps the lead without renewing it.
    #[config(default = "15s", deserialize_with = humantime_serde::deserialize, validate(!leader_ttl.is_zero(), "must not be zero"))]
    pub leader_ttl: Duration,

    /// Expert group that this validator evaluates and merges.
    #[config(default = 0)]
    pub expert_group: u32,

    /// Version of the model to begin with, when nothing was done before: `models/<version>/`. Where that
    /// is not there, the stake majority's is fetched from the other validators.
    #[config(default = 0)]
    pub initial_version: u64,

    /// How a round is evaluated.
    #[config(nested)]
    pub evaluation: Evaluation,

    /// What decides a round.
    #[config(nested)]
    pub policy: PolicyConfig,

    /// What is kept.
    #[config(nested)]
    pub retention: Retention,
}

/// How a round is evaluated: the same for the base model and for every miner.
#[derive(Debug, Clone, confique::Config)]
pub struct Evaluation {
    /// Batches per model.
    #[config(default = 50)]
    pub batches: u32,

    /// Sequences per batch.
    #[config(default = 1)]
    pub batch_size: u32,

    /// Tokens per sequence.
    #[config(default = 4096)]
    pub sequence_length: u32,

    /// Blocks for which a job is leased to a worker that does not renew.
    #[config(default = 5)]
    pub lease_blocks: u64,

    /// How often a job is given out before it is given up as the validator's fault.
    #[config(default = 3)]
    pub max_attempts: u32,

    /// Whether a submission is stopped that can no longer reach the ranks that pay.
    #[config(nested)]
    pub early_stop: EarlyStopConfig,
}

/// Saves the batches of submissions that will not be paid: after each batch, a submission is
/// compared with the one on the last paying rank so far.
#[derive(Debug, Clone, confique::Config)]
pub struct EarlyStopConfig {
    /// Whether it is done.
    #[config(default = false)]
    pub enabled: bool,

    /// Chance that a stop is right, above 0.5 and below 1.
    #[config(default = 0.99)]
    pub confidence: f64,

    /// Batches that are measured in any case, at least 2.
    #[config(default = 10)]
    pub minimum_batches: u32,
}

/// What decides a round. Everybody who looks at the record sees it.
#[derive(Debug, Clone, confique::Config)]
pub struct PolicyConfig {
    /// Hotkeys that may be validators; the chain's validator permits decide where it is empty.
    #[config(default = [])]
    pub validators: Vec<String>,

    /// `two_groups` (the protocol's 98 % and 2 %) or `top_k`.
    #[config(default = "two_groups")]
    pub weights: WeightsKind,

    /// How many miners `top_k` pays.
    #[config(default = 5)]
    pub top_k: u32,

    /// Miners per validator that the seeded assignment covers.
    #[config(default = 13)]
    pub foreground_top_n: u32,

    /// How many cycles old the model that a miner trained on may be.
    #[config(default = 2)]
    pub version_range_cycles: u64,

    /// What is done about equal and nearly equal submissions.
    #[config(nested)]
    pub duplicates: DuplicatesConfig,

    /// The check of submissions on data that their miners could know.
    #[config(nested)]
    pub own_data: OwnDataConfig,

    /// Whether the last weights, or an even split by the other validators' votes, are sent when a
    /// round has none and the chain is about to forget this validator.
    #[config(default = true)]
    pub stale_guard: bool,

    /// Kinds of degradation at which no weights are sent, for example `["no_seeds"]`.
    #[config(default = [])]
    pub hold_weights_on: Vec<DegradationKind>,

    /// Whether the model may step with nobody else's gradient while other validators exist.
    #[config(default = false)]
    pub allow_solo_merge: bool,

    /// Share of the Merge phase after which the other validators are not waited for any more: the same
    /// for all who merge.
    #[config(default = 0.8)]
    pub merge_share: f64,
}

/// Submissions that are one: bit-equal raw scores, equal model hashes, or nearly parallel changes of
/// the base model.
#[derive(Debug, Clone, confique::Config)]
pub struct DuplicatesConfig {
    /// Whose score stays: `zero_all` (nobody's, the protocol's rule) or `earliest` (that of the one
    /// whose signed hash was on chain first).
    #[config(default = "zero_all")]
    pub keep: Keep,

    /// Cosine of the sketches of two changes from which on they are nearly equal; above 0, at
    /// most 1.
    #[config(default = 0.999)]
    pub similarity: f64,
}

/// Compares a submission's improvement on data that its miner could know beforehand with that on
/// the round's: `lazy` and `overfitted` ones are shown in the round and in the record.
#[derive(Debug, Clone, confique::Config)]
pub struct OwnDataConfig {
    /// Batches of that data per submission: 0 for no check, else at least 4.
    #[config(default = 0)]
    pub batches: u32,

    /// Whether an `overfitted` submission scores 0.
    #[config(default = false)]
    pub enforce: bool,

    /// Largest share of the improvement on its own data that an `overfitted` submission has on the
    /// round's.
    #[config(default = 0.25)]
    pub share: f64,
}

/// Which weight policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightsKind {
    /// The protocol's two groups.
    TwoGroups,
    /// The best `k` averages.
    TopK,
}

/// What is kept in the artifact store. Records are kept for good.
#[derive(Debug, Clone, confique::Config)]
pub struct Retention {
    /// Newest models that are kept.
    #[config(default = 4)]
    pub models: u32,

    /// Rounds whose submissions are kept.
    #[config(default = 2)]
    pub submission_rounds: u32,
}

impl Config {
    /// The policy over phases of these lengths, checked.
    pub(crate) fn policy(&self, phases: &[u64]) -> anyhow::Result<Policy> {
        let allow_list = self.policy.validators.iter().map(|text| text.parse::<Hotkey>());
        let policy = Policy {
            schedule: Schedule::try_from(phases).context("`common.phases`")?,
            validator_allow_list: allow_list.collect::<Result<BTreeSet<_>, _>>()?,
            foreground_top_n: self.policy.foreground_top_n as usize,
            cohorts: CohortConfig::default(),
            version_range_cycles: self.policy.version_range_cycles,
            lease_blocks: self.evaluation.lease_blocks,
            max_attempts: self.evaluation.max_attempts,
            terms: Terms {
                batches: self.evaluation.batches,
                batch_size: self.evaluation.batch_size,
                sequence_length: self.evaluation.sequence_length,
            },
            early_stop: self.early_stop(),
            duplicates: DuplicatePolicy {
                keep: self.policy.duplicates.keep,
                similarity: self.policy.duplicates.similarity,
            },
            own_data: OwnDataPolicy {
                batches: self.policy.own_data.batches,
                enforce: self.policy.own_data.enforce,
                share: self.policy.own_data.share,
            },
            weights: match self.policy.weights {
                WeightsKind::TwoGroups => WeightPolicy::TwoGroups(TwoGroups::default()),
                WeightsKind::TopK => WeightPolicy::TopK(TopK { k: self.policy.top_k as usize }),
            },
            stale_guard: self.policy.stale_guard,
            hold_weights_on: self.policy.hold_weights_on.iter().copied().collect(),
            allow_solo_merge: self.policy.allow_solo_merge,
        };
        policy.validate()?;
        Ok(policy)
    }

    fn early_stop(&self) -> Option<EarlyStop> {
        let EarlyStopConfig { enabled, confidence, minimum_batches } = self.evaluation.early_stop;
        enabled.then_some(EarlyStop { confidence, minimum_batches })
    }

    pub(crate) fn group(&self) -> ExpertGroup {
        ExpertGroup(self.expert_group)
    }

    pub(crate) fn first_version(&self) -> GlobalVersion {
        GlobalVersion(self.initial_version)
    }
}
