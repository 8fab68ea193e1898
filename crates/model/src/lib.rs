//! The language model that everything is about: DeepSeek-V2 on libtorch, its losses, and, for
//! demonstrations, its random beginning and its training.
//!
//! This is the only crate that names `tch`. It is synchronous and knows nothing of rounds, miners or
//! networks; a caller moves a [`LanguageModel`] into a blocking task. What a miner sent arrives here
//! as a [`checkpoint::TensorSource`] and may be wrong in every way: it ends in a [`ModelError`],
//! never in a panic.
//!
//! - [`LanguageModel`]: load, overlay, restore, losses.
//! - [`corpus`], [`init`], [`expert_group`], [`train`]: what a subnet on one machine needs besides.

mod config;
pub mod corpus;
mod device;
mod error;
pub mod expert_group;
pub mod init;
mod language_model;
mod net;
pub mod train;
mod weights;

pub use config::{ModelConfig, Rope, Yarn};
pub use device::{
    Autocast, Device, LoadOptions, ParseDeviceError, WeightType, single_threaded, use_threads,
};
pub use error::ModelError;
pub use language_model::{GroupExperts, LanguageModel, mean_loss};

/// The folder of golden vectors.
#[cfg(test)]
fn test_vectors() -> std::path::PathBuf {
    std::env::var_os("CONNITO_VECTORS").map_or_else(
        || concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors").into(),
        Into::into,
    )
}
