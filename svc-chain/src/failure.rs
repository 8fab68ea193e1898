//! Why the chain did not take an extrinsic: one enum for every road an error can come by.
//!
//! Errors come as a dispatch error after inclusion, named through the metadata, or at submission
//! as a JSON-RPC error of the transaction pool (chain, section 4). Indices of pallets and errors
//! move between runtimes and are never used: only names are, and the pool's codes, which are part
//! of the runtime's source.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What happened to an extrinsic, whichever road the news came by.
///
/// `docs/chain-service.md` tells operators what each of them means and what to do, and a test holds
/// that page to this enum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "failure", rename_all = "snake_case")]
pub(crate) enum Failure {
    RateLimited,
    CommitmentSpace,
    CommitRevealEnabled,
    CommitRevealDisabled,
    NoCommitReveal { detail: String },
    RevealRound { name: String },
    TooManyCommits,
    RevealTooEarly,
    RevealMissed,
    NotRegistered,
    NoSuchSubnet,
    NoSuchUid,
    NoPermit,
    StakeTooLow,
    VersionKey,
    TooFewWeights,
    TooManyWeights,
    MaxWeight,
    DuplicateUids,
    LengthsDiffer,
    BadAddress,
    BadPort,
    BadIpType,
    CommitmentRefused { name: String },
    BadRequest { detail: String },
    Reveal { name: String },
    Other { name: String },
    StaleNonce,
    FutureNonce,
    Expired,
    Usurped,
    LowPriority,
    Banned,
    PoolFull,
    UnknownValidity { detail: String },
    BadProof { detail: String },
    AlreadyKnown,
    Superseded { by: String },
    ReadBackMismatch { detail: String },
    OutcomeUnknown,
}

/// What to do after a [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Nothing will change it: the intent has failed.
    Never,
    /// Sign a new extrinsic, this many blocks from now.
    Resign { after: u64 },
    /// Sign a new extrinsic at the block where the chain's rate limit allows it.
    WhenAllowed,
    /// It is on its way: look for it in the blocks.
    Follow,
}

/// Blocks to wait after the pool did not want an extrinsic.
const POOL_PAUSE: u64 = 3;
/// Blocks to wait after the chain took a reveal for too early.
const EARLY_PAUSE: u64 = 5;

impl Advice {
    /// Stable name, as it is on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Resign { .. } => "again",
            Self::WhenAllowed => "when_allowed",
            Self::Follow => "follow",
        }
    }
}

