//! What models are measured on: texts, token ids, and batches that are a pure function of a round's
//! seed.
//!
//! [`Sources`] are what an expert group's `config.yaml` names: folders, and data sets of a hub at a
//! pinned revision. A [`Drawer`] draws batches from them, once for all jobs of a process. It knows
//! nothing of models, rounds or miners. Formats, the draw's algorithm and how to check it stand in
//! `docs/data.md`.

mod batch;
mod chance;
mod corpus;
mod draw;
mod drawer;
mod error;
mod format;
mod glob;
mod hub;
mod kept;
mod parquet;
mod pick;
mod saved;
mod settings;
mod shard;
mod source;
mod sources;
mod spool;
mod tokenizer;
mod work;

pub use batch::{Batch, IGNORED_LABEL, digest};
pub use corpus::Corpus;
pub use draw::{TokenizedCorpus, held_out_seed};
pub use drawer::Drawer;
pub use error::DataError;
pub use glob::Glob;
pub use pick::{Draw, Pick, own_seed};
pub use settings::{HubSettings, Limits, Settings};
pub use source::{Place, Repo, Revision, Source, Weight, parse_sources};
pub use sources::{Drawn, Sources};
pub use tokenizer::Tokenizer;

/// The folder of golden vectors.
#[cfg(test)]
fn test_vectors() -> std::path::PathBuf {
    std::env::var_os("CONNITO_VECTORS").map_or_else(
        || concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors").into(),
        Into::into,
    )
}
