//! What validators must have in common to merge, and what each brings.

use std::{collections::BTreeMap, time::Duration};

use domain::{ExpertGroup, Hotkey, ModelHash};
use serde::{Deserialize, Serialize};

use crate::bytes::{Bytes, Digest};

/// Version of the agreement that this build speaks.
pub const PROTOCOL: u32 = 2;

/// No text of the terms is longer, in bytes.
pub const MAX_TEXT: usize = 64;

/// No roster has more validators.
pub const MAX_ROSTER: usize = 256;

/// The validators of a round and what each has at stake, as of the round's block: all that could
/// take part. Validators with other rosters do not merge, since stakes go into the result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Roster(pub BTreeMap<Hotkey, u64>);

impl Roster {
    /// Digest of hotkeys and stakes, ascending by hotkey.
    pub fn digest(&self) -> Digest {
        Bytes::new("roster")
            .list(&self.0, |b, (hotkey, stake)| b.hotkey(hotkey).number(*stake))
            .hash()
    }
}

/// What all members of a merge have in common. Whoever has other terms would make another model, or
/// keep other deadlines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// Version of the agreement.
    pub protocol: u32,
    /// Expert group.
    pub group: ExpertGroup,
    /// Hash of the round's base model.
    pub base: ModelHash,
    /// Digest of tensor names, shapes and order, and of the outer optimizer and its state.
    pub layout: Digest,
    /// Name of the encoding of chunks, with its parameters.
    pub codec: String,
    /// Name of the reduction, with its parameters.
    pub reduction: String,
    /// Digest of the [`Roster`].
    pub roster: Digest,
    /// Chunks of one whole encoded gradient: their number follows from the layout.
    pub chunks: u32,
    /// Fewer members do not merge, and fewer signatures do not end a merge.
    pub min_group: u32,
    /// More members do not merge at once.
    pub target_group: u32,
    /// How many faulty members the deadlines have room for: see [`crate::Schedule`].
    pub max_faults: u8,
    /// How long a merge may take, in milliseconds.
    pub deadline_ms: u64,
}

impl Terms {
    /// How long a merge may take.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }

    /// Why validators with these terms cannot merge, as a stable reason; `None` where they can.
    pub fn differs(&self, other: &Self) -> Option<&'static str> {
        let same = [
            (self.protocol == other.protocol, "other_protocol"),
            (self.group == other.group, "other_group"),
            (self.base == other.base, "other_base"),
            (self.layout == other.layout && self.chunks == other.chunks, "other_layout"),
            (self.codec == other.codec, "other_codec"),
            (self.reduction == other.reduction, "other_reduction"),
            (self.roster == other.roster, "other_roster"),
            (self == other, "other_policy"),
        ];
        same.into_iter().find(|(same, _)| !same).map(|(_, why)| why)
    }

    pub(crate) fn write(&self, bytes: Bytes) -> Bytes {
        bytes
            .number(self.protocol.into())
            .number(self.group.0.into())
            .raw(&self.base.0)
            .digest(&self.layout)
            .text(&self.codec)
            .text(&self.reduction)
            .digest(&self.roster)
            .number(self.chunks.into())
            .number(self.min_group.into())
            .number(self.target_group.into())
            .byte(self.max_faults)
            .number(self.deadline_ms)
    }
}

/// A gradient that is offered: from here on its bytes are fixed, and anybody can check any chunk of
/// it, whoever it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gradient {
    /// Bytes of all encoded chunks.
    pub bytes: u64,
    /// [`Digest::of_chunks`] of the encoded chunks.
    pub chunks: Digest,
}

/// What a validator brings to a merge. One in a round: a second one is a proof against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Under which terms it merges.
    pub terms: Terms,
    /// Its gradient, where it has one to give.
    pub gradient: Option<Gradient>,
    /// Whether others can call it. Who only dials out owns no slice, and brings and fetches
    /// everything by calls of its own.
    pub callable: bool,
}

impl Offer {
    pub(crate) fn write(&self, bytes: Bytes) -> Bytes {
        self.terms
            .write(bytes)
            .option(self.gradient.as_ref(), |b, g| b.number(g.bytes).digest(&g.chunks))
            .byte(self.callable.into())
    }
}
