//! What models are measured on: texts, token ids, and batches that are a pure function of a round's
//! seed.
//!
//! It is synchronous, and knows nothing of models, rounds or miners.

mod batch;
mod corpus;
mod draw;
mod error;
mod tokenizer;

pub use batch::{Batch, IGNORED_LABEL, digest};
pub use corpus::Corpus;
pub use draw::{TokenizedCorpus, held_out_seed};
pub use error::DataError;
pub use tokenizer::Tokenizer;

/// The folder of golden vectors.
#[cfg(test)]
fn test_vectors() -> std::path::PathBuf {
    std::env::var_os("CONNITO_VECTORS").map_or_else(
        || concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors").into(),
        Into::into,
    )
}
