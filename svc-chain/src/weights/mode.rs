//! Which road weights take, by what the chain says at one block.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Version of the timelocked commits that this service makes: the chain's own number for them.
pub(crate) const TIMELOCK_VERSION: u16 = 4;

/// A road that weights can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// Set at once, for everybody to see.
    Plain,
    /// A hash now, the weights by a second extrinsic in a later epoch.
    HashCommit,
    /// Encrypted to a round of drand; the chain opens them by itself.
    Timelock,
}

impl Mode {
    /// Stable name, as it is on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::HashCommit => "hash_commit",
            Self::Timelock => "timelock",
        }
    }
}

/// What the operator prefers where the subnet has commit-reveal on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preference {
    /// Timelocked where the chain takes this service's version of them, else by hash.
    Auto,
    /// Timelocked, or not at all.
    Timelock,
    /// By hash, which the chain still takes beside the other.
    HashCommit,
}

/// What the chain says of commit-reveal at one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offer {
    /// `CommitRevealWeightsEnabled` of the subnet.
    pub(crate) enabled: bool,
    /// `CommitRevealWeightsVersion`; `None` on runtimes that have no such setting.
    pub(crate) version: Option<u16>,
    /// Whether the runtime has a call for timelocked commits of this service's form.
    pub(crate) timelock: bool,
    /// Whether it has the calls to commit and reveal by hash.
    pub(crate) hash: bool,
}

impl Offer {
    /// The road to take.
    ///
    /// # Errors
    ///
    /// When the chain offers none that the operator allows.
    pub(crate) fn choose(self, preference: Preference) -> Result<Mode, Failure> {
        if !self.enabled {
            return Ok(Mode::Plain);
        }
        let timelock = self.timelock && self.version == Some(TIMELOCK_VERSION);
        match preference {
            Preference::Auto | Preference::Timelock if timelock => Ok(Mode::Timelock),
            Preference::Auto | Preference::HashCommit if self.hash => Ok(Mode::HashCommit),
            Preference::Auto | Preference::Timelock | Preference::HashCommit => {
                Err(Failure::NoCommitReveal { detail: self.lacking(preference) })
            }
        }
    }

    fn lacking(self, preference: Preference) -> String {
        let version = self.version.map_or_else(|| "none".to_owned(), |v| v.to_string());
        let offered = |there| if there { "offered" } else { "not offered" };
        let wanted = match preference {
            Preference::Auto => "timelocked or by hash",
            Preference::Timelock => "timelocked",
            Preference::HashCommit => "by hash",
        };
        format!(
            "the subnet has commit-reveal on and weights should be committed {wanted}: timelocked \
             commits are {} (version {version}, this service makes version {TIMELOCK_VERSION}), \
             hash commits are {}",
            offered(self.timelock),
            offered(self.hash),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offer = Offer { enabled: true, version: Some(4), timelock: true, hash: true };

    #[test]
    fn weights_are_plain_wherever_commit_reveal_is_off() {
        for preference in [Preference::Auto, Preference::Timelock, Preference::HashCommit] {
            let offer = Offer { enabled: false, ..ALL };
            assert_eq!(offer.choose(preference), Ok(Mode::Plain));
            let bare = Offer { enabled: false, version: None, timelock: false, hash: false };
            assert_eq!(bare.choose(preference), Ok(Mode::Plain));
        }
    }

    #[test]
    fn the_chains_version_and_calls_decide_and_then_the_operator() {
        assert_eq!(ALL.choose(Preference::Auto), Ok(Mode::Timelock));
        assert_eq!(ALL.choose(Preference::HashCommit), Ok(Mode::HashCommit));
        for other in [
            Offer { version: Some(5), ..ALL },
            Offer { version: None, ..ALL },
            Offer { timelock: false, ..ALL },
        ] {
            assert_eq!(other.choose(Preference::Auto), Ok(Mode::HashCommit));
            let refused = other.choose(Preference::Timelock).unwrap_err();
            assert_eq!(refused.reason(), "no_commit_reveal");
        }
    }

    #[test]
    fn a_chain_that_offers_nothing_is_refused_with_what_it_lacks() {
        let offer = Offer { version: Some(7), timelock: true, hash: false, ..ALL };
        let refused = offer.choose(Preference::Auto).unwrap_err().to_string();
        assert!(refused.contains("version 7") && refused.contains("not offered"), "{refused}");
    }
}
