//! A signed extrinsic: opened without trust in a single byte, and its signature checked over
//! the payload that the metadata's transaction extensions make.

use bytes::Bytes;
use codec::{Compact, Decode as _, Encode as _};

use crate::{
    dispatch::Call,
    refusal::Refusal,
    runtime::{Runtime, blake2_256},
    state::Account,
};

/// An extrinsic longer than this is refused. A commitment or a full row of weights has a few
/// hundred bytes.
pub(crate) const MAX_BYTES: usize = 256 * 1024;

/// Signed, version 4, as every client of this chain sends them.
const SIGNED_V4: u8 = 0x84;
const ADDRESS_ID: u8 = 0;
const SIGNATURE_SR25519: u8 = 1;
const SIGNING_CONTEXT: &[u8] = b"substrate";
/// Longer payloads are signed by their hash.
const MAX_PLAIN_PAYLOAD: usize = 256;

/// What the signature covers besides the extrinsic's own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Implicit {
    SpecVersion,
    TransactionVersion,
    Genesis,
    Birth,
    NoMetadataHash,
}

/// The blocks in which an extrinsic may be included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Era {
    Immortal,
    Mortal { period: u64, phase: u64 },
}

impl Era {
    fn take(input: &mut &[u8]) -> Option<Self> {
        let first = take(input, 1)?[0];
        if first == 0 {
            return Some(Self::Immortal);
        }
        let encoded = u64::from(first) | u64::from(take(input, 1)?[0]) << 8;
        let period = 2u64 << (encoded % 16);
        let phase = (encoded >> 4) * (period >> 12).max(1);
        (period >= 4 && phase < period).then_some(Self::Mortal { period, phase })
    }

    /// The block whose hash is signed, seen from block `current`. An era that has passed has a
    /// later birth than the one that was signed: its signature no longer verifies.
    pub(crate) fn birth(self, current: u64) -> u64 {
        match self {
            Self::Immortal => 0,
            Self::Mortal { period, phase } => {
                (current.max(phase) - phase) / period * period + phase
            }
        }
    }
}

/// What the chain knows that a signature also covers.
pub(crate) struct Facts<'a> {
    pub(crate) runtime: &'a Runtime,
    pub(crate) genesis: [u8; 32],
    /// The block into which the extrinsic would go.
    pub(crate) block: u32,
    /// Hashes of past blocks; `None` for those that are too old or not yet made.
    pub(crate) hash_of: &'a dyn Fn(u64) -> Option<[u8; 32]>,
}

/// An extrinsic that is well formed. Only [`Extrinsic::verify`] says that it is also signed.
#[derive(Debug, Clone)]
pub(crate) struct Extrinsic {
    pub(crate) hash: [u8; 32],
    pub(crate) bytes: Bytes,
    pub(crate) signer: Account,
    pub(crate) nonce: u32,
    /// What its signer pays to be preferred.
    pub(crate) tip: u128,
    pub(crate) pallet: String,
    pub(crate) name: String,
    pub(crate) call: Call,
    signature: [u8; 64],
    era: Era,
    implicit: Vec<Implicit>,
    /// Where the extensions begin and where the call begins in `bytes`.
    extra_at: usize,
    call_at: usize,
}

