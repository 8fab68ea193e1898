//! How statements travel: what one member tells another in one call, and what it answers.

use domain::{Hotkey, RoundId};
use serde::{Deserialize, Serialize};

use crate::{
    bytes::{Bytes, Digest},
    statement::{Refused, Signature, Signed, Verified, Verify},
};

/// No exchange has more statements.
pub const MAX_STATEMENTS: usize = 256;

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
    /// Digest over all of it, signatures too.
    pub fn digest(&self) -> Digest {
        Bytes::new("exchange")
            .number(self.incarnation)
            .option(self.group.as_ref(), Bytes::digest)
            .option(self.had.as_ref(), Bytes::digest)
            .list(&self.statements, |bytes, one| {
                bytes.digest(&one.said.digest()).raw(&one.signature.0)
            })
            .hash()
    }

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

/// Binds an exchange to round, sender, receiver and nonce; its sender signs [`Envelope::bytes`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The round.
    pub round: RoundId,
    /// Who sends it.
    pub sender: Hotkey,
    /// Whom it is for.
    pub receiver: Hotkey,
    /// Used once.
    pub nonce: [u8; 16],
    /// The nonce of the call that this answers.
    pub in_reply_to: Option<[u8; 16]>,
    /// [`Exchange::digest`] of what is inside.
    pub body: Digest,
}

impl Envelope {
    /// The bytes to sign.
    pub fn bytes(&self) -> Vec<u8> {
        Bytes::new("envelope")
            .number(self.round.0)
            .hotkey(&self.sender)
            .hotkey(&self.receiver)
            .raw(&self.nonce)
            .option(self.in_reply_to.as_ref(), |bytes, nonce| bytes.raw(nonce))
            .digest(&self.body)
            .into_vec()
    }

    /// Whether the sender signed this, for these two, in this round, around this exchange. That a
    /// nonce is used once is for the caller to see.
    pub fn holds(
        &self,
        round: RoundId,
        receiver: &Hotkey,
        exchange: &Exchange,
        signature: &Signature,
        keys: &impl Verify,
    ) -> bool {
        self.round == round
            && self.receiver == *receiver
            && self.body == exchange.digest()
            && keys.verify(&self.sender, &self.bytes(), signature)
    }
}
