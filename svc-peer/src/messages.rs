//! What validators' peer services say to each other: signed bodies, built and verified.
//!
//! A message is an encoded protobuf body and an sr25519 signature over `connito.peer.v1:` and the
//! BLAKE2b-256 of the message's kind and that body. Nothing here knows the network, the rounds or
//! the private key: signing is the chain service's, replay is the business of `nonces`.

use std::collections::BTreeSet;

use blake2::{Blake2b, Digest as _, digest::consts::U32};
use bytes::Bytes;
use domain::{ExpertGroup, Hotkey, ModelHash, RoundId};
use prost::Message as _;
use proto::{InvalidField, convert, peer::v1 as wire};

use crate::error::Refused;

/// Version of the exchange that this build speaks.
pub const PROTOCOL: u32 = 2;
/// No signed body may be larger: a hello that names 256 members has about 13 KiB.
pub const MAX_BODY: usize = 32 * 1024;
/// No group of validators is larger.
pub const MAX_MEMBERS: usize = 256;

const CONTEXT: &[u8] = b"substrate";
const PREFIX: &[u8] = b"connito.peer.v1:";

/// 16 random bytes that make a message one of its kind.
pub type Nonce = [u8; 16];

/// What a signature is for: signatures of one kind are worth nothing as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Hello`].
    Hello,
    /// [`SliceRequest`].
    Slice,
    /// The end of a streamed slice.
    Chunk,
    /// [`Confirm`].
    Confirm,
    /// [`crate::resync::message::HoldingsRequest`].
    HoldingsRequest,
    /// [`crate::resync::message::Holdings`].
    Holdings,
    /// [`crate::resync::message::ShardRequest`].
    Shard,
}

impl Kind {
    fn tag(self) -> &'static [u8] {
        match self {
            Self::Hello => b"hello:",
            Self::Slice => b"slice:",
            Self::Chunk => b"chunk:",
            Self::Confirm => b"confirm:",
            Self::HoldingsRequest => b"holdings-request:",
            Self::Holdings => b"holdings:",
            Self::Shard => b"shard:",
        }
    }

    /// The digest that the chain service signs for these parts: BLAKE2b-256 of kind and parts.
    pub fn digest(self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = Blake2b::<U32>::new();
        hash.update(self.tag());
        for part in parts {
            hash.update(part);
        }
        hash.finalize().into()
    }
}

/// The bytes that are signed for a digest of [`Kind::digest`].
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

/// Who says it to whom, in which round. Every message has one.
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

/// What a validator brings to the merge of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Expert group that it merges.
    pub group: ExpertGroup,
    /// Hash of the round's base model.
    pub base: ModelHash,
    /// See [`crate::reduce::layout_digest`].
    pub layout: [u8; 32],
    /// Whether it has a gradient to give.
    pub has_gradient: bool,
    /// Version of the exchange.
    pub protocol: u32,
}

impl Offer {
    /// Why two validators with these offers cannot merge, `None` where they can.
    pub fn differs(&self, other: &Self) -> Option<&'static str> {
        if self.protocol != other.protocol {
            Some("other_protocol")
        } else if self.group != other.group {
            Some("other_group")
        } else if self.base != other.base {
            Some("other_base")
        } else if self.layout != other.layout {
            Some("other_layout")
        } else {
            None
        }
    }
}

/// A validator's offer, and whom it has met so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Who says it to whom.
    pub envelope: Envelope,
    /// What it brings.
    pub offer: Offer,
    /// Members that it has met, itself included.
    pub met: BTreeSet<Hotkey>,
}

/// Which of the two vectors a slice is asked of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The asked one's own pseudo-gradient.
    Gradient,
    /// The mean over the members.
    Reduced,
}

impl What {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gradient => "gradient",
            Self::Reduced => "reduced",
        }
    }
}

/// Asks for one slice of a vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceRequest {
    /// Who asks whom.
    pub envelope: Envelope,
    /// The owner's place among the members.
    pub slice: usize,
    /// The members that the asker merges with.
    pub members: BTreeSet<Hotkey>,
    /// Which vector.
    pub what: What,
}

/// Tells what the reduced vector came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirm {
    /// Who says it to whom.
    pub envelope: Envelope,
    /// BLAKE3 of the reduced vector.
    pub digest: [u8; 32],
}

/// A message that has an encoded body.
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
        Self::KIND.digest(&[body])
    }

    /// Reads a body and verifies that its sender signed it.
    fn open(body: &[u8], signature: &[u8]) -> Result<Self, Refused> {
        if body.len() > MAX_BODY {
            return Err(InvalidField::new("body", "too long").into());
        }
        let this = Self::decode(body)?;
        verify(&this.envelope().sender, &Self::digest(body), signature)?;
        Ok(this)
    }

    /// Reads the answer to `asked`: signed by the asked, for the asker, in that round, in reply.
    fn open_answer(asked: &Envelope, body: &[u8], signature: &[u8]) -> Result<Self, Refused> {
        let this = Self::open(body, signature)?;
        let envelope = this.envelope();
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
        Ok(this)
    }
}

