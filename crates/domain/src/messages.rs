//! The bytes that are signed (protocol, section 3). Signing and verifying happen elsewhere.

use crate::{BlockNumber, Hotkey, ModelHash};

/// The block message: public key of the target, then the block number, big-endian.
pub fn block_message(target: &Hotkey, block: BlockNumber) -> [u8; 40] {
    let mut message = [0; 40];
    message[..32].copy_from_slice(target.public_key());
    message[32..].copy_from_slice(&block.0.to_be_bytes());
    message
}

/// The submission message: model hash, then the block message.
pub fn submission_message(hash: &ModelHash, target: &Hotkey, block: BlockNumber) -> [u8; 64] {
    let mut message = [0; 64];
    message[..24].copy_from_slice(&hash.0);
    message[24..].copy_from_slice(&block_message(target, block));
    message
}

/// What a model hash's signature is over: the ASCII of its lower-case hex.
pub fn model_hash_message(hash: &ModelHash) -> Vec<u8> {
    hash.to_hex().into_bytes()
}
