//! Why a miner got nothing: stable words for records, metrics and HTTP bodies.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! fault {
    (by_miner) => {
        true
    };
    (by_validator) => {
        false
    };
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal $fault:ident,)*) => {
        /// A stable reason. Its text never changes once published.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The stable snake_case text.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// Whether it is the miner's fault, which scores 0; the validator's writes nothing and
            /// the miner keeps its average (protocol, section 6).
            pub fn is_miners_fault(self) -> bool {
                match self {
                    $(Self::$name => fault!($fault),)*
                }
            }
        }
    };
}

reasons! {
    /// The hotkey committed nothing in either commit phase.
    NothingCommitted = "nothing_committed" by_miner,
    /// A part of the commitment is missing: hash, signature, version, group or axon.
    CommitmentIncomplete = "commitment_incomplete" by_miner,
    /// The version that was trained on is too old, or from the future.
    VersionOutOfRange = "version_out_of_range" by_miner,
    /// The signature of the model hash does not verify.
    BadSignature = "bad_signature" by_miner,
    /// It trained another expert group than this validator evaluates.
    WrongGroup = "wrong_group" by_miner,
    /// It was on the roster and uploaded nothing.
    NotSubmitted = "not_submitted" by_miner,
    /// The file is not a readable checkpoint.
    Malformed = "malformed" by_miner,
    /// A tensor of the expert group is not there.
    MissingTensor = "missing_tensor" by_miner,
    /// A tensor is there that does not belong to the expert group.
    ForeignTensor = "foreign_tensor" by_miner,
    /// A tensor has another shape than the base model's.
    WrongShape = "wrong_shape" by_miner,
    /// A tensor has a type that is not taken.
    WrongDtype = "wrong_dtype" by_miner,
    /// The file holds parameters that all groups share.
    SharedWeights = "shared_weights" by_miner,
    /// A weight, an activation or a loss is not finite.
    NonFinite = "non_finite" by_miner,
    /// The file's model hash is not the committed one.
    HashMismatch = "hash_mismatch" by_miner,
    /// The pickle asks for more than a plain dictionary of tensors.
    ForbiddenPickle = "forbidden_pickle" by_miner,
    /// Bit-equal to another miner's score.
    Duplicate = "duplicate" by_miner,
    /// Nearly equal to another miner's submission, by the sketches of what they changed.
    NearDuplicate = "near_duplicate" by_miner,
    /// Stopped early: it could no longer reach the ranks that pay, at the policy's confidence.
    OutOfReach = "out_of_reach" by_miner,
    /// It improves the data that it was given to train on, and nothing else (policy).
    Overfitted = "overfitted" by_miner,
    /// The evaluation took too long.
    Timeout = "timeout" by_validator,
    /// The worker that evaluated it vanished, too often.
    WorkerLost = "worker_lost" by_validator,
    /// The evaluator's device or host had too little memory.
    OutOfMemory = "out_of_memory" by_validator,
    /// The data that the round is measured on could not be had.
    DataUnavailable = "data_unavailable" by_validator,
    /// The gateway could not take its file, because something of the validator's failed.
    Unavailable = "unavailable" by_validator,
    /// The gateway had no room for its file.
    NoRoom = "no_room" by_validator,
    /// The gateway went down while it sent its file.
    Stopping = "stopping" by_validator,
    /// The evaluator failed for a reason of its own.
    EvaluatorError = "evaluator_error" by_validator,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that is not a reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a known reason")]
pub struct UnknownReason {
    /// The text, shortened.
    pub text: String,
}

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == text)
            .ok_or_else(|| UnknownReason { text: text.chars().take(64).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_found_by_its_text_and_serialised_as_it() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
            assert_eq!(serde_json::to_string(reason).unwrap(), format!("\"{reason}\""));
        }
    }

    #[test]
    fn another_text_is_not_a_reason() {
        assert_eq!(
            "Duplicate".parse::<Reason>().unwrap_err().to_string(),
            "`Duplicate` is not a known reason"
        );
    }

    #[test]
    fn what_evaluators_or_the_gateway_lack_is_the_validators_fault() {
        let ours: Vec<_> = Reason::ALL.iter().filter(|reason| !reason.is_miners_fault()).collect();
        let expected = [
            Reason::Timeout,
            Reason::WorkerLost,
            Reason::OutOfMemory,
            Reason::DataUnavailable,
            Reason::Unavailable,
            Reason::NoRoom,
            Reason::Stopping,
            Reason::EvaluatorError,
        ];
        assert_eq!(ours, expected.iter().collect::<Vec<_>>());
    }
}
