//! A block and its header, whose hash is what clients know it by.

use bytes::Bytes;
use codec::{Compact, Encode as _};
use serde_json::{Value as Json, json};

use crate::runtime::blake2_256;

/// The log of a header that says that the runtime has changed.
const RUNTIME_UPDATED: u8 = 8;

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
    /// Whether the runtime changed in this block, which its header says.
    pub(crate) upgraded: bool,
    /// Which of the chain's runtimes its state is of.
    pub(crate) runtime: usize,
    /// How many blocks were made before it, on all branches.
    pub(crate) serial: u64,
    /// The newest finalized block when this one was new.
    pub(crate) finalized: u32,
}

impl Block {
    pub(crate) fn new(
        number: u32,
        parent: [u8; 32],
        state_root: [u8; 32],
        extrinsics: Vec<Bytes>,
        upgraded: bool,
    ) -> Self {
        let list: Vec<&[u8]> = extrinsics.iter().map(|e| &e[..]).collect();
        let extrinsics_root = blake2_256(&list.encode());
        let head = Head { number, hash: [0; 32] };
        let (runtime, serial, finalized) = (0, 0, 0);
        let mut block = Self {
            head,
            parent,
            state_root,
            extrinsics_root,
            extrinsics,
            upgraded,
            runtime,
            serial,
            finalized,
        };
        block.head.hash = blake2_256(&block.header());
        block
    }

    /// The same block with another parent and another state, and so with another hash.
    pub(crate) fn forged(&self, parent: [u8; 32]) -> Self {
        let mut forged = Self { parent, ..self.clone() };
        forged.state_root = blake2_256(&[&b"forged"[..], &self.state_root].concat());
        forged.head.hash = blake2_256(&forged.header());
        forged
    }

    /// The SCALE header: parent, number, roots, and a digest whose only log is an upgrade.
    fn header(&self) -> Vec<u8> {
        let mut bytes = self.parent.to_vec();
        Compact(self.head.number).encode_to(&mut bytes);
        bytes.extend(self.state_root);
        bytes.extend(self.extrinsics_root);
        self.logs().encode_to(&mut bytes);
        bytes
    }

    /// Logs of one byte each, which is also how a list of them is encoded.
    fn logs(&self) -> &'static [u8] {
        if self.upgraded { &[RUNTIME_UPDATED] } else { &[] }
    }

    /// The header as clients read it.
    pub(crate) fn header_json(&self) -> Json {
        json!({
            "parentHash": hex(self.parent),
            "number": format!("{:#x}", self.head.number),
            "stateRoot": hex(self.state_root),
            "extrinsicsRoot": hex(self.extrinsics_root),
            "digest": { "logs": self.logs().iter().map(|log| hex([*log])).collect::<Vec<_>>() },
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