impl Failure {
    /// Stable, snake_case: for records, metrics and clients.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::CommitmentSpace => "commitment_space",
            Self::CommitRevealEnabled => "commit_reveal_enabled",
            Self::CommitRevealDisabled => "commit_reveal_disabled",
            Self::NoCommitReveal { .. } => "no_commit_reveal",
            Self::RevealRound { .. } => "reveal_round",
            Self::TooManyCommits => "too_many_commits",
            Self::RevealTooEarly => "reveal_too_early",
            Self::RevealMissed => "reveal_missed",
            Self::NotRegistered => "not_registered",
            Self::NoSuchSubnet => "no_such_subnet",
            Self::NoSuchUid => "no_such_uid",
            Self::NoPermit => "no_permit",
            Self::StakeTooLow => "stake_too_low",
            Self::VersionKey => "version_key",
            Self::TooFewWeights => "too_few_weights",
            Self::TooManyWeights => "too_many_weights",
            Self::MaxWeight => "max_weight",
            Self::DuplicateUids => "duplicate_uids",
            Self::LengthsDiffer => "lengths_differ",
            Self::BadAddress => "bad_address",
            Self::BadPort => "bad_port",
            Self::BadIpType => "bad_ip_type",
            Self::CommitmentRefused { .. } => "commitment_refused",
            Self::BadRequest { .. } => "bad_request",
            Self::Reveal { .. } => "reveal",
            Self::Other { .. } => "other",
            Self::StaleNonce => "stale_nonce",
            Self::FutureNonce => "future_nonce",
            Self::Expired => "expired",
            Self::Usurped => "usurped",
            Self::LowPriority => "low_priority",
            Self::Banned => "banned",
            Self::PoolFull => "pool_full",
            Self::UnknownValidity { .. } => "unknown_validity",
            Self::BadProof { .. } => "bad_proof",
            Self::AlreadyKnown => "already_known",
            Self::Superseded { .. } => "superseded",
            Self::ReadBackMismatch { .. } => "read_back_mismatch",
            Self::OutcomeUnknown => "outcome_unknown",
        }
    }

    /// Whether to try again, and when.
    pub(crate) fn advice(&self) -> Advice {
        match self {
            Self::RateLimited | Self::CommitmentSpace | Self::TooManyCommits => Advice::WhenAllowed,
            Self::StaleNonce | Self::FutureNonce | Self::Expired | Self::Usurped => {
                Advice::Resign { after: 0 }
            }
            Self::BadProof { .. }
            | Self::CommitRevealEnabled
            | Self::CommitRevealDisabled
            | Self::RevealRound { .. } => Advice::Resign { after: 1 },
            Self::RevealTooEarly => Advice::Resign { after: EARLY_PAUSE },
            Self::LowPriority | Self::Banned | Self::PoolFull | Self::UnknownValidity { .. } => {
                Advice::Resign { after: POOL_PAUSE }
            }
            Self::AlreadyKnown => Advice::Follow,
            Self::NoCommitReveal { .. }
            | Self::RevealMissed
            | Self::NotRegistered
            | Self::NoSuchSubnet
            | Self::NoSuchUid
            | Self::NoPermit
            | Self::StakeTooLow
            | Self::VersionKey
            | Self::TooFewWeights
            | Self::TooManyWeights
            | Self::MaxWeight
            | Self::DuplicateUids
            | Self::LengthsDiffer
            | Self::BadAddress
            | Self::BadPort
            | Self::BadIpType
            | Self::CommitmentRefused { .. }
            | Self::BadRequest { .. }
            | Self::Reveal { .. }
            | Self::Other { .. }
            | Self::Superseded { .. }
            | Self::ReadBackMismatch { .. }
            | Self::OutcomeUnknown => Advice::Never,
        }
    }

    /// From the name of a dispatch error, `Pallet::Name` where it is a pallet's.
    pub(crate) fn from_dispatch(name: &str) -> Self {
        match name.rsplit("::").next().unwrap_or(name) {
            "SettingWeightsTooFast"
            | "CommittingWeightsTooFast"
            | "ServingRateLimitExceeded"
            | "TxRateLimitExceeded"
            | "CommitmentSetRateLimitExceeded" => Self::RateLimited,
            "SpaceLimitExceeded" => Self::CommitmentSpace,
            "CommitRevealEnabled" => Self::CommitRevealEnabled,
            "CommitRevealDisabled" => Self::CommitRevealDisabled,
            "InvalidRevealRound" | "IncorrectCommitRevealVersion" => {
                Self::RevealRound { name: name.to_owned() }
            }
            "TooManyUnrevealedCommits" => Self::TooManyCommits,
            "RevealTooEarly" => Self::RevealTooEarly,
            "ExpiredWeightCommit" => Self::RevealMissed,
            "HotKeyNotRegisteredInSubNet"
            | "HotKeyNotRegisteredInNetwork"
            | "HotKeyAccountNotExists" => Self::NotRegistered,
            "SubnetNotExists" | "MechanismDoesNotExist" | "SubNetworkDoesNotExist" => {
                Self::NoSuchSubnet
            }
            "UidVecContainInvalidOne" => Self::NoSuchUid,
            "NeuronNoValidatorPermit" => Self::NoPermit,
            "NotEnoughStakeToSetWeights" => Self::StakeTooLow,
            "IncorrectWeightVersionKey" => Self::VersionKey,
            "WeightVecLengthIsLow" => Self::TooFewWeights,
            "UidsLengthExceedUidsInSubNet" => Self::TooManyWeights,
            "MaxWeightExceeded" => Self::MaxWeight,
            "DuplicateUids" => Self::DuplicateUids,
            "WeightVecNotEqualSize" => Self::LengthsDiffer,
            "InvalidIpAddress" => Self::BadAddress,
            "InvalidPort" => Self::BadPort,
            "InvalidIpType" => Self::BadIpType,
            "TooManyFieldsInCommitmentInfo" | "AccountNotAllowedCommit" => {
                Self::CommitmentRefused { name: name.to_owned() }
            }
            "NoWeightsCommitFound" | "InvalidRevealCommitHashNotMatch" => {
                Self::Reveal { name: name.to_owned() }
            }
            _ => Self::Other { name: name.to_owned() },
        }
    }

    /// From a JSON-RPC error of the transaction pool. `None` when the error is not the pool's.
    pub(crate) fn from_pool(code: i32, message: &str, data: &str) -> Option<Self> {
        let detail = || format!("{message}: {data}");
        Some(match code {
            1010 => {
                Self::from_invalid(data).unwrap_or_else(|| Self::BadRequest { detail: detail() })
            }
            1011 => Self::UnknownValidity { detail: detail() },
            1012 => Self::Banned,
            1013 => Self::AlreadyKnown,
            1014 => Self::LowPriority,
            1015 | 1016 => Self::PoolFull,
            1001 | 1002 | 1017..=1021 => Self::BadRequest { detail: detail() },
            _ => return None,
        })
    }

    /// From the data of error 1010, "Invalid Transaction".
    fn from_invalid(data: &str) -> Option<Self> {
        if let Some((_, code)) = data.split_once("Custom error:") {
            return code.trim().trim_end_matches('"').parse().ok().map(Self::from_custom);
        }
        let has = |text| data.contains(text);
        if has("outdated") {
            Some(Self::StaleNonce)
        } else if has("valid in the future") {
            Some(Self::FutureNonce)
        } else if has("ancient birth block") || has("bad signature") {
            Some(Self::BadProof { detail: data.to_owned() })
        } else if has("exhaust the resources") {
            Some(Self::PoolFull)
        } else {
            None
        }
    }

    /// From the runtime's own code for refusing an extrinsic at submission.
    fn from_custom(code: u8) -> Self {
        match code {
            1 => Self::StakeTooLow,
            3 => Self::NoSuchSubnet,
            4 | 10 => Self::NotRegistered,
            6 | 12 => Self::RateLimited,
            11 => Self::BadAddress,
            13 => Self::BadPort,
            15 => Self::RevealRound { name: "SubtensorModule::InvalidRevealRound".to_owned() },
            16 => Self::Reveal { name: "SubtensorModule::NoWeightsCommitFound".to_owned() },
            17 => Self::RevealTooEarly,
            18 => Self::LengthsDiffer,
            19 => Self::NoSuchUid,
            other => Self::BadRequest { detail: format!("custom error {other}") },
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RateLimited => "too soon after this key's last one",
            Self::CommitmentSpace => "this epoch's bytes for commitments are used up",
            Self::CommitRevealEnabled => {
                "the subnet has commit-reveal on: plain weights are refused"
            }
            Self::CommitRevealDisabled => {
                "the subnet has commit-reveal off: nothing can be committed or revealed"
            }
            Self::NoCommitReveal { detail } => detail,
            Self::TooManyCommits => "the chain keeps no more unrevealed commits of this key",
            Self::RevealTooEarly => "the chain does not take the reveal at this block",
            Self::RevealMissed => {
                "the blocks in which the committed weights could be revealed are over"
            }
            Self::NotRegistered => "the hotkey is not registered in the subnet",
            Self::NoSuchSubnet => "the subnet or the mechanism does not exist",
            Self::NoSuchUid => "a UID does not exist in the subnet",
            Self::NoPermit => "the hotkey has no validator permit",
            Self::StakeTooLow => "the hotkey has too little stake",
            Self::VersionKey => "the version key is older than the subnet asks for",
            Self::TooFewWeights => "fewer weights than the subnet asks for",
            Self::TooManyWeights => "more weights than the subnet has UIDs",
            Self::MaxWeight => "a weight is above the subnet's limit",
            Self::DuplicateUids => "a UID is named twice",
            Self::LengthsDiffer => "UIDs and weights differ in number",
            Self::BadAddress => "the chain takes no axon at this IP address",
            Self::BadPort => "the chain takes no axon at this port",
            Self::BadIpType => "the chain takes no axon of this IP version",
            Self::CommitmentRefused { name }
            | Self::Reveal { name }
            | Self::RevealRound { name }
            | Self::Other { name } => name,
            Self::BadRequest { detail }
            | Self::UnknownValidity { detail }
            | Self::BadProof { detail }
            | Self::ReadBackMismatch { detail } => detail,
            Self::StaleNonce => "its nonce was used by another extrinsic",
            Self::FutureNonce => "its nonce is ahead of the chain's",
            Self::Expired => "no block took it within its lifetime",
            Self::Usurped => "another extrinsic with its nonce landed",
            Self::LowPriority => "the pool holds another extrinsic with its nonce",
            Self::Banned => "the pool has banned it for a while",
            Self::PoolFull => "the pool is full",
            Self::AlreadyKnown => "the pool has it already",
            Self::Superseded { by } => return write!(f, "the newer intent {by} takes its place"),
            Self::OutcomeUnknown => {
                "it landed, but its events are gone and the stored value is another"
            }
        })
    }
}

#[cfg(test)]
mod tests;
