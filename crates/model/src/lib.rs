//! The language model that everything is about: DeepSeek-V2 on libtorch, its losses, and, for
//! demonstrations, its random beginning and its training.
//!
//! This is the only crate that names `tch`. It is synchronous and knows nothing of rounds, miners or
//! networks; a caller moves a [`LanguageModel`] into a blocking task. What a miner sent arrives here
//! as a [`checkpoint::TensorSource`] and may be wrong in every way: it ends in a [`ModelError`],
//! never in a panic.
//!
//! - [`MemoryPlan`]: what it will need, before it is loaded.
//! - [`LanguageModel`]: load, overlay, restore, losses; [`Stager`]: the next submission meanwhile.
//! - [`corpus`], [`init`], [`expert_group`], [`train`]: what a subnet on one machine needs besides.

mod config;
pub mod corpus;
mod device;
mod digest;
mod error;
pub mod expert_group;
pub mod init;
mod language_model;
mod loss;
mod memory;
mod net;
mod stage;
pub mod train;
mod weights;

pub use config::{ModelConfig, Rope, TopK, Yarn};
pub use device::{
    Autocast, Device, LoadOptions, ParseDeviceError, WeightType, single_threaded, use_threads,
};
pub use error::ModelError;
pub use language_model::{GroupExperts, LanguageModel, Next, mean_loss};
pub use memory::{Available, BatchShape, MemoryPlan, Part, Place};
pub use stage::{Staged, Stager};
