//! How statements travel: what one member tells another in one call, and what it answers. Who calls has
//! to be known by a signature that is bound to round, receiver and a nonce: that is for the caller to see.

use serde::{Deserialize, Serialize};

use crate::{
    bytes::{Bytes, Digest},
    statement::{Refused, Signed, Verified, Verify},
};

/// No exchange has more statements.
pub const MAX_STATEMENTS: usize = 256;

/// Statements of one exchange have no more bytes to sign than this together: with signatures, and
/// written in any sensible way, they fit into a message of twice the length.
pub const MAX_BYTES: usize = 1 << 20;

/// Statements, and what the sender has of the receiver. The answer to one is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exchange<S = Signed> {
    /// Grows with every start of the sender: whoever was started again has forgotten what it was
    /// told.
    pub incarnation: u64,
    /// Digest of the group that the sender is in; before that it takes no statements about slices.
    pub group: Option<Digest>,
    /// Digest of the last answer that the sender has had from the receiver.
    pub had: Option<Digest>,
    /// What is told.
    pub statements: Vec<S>,
}

impl Exchange {
    /// Checks every statement's signature; one that is wrong refuses the whole.
    pub fn open(self, keys: &impl Verify) -> Result<Exchange<Verified>, Refused> {
        let Self { incarnation, group, had, statements } = self;
        if statements.len() > MAX_STATEMENTS {
            return Err(Refused::TooLarge);
        }
        let opened: Result<Vec<Verified>, Refused> =
            statements.into_iter().map(|signed| Verified::new(signed, keys)).collect();
        Ok(Exchange { incarnation, group, had, statements: opened? })
    }
}

impl Exchange<Verified> {
    /// The statements' names, hashed: what [`Exchange::had`] is about.
    pub(crate) fn names(&self) -> Digest {
        names(self.statements.iter().map(Verified::digest).collect())
    }
}

pub(crate) fn names(digests: Vec<Digest>) -> Digest {
    Bytes::new("names").list(&digests, |bytes, digest| bytes.digest(digest)).hash()
}