impl Extrinsic {
    /// Opens the bytes of an extrinsic.
    pub(crate) fn open(bytes: Bytes, runtime: &Runtime) -> Result<Self, Refusal> {
        let bad = Refusal::Format;
        if bytes.len() > MAX_BYTES {
            return Err(Refusal::TooLarge);
        }
        let mut input = &bytes[..];
        let length = Compact::<u32>::decode(&mut input).map_err(|_| bad("no length"))?.0;
        if usize::try_from(length).ok() != Some(input.len()) {
            return Err(bad("the length is not that of the bytes"));
        }
        match take(&mut input, 1).ok_or(bad("empty"))?[0] {
            SIGNED_V4 => {}
            4 | 5 => return Err(Refusal::Unexpected),
            _ => return Err(bad("not a signed extrinsic of version 4")),
        }
        let [ADDRESS_ID] = *take(&mut input, 1).ok_or(bad("no address"))? else {
            return Err(bad("the address is not an account id"));
        };
        let signer = array(&mut input).ok_or(bad("no signer"))?;
        let [SIGNATURE_SR25519] = *take(&mut input, 1).ok_or(bad("no signature"))? else {
            return Err(bad("the signature is not sr25519"));
        };
        let signature = array(&mut input).ok_or(bad("no signature"))?;

        let extra_at = bytes.len() - input.len();
        let mut era = Era::Immortal;
        let (mut nonce, mut tip) = (None, 0);
        let mut implicit = Vec::new();
        for extension in runtime.metadata().extrinsic().transaction_extensions_to_use_for_encoding()
        {
            match extension.identifier() {
                "CheckMortality" => {
                    era = Era::take(&mut input).ok_or(bad("no such era"))?;
                    implicit.push(Implicit::Birth);
                }
                "CheckNonce" => {
                    let value = Compact::<u32>::decode(&mut input).map_err(|_| bad("no nonce"))?;
                    nonce = Some(value.0);
                }
                "CheckSpecVersion" => implicit.push(Implicit::SpecVersion),
                "CheckTxVersion" => implicit.push(Implicit::TransactionVersion),
                "CheckGenesis" => implicit.push(Implicit::Genesis),
                "ChargeTransactionPayment" => {
                    tip = Compact::<u128>::decode(&mut input).map_err(|_| bad("no tip"))?.0;
                }
                "CheckMetadataHash" => match take(&mut input, 1) {
                    Some([0]) => implicit.push(Implicit::NoMetadataHash),
                    _ => return Err(bad("a metadata hash is not checked here")),
                },
                // The others of this chain have no bytes, explicit or implicit.
                _ => {}
            }
        }
        let call_at = bytes.len() - input.len();
        let nonce = nonce.ok_or(bad("no nonce"))?;
        let &[pallet, call] = take(&mut input, 2).ok_or(bad("no call"))? else {
            return Err(bad("no call"));
        };
        let (pallet, variant) = runtime
            .call(pallet, call)
            .ok_or_else(|| Refusal::Call(format!("no call {pallet}.{call} in this runtime")))?;
        let call = Call::decode(runtime, pallet, variant, input).map_err(Refusal::Call)?;
        let (pallet, name) = (pallet.to_owned(), variant.name.clone());
        let hash = blake2_256(&bytes);
        Ok(Self {
            hash,
            bytes,
            signer,
            nonce,
            tip,
            pallet,
            name,
            call,
            signature,
            era,
            implicit,
            extra_at,
            call_at,
        })
    }

    /// Checks mortality and signature.
    pub(crate) fn verify(&self, facts: &Facts<'_>) -> Result<(), Refusal> {
        let birth = (facts.hash_of)(self.era.birth(facts.block.into()));
        let mut payload = self.bytes[self.call_at..].to_vec();
        payload.extend(&self.bytes[self.extra_at..self.call_at]);
        for implicit in &self.implicit {
            match implicit {
                Implicit::SpecVersion => facts.runtime.spec_version.encode_to(&mut payload),
                Implicit::TransactionVersion => {
                    facts.runtime.transaction_version.encode_to(&mut payload);
                }
                Implicit::Genesis => payload.extend(facts.genesis),
                Implicit::Birth => payload.extend(birth.ok_or(Refusal::AncientBirth)?),
                Implicit::NoMetadataHash => payload.push(0),
            }
        }
        if payload.len() > MAX_PLAIN_PAYLOAD {
            payload = blake2_256(&payload).to_vec();
        }
        let key = schnorrkel::PublicKey::from_bytes(&self.signer);
        let signature = schnorrkel::Signature::from_bytes(&self.signature);
        match (key, signature) {
            (Ok(key), Ok(signature)) => key
                .verify_simple(SIGNING_CONTEXT, &payload, &signature)
                .map_err(|_| Refusal::BadSignature),
            _ => Err(Refusal::BadSignature),
        }
    }
}

fn take<'a>(input: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(taken)
}

fn array<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    take(input, N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_era_of_64_blocks_signed_at_block_100_is_born_there_until_block_164() {
        let mut bytes = &[0x05 | 0x40, 0x02][..]; // period 64, phase 36
        let era = Era::take(&mut bytes).unwrap();
        assert_eq!(era, Era::Mortal { period: 64, phase: 36 });
        assert_eq!((era.birth(100), era.birth(163), era.birth(164)), (100, 100, 164));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_extrinsic_or_a_named_refusal(
            body in prop::collection::vec(any::<u8>(), 0..300),
            signed: bool,
        ) {
            let runtime = crate::testing::runtime();
            let mut inner = if signed {
                let mut head = vec![SIGNED_V4, ADDRESS_ID];
                head.extend([7; 32]);
                head.push(SIGNATURE_SR25519);
                head.extend([7; 64]);
                // Immortal, nonce 0, no tip, no metadata hash.
                head.extend([0, 0, 0, 0]);
                head
            } else {
                Vec::new()
            };
            inner.extend(&body);
            if let Ok(opened) = Extrinsic::open(inner.encode().into(), runtime) {
                let facts =
                    Facts { runtime, genesis: [0; 32], block: 1, hash_of: &|_| Some([0; 32]) };
                prop_assert_eq!(opened.verify(&facts), Err(Refusal::BadSignature));
            }
        }
    }
}
