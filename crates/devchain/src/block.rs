//! A block and its header, whose hash is what clients know it by.

use bytes::Bytes;
use codec::{Compact, Encode as _};
use serde_json::{Value as Json, json};

use crate::runtime::blake2_256;

/// A block's number and hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The height, from 0.
    pub number: u32,
    /// BLAKE2b-256 of the SCALE header.
    pub hash: [u8; 32],
}

/// A block. The roots are plain digests of what the live chain puts into tries: they cannot be
/// used for proofs, but every change of content changes the hash.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) head: Head,
    pub(crate) parent: [u8; 32],
    pub(crate) state_root: [u8; 32],
    pub(crate) extrinsics_root: [u8; 32],
    pub(crate) extrinsics: Vec<Bytes>,
}

impl Block {
    pub(crate) fn new(
        number: u32,
        parent: [u8; 32],
        state_root: [u8; 32],
        extrinsics: Vec<Bytes>,
    ) -> Self {
        let list: Vec<&[u8]> = extrinsics.iter().map(|e| &e[..]).collect();
        let extrinsics_root = blake2_256(&list.encode());
        let head = Head { number, hash: [0; 32] };
        let mut block = Self { head, parent, state_root, extrinsics_root, extrinsics };
        block.head.hash = blake2_256(&block.header());
        block
    }

    /// The SCALE header: parent, number, roots, and a digest without logs.
    fn header(&self) -> Vec<u8> {
        let mut bytes = self.parent.to_vec();
        Compact(self.head.number).encode_to(&mut bytes);
        bytes.extend(self.state_root);
        bytes.extend(self.extrinsics_root);
        bytes.push(0);
        bytes
    }

    /// The header as clients read it.
    pub(crate) fn header_json(&self) -> Json {
        json!({
            "parentHash": hex(self.parent),
            "number": format!("{:#x}", self.head.number),
            "stateRoot": hex(self.state_root),
            "extrinsicsRoot": hex(self.extrinsics_root),
            "digest": { "logs": [] },
        })
    }

    /// The block as clients read it.
    pub(crate) fn json(&self) -> Json {
        let extrinsics: Vec<String> = self.extrinsics.iter().map(hex).collect();
        json!({
            "block": { "header": self.header_json(), "extrinsics": extrinsics },
            "justifications": null,
        })
    }
}

/// Bytes as JSON-RPC writes them.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    format!("0x{}", hex::encode(bytes))
}
