//! Weights on their way to the chain: which road they take, what the chain would say to them, and
//! what a commit of them holds.
//!
//! A subnet with commit-reveal off takes them as they are ([`Mode::Plain`]). With commit-reveal on
//! they are committed first and known later: encrypted to a round of drand, which the chain opens by
//! itself ([`Mode::Timelock`]), or as a hash that is revealed by a second extrinsic
//! ([`Mode::HashCommit`]). Which one is decided at the block at which they are sent, from the
//! chain's settings and calls at that block. [`facts`] reads, everything else here is pure.

pub(crate) mod commit;
pub(crate) mod epoch;
pub(crate) mod facts;
pub(crate) mod mode;
pub(crate) mod rules;

pub use self::mode::Preference;
pub(crate) use self::{
    commit::{Commit, Opening, Reveal},
    mode::{Mode, Offer},
};

/// Weights as the chain holds them: UIDs, ascending, and shares of which the largest is 65535.
pub(crate) type Row = Vec<(u16, u16)>;
