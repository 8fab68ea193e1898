//! The slices in which a global model is published, and what a slice must contain.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use domain::ExpertGroup;
use serde::{Deserialize, Serialize, de};

use crate::{checkpoint::Format, tensor::TensorSpec};

/// A part of a global model that has files of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SliceId {
    /// All parameters but the routed experts.
    Shared,
    /// The whole model.
    Full,
    /// The routed experts of one group.
    Group(ExpertGroup),
}

impl SliceId {
    /// `model_shared.pt`, `model_full.safetensors`, `model_expgroup_0.pt`.
    pub fn file_name(self, format: Format) -> String {
        match self {
            Self::Shared | Self::Full => format!("model_{self}.{format}"),
            Self::Group(group) => format!("model_expgroup_{group}.{format}"),
        }
    }
}

impl fmt::Display for SliceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared => f.write_str("shared"),
            Self::Full => f.write_str("full"),
            Self::Group(group) => group.fmt(f),
        }
    }
}

/// A text that names no slice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a slice is `shared`, `full` or the number of an expert group")]
pub struct UnknownSlice;

impl FromStr for SliceId {
    type Err = UnknownSlice;

    fn from_str(text: &str) -> Result<Self, UnknownSlice> {
        match text {
            "shared" => Ok(Self::Shared),
            "full" => Ok(Self::Full),
            _ => text.parse().map(|n| Self::Group(ExpertGroup(n))).map_err(|_| UnknownSlice),
        }
    }
}

impl Serialize for SliceId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SliceId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// What a checkpoint of a slice must contain: no tensor more and none less.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SliceLayout {
    pub tensors: BTreeMap<String, TensorSpec>,
    /// Names of the model's shared parameters, to tell a miner that sends them from one that sends foreign tensors.
    pub shared: BTreeSet<String>,
}
