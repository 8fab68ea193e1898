//! Batches of a small corpus in memory, as a pure function of a seed: what the demo's miners train
//! on. Evaluators draw from [`crate::Sources`].

use std::collections::BTreeSet;

use domain::Seed;

use super::{Batch, Corpus, Tokenizer};
use crate::{
    DataError,
    chance::{Chance, hash},
};

/// Draws in vain, one after the other, after which a corpus is called too small.
const MOST_REDRAWS: usize = 10_000;

/// The seed of held-out batches: BLAKE2b-256 of the text `held-out`. It is the same for all
/// validators and cycles, so losses over time can be compared.
pub fn held_out_seed() -> Seed {
    Seed(hash(&[b"held-out"]))
}

/// A corpus as token ids, tokenised once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedCorpus {
    texts: Vec<Vec<u32>>,
    pad: u32,
}

impl TokenizedCorpus {
    /// Tokenises every text; texts of fewer than two tokens predict nothing and are left out.
    /// `pad` fills rows up.
    pub fn new(corpus: &Corpus, tokenizer: &Tokenizer, pad: u32) -> Result<Self, DataError> {
        let mut texts = Vec::with_capacity(corpus.texts().len());
        for text in corpus.texts() {
            let ids = tokenizer.encode(text)?;
            if ids.len() >= 2 {
                texts.push(ids);
            }
        }
        if texts.is_empty() {
            return Err(DataError::Corpus { why: "no text of two tokens".to_owned() });
        }
        Ok(Self { texts, pad })
    }

    /// Draws `batches` batches of `batch_size` rows of `length` tokens.
    ///
    /// One ChaCha20 stream, seeded with `seed`, gives 64-bit numbers; `below(n)` is the high half
    /// of the 128-bit product of the next number and `n`. Per row: the text is `below(texts)`; when
    /// it is longer than `length`, the row is its tokens from `below(tokens - length + 1)` on, and
    /// the whole text, filled up on the right, otherwise. A row that was drawn before is drawn
    /// again, so that no two rows are equal.
    ///
    /// # Errors
    ///
    /// The corpus has too few different rows.
    pub fn draw(
        &self,
        seed: &Seed,
        batches: usize,
        batch_size: usize,
        length: usize,
    ) -> Result<Vec<Batch>, DataError> {
        let mut chance = Chance::new(seed);
        let mut seen = BTreeSet::new();
        let mut drawn = Vec::new();
        for _ in 0..batches {
            let mut rows = Vec::new();
            let mut redraws = 0;
            while rows.len() < batch_size {
                let text = chance.index(self.texts.len());
                let start = match self.texts[text].len() {
                    tokens if tokens > length => chance.index(tokens - length + 1),
                    _ => 0,
                };
                let end = self.texts[text].len().min(start + length);
                let row = &self.texts[text][start..end];
                if seen.insert(row) {
                    rows.push(row.to_vec());
                    continue;
                }
                redraws += 1;
                if redraws > MOST_REDRAWS {
                    let wanted = batches * batch_size;
                    return Err(DataError::Corpus {
                        why: format!("fewer than {wanted} different rows of {length} tokens"),
                    });
                }
            }
            drawn.push(Batch::from_rows(&rows, length, self.pad)?);
        }
        Ok(drawn)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn corpus() -> TokenizedCorpus {
        let texts = (0..40u32).map(|n| (n..n + 5 + n % 7).collect()).collect();
        TokenizedCorpus { texts, pad: 0 }
    }

    #[test]
    fn the_held_out_seed_never_changes() {
        assert_eq!(
            held_out_seed().to_hex(),
            "97495695f7f983775da1fad697fd2a2cd3278ccabe7484e3176b49951a987164"
        );
    }

    #[test]
    fn a_corpus_that_is_too_small_is_an_error_not_a_loop() {
        let error = corpus().draw(&Seed([1; 32]), 50, 20, 4).unwrap_err().to_string();
        assert!(error.contains("fewer than 1000 different rows"), "{error}");
    }

    #[test]
    fn a_draw_is_what_it_was_when_this_was_written() {
        let batches = corpus().draw(&Seed([7; 32]), 2, 2, 6).unwrap();
        let ids: Vec<_> = batches.iter().flat_map(|batch| batch.ids().to_vec()).collect();
        let rows: Vec<_> = ids.chunks(6).collect();
        // Computed from the documentation alone, in another language.
        assert_eq!(
            rows,
            [
                [11, 12, 13, 14, 15, 16],
                [18, 19, 20, 21, 22, 23],
                [7, 8, 9, 10, 11, 12],
                [28, 29, 30, 31, 32, 33]
            ]
        );
    }

    proptest! {
        #[test]
        fn the_same_seed_draws_the_same_rows_and_no_row_twice(seed: [u8; 32], length in 2usize..9) {
            let (corpus, seed) = (corpus(), Seed(seed));
            let batches = corpus.draw(&seed, 3, 4, length).unwrap();
            prop_assert_eq!(&batches, &corpus.draw(&seed, 3, 4, length).unwrap());
            let rows: BTreeSet<_> =
                batches.iter().flat_map(|batch| batch.ids().chunks(length)).collect();
            prop_assert_eq!(rows.len(), 12);
            for batch in &batches {
                prop_assert_eq!((batch.rows(), batch.length()), (4, length));
                batch.check(60).unwrap();
            }
        }

        #[test]
        fn another_seed_draws_other_rows(seed: [u8; 32]) {
            let mut other = seed;
            other[0] ^= 1;
            let of = |seed| corpus().draw(&Seed(seed), 4, 4, 8).unwrap();
            prop_assert_ne!(of(seed), of(other));
        }
    }
}
