//! A synthetic corpus that a small model can learn: arithmetic facts such as
//! `12 plus 30 equals 42.`, as a pure function of a seed.

use std::path::{Path, PathBuf};

use domain::Seed;
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};

use crate::ModelError;

/// Facts of one text.
const FACTS: usize = 12;

/// Texts for training.
const TRAIN_TEXTS: usize = 400;
/// Texts that nobody trains on.
const HELD_OUT_TEXTS: usize = 120;

/// Folders of a written corpus, to be opened with [`data::Corpus::open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusFolders {
    /// What miners train on and validators draw a round's batches from.
    pub train: PathBuf,
    /// What validators measure progress on.
    pub held_out: PathBuf,
}

/// `texts` texts of a dozen facts each.
pub fn generate(seed: &Seed, texts: usize) -> Vec<String> {
    let mut rng = ChaCha20Rng::from_seed(seed.0);
    (0..texts).map(|_| (0..FACTS).map(|_| fact(&mut rng)).collect::<Vec<_>>().join(" ")).collect()
}

fn fact(rng: &mut ChaCha20Rng) -> String {
    let (a, b) = (rng.next_u32() % 50, rng.next_u32() % 50);
    match rng.next_u32() % 3 {
        0 => format!("{a} plus {b} equals {}.", a + b),
        1 => format!("{} minus {b} equals {a}.", a + b),
        _ => format!("{} times {} equals {}.", a % 10, b % 10, (a % 10) * (b % 10)),
    }
}

/// Writes `train/facts.jsonl` and `held_out/facts.jsonl` under `folder`; the two share no text.
pub fn write(folder: &Path, seed: &Seed) -> Result<CorpusFolders, ModelError> {
    let texts = generate(seed, TRAIN_TEXTS + HELD_OUT_TEXTS);
    let (train, held_out) = texts.split_at(TRAIN_TEXTS);
    let folders = CorpusFolders { train: folder.join("train"), held_out: folder.join("held_out") };
    for (folder, texts) in [(&folders.train, train), (&folders.held_out, held_out)] {
        std::fs::create_dir_all(folder).map_err(|error| ModelError::file(folder, error))?;
        let path = folder.join("facts.jsonl");
        let lines: String =
            texts.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect();
        std::fs::write(&path, lines).map_err(|error| ModelError::file(&path, error))?;
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use data::Corpus;

    use super::*;

    #[test]
    fn every_fact_is_true() {
        for text in generate(&Seed([3; 32]), 50) {
            for fact in text.split_terminator('.') {
                let words: Vec<_> = fact.split_whitespace().collect();
                let n = |i: usize| words[i].parse::<i64>().unwrap();
                let expected = match words[1] {
                    "plus" => n(0) + n(2),
                    "minus" => n(0) - n(2),
                    "times" => n(0) * n(2),
                    other => panic!("{other}"),
                };
                assert_eq!((words[3], n(4)), ("equals", expected), "{fact}");
            }
        }
    }

    #[test]
    fn the_held_out_texts_are_not_among_those_trained_on() {
        let dir = tempfile::tempdir().unwrap();
        let folders = write(dir.path(), &Seed([5; 32])).unwrap();
        let train = Corpus::open(&folders.train, 1).unwrap();
        let held_out = Corpus::open(&folders.held_out, 1).unwrap();
        assert_eq!((train.texts().len(), held_out.texts().len()), (TRAIN_TEXTS, HELD_OUT_TEXTS));
        let train: BTreeSet<_> = train.texts().iter().collect();
        assert!(held_out.texts().iter().all(|text| !train.contains(text)));
    }
}
