//! Sealing and opening, in the chain's layout of bytes.

use ::timelock::{
    block_ciphers::{AESGCMBlockCipherProvider, BlockCipherProvider as _},
    engines::drand::TinyBLS381,
    ibe::fullident::Ciphertext as Header,
    tlock::{TLECiphertext, tld, tle},
};
use ark_serialize::{CanonicalDeserialize as _, CanonicalSerialize as _};
use ark_std::rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use sha2::{Digest as _, Sha256};

use crate::{
    beacon::{Beacon, KeyGroup, PUBLIC_KEY_BYTES, identity, signature_point},
    layout,
};

/// The chain takes no longer commit (`MAX_CRV3_COMMIT_SIZE_BYTES`), and nothing longer is sealed
/// or opened here.
pub const MAX_SEALED: usize = 5000;
/// What sealing adds to the length of a message.
pub const OVERHEAD: usize = PUBLIC_KEY_BYTES + 6 * LENGTH + 2 * HASH + TAG + NONCE + SUITE.len();

const LENGTH: usize = 8;
const HASH: usize = 32;
const TAG: usize = 16;
const NONCE: usize = 12;
const SUITE: &[u8] = AESGCMBlockCipherProvider::CIPHER_SUITE;

/// A message was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("a message of {0} bytes does not fit into {MAX_SEALED} when it is sealed")]
    TooLong(usize),
    #[error("the cipher failed")]
    Cipher,
}

/// A sealed message does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("{0} bytes are more than {MAX_SEALED}")]
    TooLong(usize),
    #[error("the bytes are not a sealed message: {0}")]
    Layout(&'static str),
    #[error("the signature is not a point of G1")]
    Signature,
    #[error("the signature does not open the message, or it was changed")]
    Sealed,
}

/// Seals a message to a round, in the chain's layout. The message is [`OVERHEAD`] longer then.
///
/// `entropy` is 32 bytes that no one else can guess: who guesses them reads the message at once.
/// They are mixed with all that is sealed, so that using them twice is no help to anyone.
pub fn seal(
    beacon: &Beacon,
    round: u64,
    message: &[u8],
    entropy: [u8; 32],
) -> Result<Vec<u8>, SealError> {
    if message.len() > MAX_SEALED - OVERHEAD {
        return Err(SealError::TooLong(message.len()));
    }
    let seed = Sha256::new()
        .chain_update(entropy)
        .chain_update(beacon.public_key())
        .chain_update(round.to_be_bytes())
        .chain_update(message)
        .finalize();
    let mut rng = StdRng::from_seed(seed.into());
    let mut key = [0; 32];
    rng.fill_bytes(&mut key);
    let sealed = tle::<TinyBLS381, AESGCMBlockCipherProvider, _>(
        beacon.key(),
        key,
        message,
        identity(round),
        rng,
    )
    .map_err(|_| SealError::Cipher)?;

    let mut bytes = Vec::with_capacity(message.len() + OVERHEAD);
    sealed.header.u.serialize_compressed(&mut bytes).map_err(|_| SealError::Cipher)?;
    for string in [&sealed.header.v[..], &sealed.header.w, &sealed.body, &sealed.cipher_suite] {
        layout::put(&mut bytes, string);
    }
    Ok(bytes)
}

/// Opens a sealed message with the signature of its round. Any bytes are welcome: what is not a
/// sealed message, or is not opened by this signature, is an error.
///
/// Stricter than the chain, which does not mind bytes after the end and names of other ciphers:
/// no client makes such.
pub fn open(sealed: &[u8], signature: &[u8]) -> Result<Vec<u8>, OpenError> {
    let sealed = parse(sealed)?;
    let signature = signature_point(signature).ok_or(OpenError::Signature)?;
    tld::<TinyBLS381, AESGCMBlockCipherProvider>(sealed, signature).map_err(|_| OpenError::Sealed)
}

/// Everything that the crate below would panic on is an error here.
fn parse(sealed: &[u8]) -> Result<TLECiphertext<TinyBLS381>, OpenError> {
    let bad = OpenError::Layout;
    if sealed.len() > MAX_SEALED {
        return Err(OpenError::TooLong(sealed.len()));
    }
    let mut input = sealed;
    let u: [u8; PUBLIC_KEY_BYTES] = layout::array(&mut input).ok_or(bad("no point"))?;
    let mut hash = |name| {
        let string = layout::string(&mut input).ok_or(bad(name))?;
        <[u8; HASH]>::try_from(string).map_err(|_| bad(name))
    };
    let (v, w) = (hash("no masked sigma")?, hash("no masked key")?);
    let body = layout::string(&mut input).ok_or(bad("no body"))?;
    let suite = layout::string(&mut input).ok_or(bad("no cipher suite"))?;
    if suite != SUITE {
        return Err(bad("another cipher suite"));
    }
    if !input.is_empty() {
        return Err(bad("bytes after the end"));
    }

    let mut inner = body;
    let text = layout::string(&mut inner).ok_or(bad("no ciphertext"))?;
    let nonce = layout::string(&mut inner).ok_or(bad("no nonce"))?;
    if text.len() < TAG || nonce.len() != NONCE || !inner.is_empty() {
        return Err(bad("a ciphertext without its tag, or a nonce of another length"));
    }
    let u = KeyGroup::deserialize_compressed(&u[..]).map_err(|_| bad("not a point of G2"))?;
    Ok(TLECiphertext {
        header: Header { u, v, w },
        body: body.to_vec(),
        cipher_suite: suite.to_vec(),
    })
}
