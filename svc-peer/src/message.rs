//! What validators' peer services say to each other: signed bodies, built and verified.
//!
//! A message is an encoded protobuf body and an sr25519 signature over `connito.peer.v1:` and the
//! BLAKE2b-256 of the message's kind and that body. Nothing here knows the network, the rounds or
//! the private key: signing is the chain service's, replay is the business of `nonces`.
//!
//! Statements inside of an [`Exchange`] have signatures of their own, which [`Keys`] verifies: they
//! are shown to everybody, by anybody.

use blake2::{Blake2b, Digest as _, digest::consts::U32};
use bytes::Bytes;
use domain::{Hotkey, RoundId};
use merge::{Data, Digest, MAX_STATEMENTS, Signature, Verified, Verify};
use prost::Message as _;
use proto::{InvalidField, convert, peer::v2 as wire};

use crate::{error::Refused, wire as convert_merge};

/// No signed body may be larger.
pub const MAX_BODY: usize = 2 << 20;
/// No message on the wire may be larger: a body with its signature.
pub const MAX_MESSAGE: usize = MAX_BODY + 4096;
/// No chunk, and no part of a list of digests, has more bytes.
pub const MAX_CHUNK: usize = 1 << 20;

const CONTEXT: &[u8] = b"substrate";
const PREFIX: &[u8] = b"connito.peer.v1:";

/// 16 random bytes that make a message one of its kind.
pub type Nonce = [u8; 16];

/// What a signature is for: signatures of one kind are worth nothing as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Exchange`].
    Exchange,
    /// [`Fetch`].
    Fetch,
    /// [`Push`].
    Push,
    /// Asks which models there are.
    HoldingsRequest,
    /// Says which models there are.
    Holdings,
    /// Asks for chunks of a model's file.
    Shard,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Exchange,
        Self::Fetch,
        Self::Push,
        Self::HoldingsRequest,
        Self::Holdings,
        Self::Shard,
    ];

    fn tag(self) -> &'static [u8] {
        match self {
            Self::Exchange => b"exchange:",
            Self::Fetch => b"fetch:",
            Self::Push => b"push:",
            Self::HoldingsRequest => b"holdings-request:",
            Self::Holdings => b"holdings:",
            Self::Shard => b"shard:",
        }
    }

    /// The digest that the chain service signs for `body`: BLAKE2b-256 of the kind and it.
    pub fn digest(self, body: &[u8]) -> [u8; 32] {
        Blake2b::<U32>::new().chain_update(self.tag()).chain_update(body).finalize().into()
    }
}

/// The bytes that are signed for a digest of [`Kind::digest`], or of a statement.
pub fn signed_bytes(digest: &[u8; 32]) -> Vec<u8> {
    [PREFIX, digest].concat()
}

/// Whether `signature` is `signer`'s over `digest`.
pub fn verify(signer: &Hotkey, digest: &[u8; 32], signature: &[u8]) -> Result<(), Refused> {
    let key = schnorrkel::PublicKey::from_bytes(signer.public_key());
    let signature = schnorrkel::Signature::from_bytes(signature);
    let (Ok(key), Ok(signature)) = (key, signature) else { return Err(Refused::BadSignature) };
    key.verify_simple(CONTEXT, &signed_bytes(digest), &signature).map_err(|_| Refused::BadSignature)
}

/// Verifies statements: their authors sign the BLAKE3 of the canonical bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keys;

impl Verify for Keys {
    fn verify(&self, author: &Hotkey, bytes: &[u8], signature: &Signature) -> bool {
        verify(author, &Digest::of(bytes).0, &signature.0).is_ok()
    }
}

/// Who says it to whom, in which round. Every message has one, first of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Round.
    pub round: RoundId,
    /// Who signed it.
    pub sender: Hotkey,
    /// Whom it is for.
    pub receiver: Hotkey,
    /// Used once.
    pub nonce: Nonce,
    /// The nonce of the message that this answers.
    pub in_reply_to: Option<Nonce>,
}