pub(crate) fn envelope(
    round: u64,
    sender: &str,
    receiver: &str,
    nonce: &[u8],
    in_reply_to: &[u8],
) -> Result<Envelope, InvalidField> {
    Ok(Envelope {
        round: RoundId(round),
        sender: convert::parse("sender", sender)?,
        receiver: convert::parse("receiver", receiver)?,
        nonce: convert::bytes("nonce", nonce)?,
        in_reply_to: match in_reply_to {
            [] => None,
            some => Some(convert::bytes("in_reply_to", some)?),
        },
    })
}

fn hotkeys(field: &'static str, texts: &[String]) -> Result<BTreeSet<Hotkey>, InvalidField> {
    if texts.len() > MAX_MEMBERS {
        return Err(InvalidField::new(field, "too many"));
    }
    if texts.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(InvalidField::new(field, "not ascending"));
    }
    texts.iter().map(|text| convert::parse(field, text)).collect()
}

fn texts(hotkeys: &BTreeSet<Hotkey>) -> Vec<String> {
    hotkeys.iter().map(|hotkey| hotkey.as_str().to_owned()).collect()
}

pub(crate) fn reply(nonce: Option<Nonce>) -> Bytes {
    nonce.map_or_else(Bytes::new, |nonce| Bytes::copy_from_slice(&nonce))
}

pub(crate) fn read<M: prost::Message + Default>(body: &[u8]) -> Result<M, InvalidField> {
    M::decode(body).map_err(|error| InvalidField::new("body", error))
}

impl Body for Hello {
    const KIND: Kind = Kind::Hello;

    fn encode(&self) -> Bytes {
        let Self { envelope, offer, met } = self;
        let message = wire::Hello {
            round_id: envelope.round.0,
            sender: envelope.sender.to_string(),
            receiver: envelope.receiver.to_string(),
            nonce: Bytes::copy_from_slice(&envelope.nonce),
            in_reply_to: reply(envelope.in_reply_to),
            expert_group: offer.group.0,
            base_hash: offer.base.to_hex(),
            layout_digest: hex::encode(offer.layout),
            has_gradient: offer.has_gradient,
            protocol: offer.protocol,
            met: texts(met),
        };
        message.encode_to_vec().into()
    }

    fn decode(body: &[u8]) -> Result<Self, InvalidField> {
        let m: wire::Hello = read(body)?;
        let mut layout = [0; 32];
        hex::decode_to_slice(&m.layout_digest, &mut layout)
            .map_err(|error| InvalidField::new("layout_digest", error))?;
        Ok(Self {
            envelope: envelope(m.round_id, &m.sender, &m.receiver, &m.nonce, &m.in_reply_to)?,
            offer: Offer {
                group: ExpertGroup(m.expert_group),
                base: convert::parse("base_hash", &m.base_hash)?,
                layout,
                has_gradient: m.has_gradient,
                protocol: m.protocol,
            },
            met: hotkeys("met", &m.met)?,
        })
    }

    fn envelope(&self) -> &Envelope {
        &self.envelope
    }
}

impl Body for SliceRequest {
    const KIND: Kind = Kind::Slice;

    fn encode(&self) -> Bytes {
        let Self { envelope, slice, members, what } = self;
        let message = wire::SliceRequestBody {
            round_id: envelope.round.0,
            sender: envelope.sender.to_string(),
            receiver: envelope.receiver.to_string(),
            nonce: Bytes::copy_from_slice(&envelope.nonce),
            slice: u32::try_from(*slice).unwrap_or(u32::MAX),
            members: texts(members),
            what: what.as_str().to_owned(),
        };
        message.encode_to_vec().into()
    }

    fn decode(body: &[u8]) -> Result<Self, InvalidField> {
        let m: wire::SliceRequestBody = read(body)?;
        Ok(Self {
            envelope: envelope(m.round_id, &m.sender, &m.receiver, &m.nonce, &[])?,
            slice: m.slice as usize,
            members: hotkeys("members", &m.members)?,
            what: match m.what.as_str() {
                "gradient" => What::Gradient,
                "reduced" => What::Reduced,
                _ => return Err(InvalidField::new("what", "neither `gradient` nor `reduced`")),
            },
        })
    }

    fn envelope(&self) -> &Envelope {
        &self.envelope
    }
}

impl Body for Confirm {
    const KIND: Kind = Kind::Confirm;

    fn encode(&self) -> Bytes {
        let Self { envelope, digest } = self;
        let message = wire::Confirm {
            round_id: envelope.round.0,
            sender: envelope.sender.to_string(),
            receiver: envelope.receiver.to_string(),
            nonce: Bytes::copy_from_slice(&envelope.nonce),
            in_reply_to: reply(envelope.in_reply_to),
            digest: Bytes::copy_from_slice(digest),
        };
        message.encode_to_vec().into()
    }

    fn decode(body: &[u8]) -> Result<Self, InvalidField> {
        let m: wire::Confirm = read(body)?;
        Ok(Self {
            envelope: envelope(m.round_id, &m.sender, &m.receiver, &m.nonce, &m.in_reply_to)?,
            digest: convert::bytes("digest", &m.digest)?,
        })
    }

    fn envelope(&self) -> &Envelope {
        &self.envelope
    }
}

#[cfg(test)]
mod tests;
