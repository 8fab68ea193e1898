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

/// How many statements go into one exchange: the first of those with these lengths, in bytes to sign. The
/// rest is new the next time. Any one of them fits, as nothing in a statement is longer than it may be.
pub(crate) fn room(lengths: impl IntoIterator<Item = usize>) -> usize {
    let mut left = MAX_BYTES;
    let fits = |length: &usize| {
        let rest = left.checked_sub(*length);
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    lengths.into_iter().take(MAX_STATEMENTS).take_while(fits).count()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_ends_at_its_most_statements_or_before_its_most_bytes() {
        assert_eq!(room([]), 0);
        assert_eq!(room([1; MAX_STATEMENTS + 1]), MAX_STATEMENTS);
        assert_eq!(room([MAX_BYTES, 1]), 1);
        assert_eq!(room([MAX_BYTES / 4; 9]), 4);
        assert_eq!(room([MAX_BYTES / 4 + 1; 9]), 3);
        // Their order stays: nothing small overtakes what is too large for this one.
        assert_eq!(room([MAX_BYTES - 1, 2, 1]), 1);
    }
}