/// Only the first field of a body: read before anything is verified, so that strangers cost little.
#[derive(Clone, PartialEq, prost::Message)]
struct Head {
    #[prost(message, optional, tag = "1")]
    envelope: Option<wire::Envelope>,
}

impl Envelope {
    /// Reads the envelope of a body of any kind; nothing in it is true before its signature is
    /// verified.
    pub fn peek(body: &[u8]) -> Result<Self, InvalidField> {
        if body.len() > MAX_BODY {
            return Err(InvalidField::new("body", "too long"));
        }
        Self::from_wire(read::<Head>(body)?.envelope)
    }

    /// The envelope of an answer with this nonce.
    pub fn answer(&self, nonce: Nonce) -> Self {
        Self {
            round: self.round,
            sender: self.receiver.clone(),
            receiver: self.sender.clone(),
            nonce,
            in_reply_to: Some(self.nonce),
        }
    }

    /// Reads it from the wire.
    pub fn from_wire(envelope: Option<wire::Envelope>) -> Result<Self, InvalidField> {
        let envelope = convert::required("envelope", envelope)?;
        Ok(Self {
            round: RoundId(envelope.round_id),
            sender: convert::parse("sender", &envelope.sender)?,
            receiver: convert::parse("receiver", &envelope.receiver)?,
            nonce: convert::bytes("nonce", &envelope.nonce)?,
            in_reply_to: match &envelope.in_reply_to[..] {
                [] => None,
                some => Some(convert::bytes("in_reply_to", some)?),
            },
        })
    }

    /// Writes it for the wire.
    pub fn to_wire(&self) -> wire::Envelope {
        let reply = self.in_reply_to.as_ref();
        wire::Envelope {
            round_id: self.round.0,
            sender: self.sender.to_string(),
            receiver: self.receiver.to_string(),
            nonce: Bytes::copy_from_slice(&self.nonce),
            in_reply_to: reply.map_or_else(Bytes::new, |nonce| Bytes::copy_from_slice(nonce)),
        }
    }
}

/// A message that has an encoded body, whose first field is an envelope.
pub trait Body: Sized {
    /// What its signature is for.
    const KIND: Kind;

    /// Its encoded body.
    fn encode(&self) -> Bytes;

    /// Reads a body; nothing in it is true before [`Body::open`] has verified its signature.
    fn decode(body: &[u8]) -> Result<Self, InvalidField>;

    /// Who says it to whom.
    fn envelope(&self) -> &Envelope;

    /// The digest to sign for `body`.
    fn digest(body: &[u8]) -> [u8; 32] {
        Self::KIND.digest(body)
    }

    /// Verifies that its sender signed a body, and reads it: in this order, since reading all of it
    /// costs more.
    fn open(body: &[u8], signature: &[u8]) -> Result<Self, Refused> {
        verify(&Envelope::peek(body)?.sender, &Self::digest(body), signature)?;
        Ok(Self::decode(body)?)
    }

    /// Reads the answer to `asked`: signed by the asked, for the asker, in that round, in reply.
    fn open_answer(asked: &Envelope, body: &[u8], signature: &[u8]) -> Result<Self, Refused> {
        let envelope = Envelope::peek(body)?;
        if envelope.sender != asked.receiver {
            return Err(Refused::WrongSender);
        }
        if envelope.receiver != asked.sender {
            return Err(Refused::WrongReceiver);
        }
        if envelope.round != asked.round {
            return Err(Refused::WrongRound);
        }
        if envelope.in_reply_to != Some(asked.nonce) {
            return Err(Refused::Replayed);
        }
        Self::open(body, signature)
    }
}

/// Reads an encoded message.
pub fn read<M: prost::Message + Default>(body: &[u8]) -> Result<M, InvalidField> {
    M::decode(body).map_err(|error| InvalidField::new("body", error))
}

/// Tells statements, and is answered with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Who says it to whom.
    pub envelope: Envelope,
    /// What is told; the statements' own signatures are not verified yet.
    pub exchange: merge::Exchange,
    /// SHA-256 of the certificate that the answering server shows, where it speaks TLS.
    pub certificate: Option<[u8; 32]>,
}

