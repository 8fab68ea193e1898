//! The texts that models are measured on, tokenised once, and the batches drawn from them.

use std::path::PathBuf;

use data::{Batch, Corpus, DataError, TokenizedCorpus, Tokenizer, digest, held_out_seed};
use model::ModelConfig;

use crate::job::Batches;

/// Where the texts are.
#[derive(Debug, Clone)]
pub(crate) struct TextPaths {
    pub(crate) tokenizer: PathBuf,
    pub(crate) corpus: PathBuf,
    pub(crate) held_out: PathBuf,
    pub(crate) minimum_length: usize,
}

/// Both corpora as tokens, and the batches that were drawn last.
#[derive(Debug)]
pub(crate) struct Texts {
    corpus: TokenizedCorpus,
    held_out: TokenizedCorpus,
    drawn: Option<Drawn>,
    drawn_held_out: Option<Drawn>,
}

/// Batches, what they were drawn by, and what shows that another worker drew the same.
#[derive(Debug)]
pub(crate) struct Drawn {
    pub(crate) by: Batches,
    pub(crate) batches: Vec<Batch>,
    pub(crate) digest: String,
}

impl Texts {
    /// Reads and tokenises both corpora; rows are filled up as `config` says.
    pub(crate) fn open(paths: &TextPaths, config: &ModelConfig) -> Result<Self, DataError> {
        let tokenizer = Tokenizer::open(&paths.tokenizer)?;
        let pad = config.pad_token.and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        let open = |folder| {
            let corpus = Corpus::open(folder, paths.minimum_length)?;
            TokenizedCorpus::new(&corpus, &tokenizer, pad)
        };
        Ok(Self {
            corpus: open(&paths.corpus)?,
            held_out: open(&paths.held_out)?,
            drawn: None,
            drawn_held_out: None,
        })
    }

    /// The round's batches.
    pub(crate) fn round(&mut self, by: Batches) -> Result<&Drawn, DataError> {
        draw(&self.corpus, &mut self.drawn, by)
    }

    /// `count` held-out batches of the round's size and length: the same in every round.
    pub(crate) fn held_out(&mut self, like: Batches, count: usize) -> Result<&Drawn, DataError> {
        let by = Batches { seed: held_out_seed(), count, ..like };
        draw(&self.held_out, &mut self.drawn_held_out, by)
    }
}

fn draw<'a>(
    corpus: &TokenizedCorpus,
    kept: &'a mut Option<Drawn>,
    by: Batches,
) -> Result<&'a Drawn, DataError> {
    let drawn = match kept.take() {
        Some(drawn) if drawn.by == by => drawn,
        Some(_) | None => {
            let batches = corpus.draw(&by.seed, by.count, by.size, by.length)?;
            let digest = digest(&batches);
            Drawn { by, batches, digest }
        }
    };
    Ok(kept.insert(drawn))
}
