//! What models are measured on: texts, token ids, batches.

mod batch;
mod corpus;
mod draw;
mod tokenizer;

pub use batch::{Batch, IGNORED_LABEL, digest};
pub use corpus::Corpus;
pub use draw::{TokenizedCorpus, held_out_seed};
pub use tokenizer::Tokenizer;