impl Exchange {
    /// A message around verified statements.
    pub fn new(
        envelope: Envelope,
        exchange: &merge::Exchange<Verified>,
        certificate: Option<[u8; 32]>,
    ) -> Self {
        let merge::Exchange { incarnation, group, had, statements } = exchange;
        let exchange = merge::Exchange {
            incarnation: *incarnation,
            group: *group,
            had: *had,
            statements: statements.iter().map(|one| one.signed().clone()).collect(),
        };
        Self { envelope, exchange, certificate }
    }
}

/// Asks for chunks; the answer is a stream of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Who asks whom.
    pub envelope: Envelope,
    /// Of which bytes.
    pub data: Data,
    /// First chunk that is wanted, counted in the whole vector.
    pub first: u32,
    /// How many from there.
    pub count: u32,
}

/// Announces chunks that follow in the same stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Who brings it to whom.
    pub envelope: Envelope,
    /// Which bytes: all of their chunks.
    pub data: Data,
}

impl Body for Exchange {
    const KIND: Kind = Kind::Exchange;

    fn encode(&self) -> Bytes {
        let Self { envelope, exchange, certificate } = self;
        let message = wire::Exchange {
            envelope: Some(envelope.to_wire()),
            incarnation: exchange.incarnation,
            group: convert_merge::optional(exchange.group.as_ref()),
            had: convert_merge::optional(exchange.had.as_ref()),
            statements: exchange.statements.iter().map(convert_merge::statement).collect(),
            certificate: certificate
                .as_ref()
                .map_or_else(Bytes::new, |digest| Bytes::copy_from_slice(digest)),
        };
        message.encode_to_vec().into()
    }

    fn decode(body: &[u8]) -> Result<Self, InvalidField> {
        let m: wire::Exchange = read(body)?;
        if m.statements.len() > MAX_STATEMENTS {
            return Err(InvalidField::new("statements", "too many"));
        }
        let statements: Result<_, _> =
            m.statements.into_iter().map(convert_merge::read_statement).collect();
        Ok(Self {
            envelope: Envelope::from_wire(m.envelope)?,
            exchange: merge::Exchange {
                incarnation: m.incarnation,
                group: convert_merge::read_optional("group", &m.group)?,
                had: convert_merge::read_optional("had", &m.had)?,
                statements: statements?,
            },
            certificate: convert_merge::read_optional("certificate", &m.certificate)?
                .map(|digest| digest.0),
        })
    }

    fn envelope(&self) -> &Envelope {
        &self.envelope
    }
}

impl Body for Fetch {
    const KIND: Kind = Kind::Fetch;

    fn encode(&self) -> Bytes {
        let Self { envelope, data, first, count } = self;
        let message = wire::FetchRequest {
            envelope: Some(envelope.to_wire()),
            data: Some(convert_merge::data(data)),
            first: *first,
            count: *count,
        };
        message.encode_to_vec().into()
    }

    fn decode(body: &[u8]) -> Result<Self, InvalidField> {
        let m: wire::FetchRequest = read(body)?;
        if m.first.checked_add(m.count).is_none() {
            return Err(InvalidField::new("count", "ends beyond any chunk"));
        }
        Ok(Self {
            envelope: Envelope::from_wire(m.envelope)?,
            data: convert_merge::read_data(m.data)?,
            first: m.first,
            count: m.count,
        })
    }

    fn envelope(&self) -> &Envelope {
        &self.envelope
    }
}

impl Body for Push {
    const KIND: Kind = Kind::Push;

    fn encode(&self) -> Bytes {
        let Self { envelope, data } = self;
        let message = wire::PushRequest {
            envelope: Some(envelope.to_wire()),
            data: Some(convert_merge::data(data)),
        };
        message.encode_to_vec().into()
    }

    fn decode(body: &[u8]) -> Result<Self, InvalidField> {
        let m: wire::PushRequest = read(body)?;
        Ok(Self {
            envelope: Envelope::from_wire(m.envelope)?,
            data: convert_merge::read_data(m.data)?,
        })
    }

    fn envelope(&self) -> &Envelope {
        &self.envelope
    }
}

#[cfg(test)]
mod tests;
