//! The draw: which rows of which shards a seed means. It is a pure function of the seed, the
//! sources' description and the shards' content; `docs/data.md` has it for other implementations.
//!
//! Numbers come from ChaCha20 streams; `below(n)` is the high half of the 128-bit product of the
//! stream's next 64-bit word and `n`.
//!
//! 1. **Shards.** A stream seeded with BLAKE2b-256 of `shards` and the draw's shard seed. For each
//!    source in order: with the `n` shards in ascending order of path (as bytes), for `i` from 0 to
//!    `min(shards_per_round, n) - 1`, swap the places `i` and `i + below(n - i)`. The first
//!    `min(shards_per_round, n)` are the source's shards, in that order, without those that have no
//!    text of the minimum length.
//! 2. **Rows.** A stream seeded with the seed itself. Per row, in the order of the batches: `w =
//!    below(W)` with `W` the sum of all weights in millionths; the source is the first one whose
//!    weight added to those before it exceeds `w`. Then `below(shards)` is the shard, `below(texts)`
//!    the text among those of the minimum length, and, where the text has more tokens than
//!    `length`, `below(tokens - length + 1)` is the row's first token; it is 0 otherwise.
//! 3. A text of fewer than two tokens, or a row of tokens that was drawn before, is drawn again
//!    from the shard on, within the same source. After 10 000 such draws in a row the source has
//!    run out.
//!
//! A row is at most `length` tokens, and is filled up on the right.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use domain::{GlobalVersion, Hotkey, Seed};
use serde::{Deserialize, Serialize};

use crate::{
    Batch, DataError, Tokenizer,
    chance::{Chance, hash},
    held_out_seed,
    spool::Spool,
    work::Wanted,
};

/// Draws in vain, one after the other, after which a source has run out.
const MOST_REDRAWS: usize = 10_000;

/// Tokens of texts that are kept while a draw goes on, for the next time that the text is drawn.
const KEPT_TOKENS: usize = 1 << 22;

/// What a miner could know before the models are revealed: the seed of its own data. BLAKE2b-256 of
/// the text `own-data:<hotkey>:<version>`, with the SS58 address and the decimal number.
pub fn own_seed(hotkey: &Hotkey, version: GlobalVersion) -> Seed {
    Seed(hash(&[format!("own-data:{}:{}", hotkey.as_str(), version.0).as_bytes()]))
}

/// The shards that all miners' own data of a version come from, so that a round fetches them once:
/// BLAKE2b-256 of the text `own-shards:<version>`.
fn own_shards(version: GlobalVersion) -> Seed {
    Seed(hash(&[format!("own-shards:{}", version.0).as_bytes()]))
}

/// What is drawn: `batches` batches of `size` rows of `length` tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Draw {
    /// Chooses sources, shards, texts and places.
    pub seed: Seed,
    /// Chooses the shards to choose from; the same as `seed`, unless many draws share their shards.
    pub shards: Seed,
    pub batches: usize,
    pub size: usize,
    pub length: usize,
}

impl Draw {
    /// A draw by one seed: a round's.
    pub fn new(seed: Seed, batches: usize, size: usize, length: usize) -> Self {
        Self { seed, shards: seed, batches, size, length }
    }

    /// A draw like this one, of the batches that progress is measured on.
    pub fn held_out(&self, batches: usize) -> Self {
        let seed = held_out_seed();
        Self { seed, shards: seed, batches, ..self.clone() }
    }

    /// A draw like this one, of a miner's own data.
    pub fn own(&self, hotkey: &Hotkey, version: GlobalVersion, batches: usize) -> Self {
        let (seed, shards) = (own_seed(hotkey, version), own_shards(version));
        Self { seed, shards, batches, ..self.clone() }
    }

    /// Rows of all batches.
    pub fn rows(&self) -> usize {
        self.batches.saturating_mul(self.size)
    }

    /// Refuses draws of nothing, and those of more than `tokens` positions.
    pub(crate) fn check(&self, tokens: u64) -> Result<(), DataError> {
        let bad = |why: String| Err(DataError::Draw { why });
        if self.rows() == 0 {
            return bad(format!("{} batches of {} rows", self.batches, self.size));
        }
        if self.length < 2 {
            return bad(format!("rows of {} tokens predict nothing", self.length));
        }
        let wanted = self.rows().saturating_mul(self.length) as u64;
        if wanted > tokens {
            return bad(format!("{wanted} token positions are more than {tokens}"));
        }
        Ok(())
    }
}

/// Where a row is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pick {
    /// Which of `data_sources`, from 0.
    pub source: usize,
    /// Path of the shard within the source.
    pub shard: String,
    /// The record of the shard, from 0: a row of parquet, a line, or a text file's only one.
    pub row: u64,
    /// The row's first token in the text.
    pub start: usize,
}

/// The shards of each source that a draw chooses from, of sources with `counts` shards.
pub(crate) fn choose_shards(seed: &Seed, counts: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut chance = Chance::new(&Seed(hash(&[b"shards", &seed.0])));
    let choose = |&count: &usize| {
        // Where a place holds another index than its own: a dense list of all shards is not needed.
        let mut moved = BTreeMap::new();
        let mut chosen = Vec::new();
        for i in 0..count.min(most.max(1)) {
            let other = i + chance.index(count - i);
            chosen.push(moved.get(&other).copied().unwrap_or(other));
            let here = moved.get(&i).copied().unwrap_or(i);
            moved.insert(other, here);
        }
        chosen
    };
    counts.iter().map(choose).collect()
}

/// A source that is ready to draw from.
#[derive(Debug)]
pub(crate) struct Ready {
    /// What errors call it.
    pub(crate) name: String,
    /// Millionths.
    pub(crate) weight: u64,
    /// The chosen shards that have a text, in their order; at least one.
    pub(crate) shards: Vec<(String, Arc<Spool>)>,
}

/// Draws the rows and says where they are from.
pub(crate) fn draw_rows(
    by: &Draw,
    sources: &[Ready],
    tokenizer: &Tokenizer,
    wanted: &Wanted,
) -> Result<(Vec<Vec<u32>>, Vec<Pick>), DataError> {
    let mut drawing = Drawing {
        chance: Chance::new(&by.seed),
        length: by.length,
        tokenizer,
        seen: BTreeSet::new(),
        texts: BTreeMap::new(),
        tokens: 0,
    };
    let total = sources.iter().map(|source| source.weight).sum();
    let (mut rows, mut picks) = (Vec::with_capacity(by.rows()), Vec::with_capacity(by.rows()));
    for _ in 0..by.rows() {
        wanted.check()?;
        let mut weight = drawing.chance.below(total);
        let chosen = sources.iter().enumerate().find(|(_, source)| {
            let found = weight < source.weight;
            weight = weight.saturating_sub(source.weight);
            found
        });
        let (index, source) = chosen.ok_or_else(|| DataError::Draw { why: "no source".into() })?;
        let (row, pick) = drawing.row(index, source)?;
        rows.push(row);
        picks.push(pick);
    }
    Ok((rows, picks))
}

/// A text by source, shard and number among the shard's texts.
type TextKey = (usize, usize, usize);

struct Drawing<'t> {
    chance: Chance,
    length: usize,
    tokenizer: &'t Tokenizer,
    /// Rows that were drawn.
    seen: BTreeSet<Vec<u32>>,
    /// Records' numbers and tokens of texts that were drawn lately.
    texts: BTreeMap<TextKey, (u64, Vec<u32>)>,
    /// Tokens in `texts`.
    tokens: usize,
}

impl Drawing<'_> {
    fn row(&mut self, index: usize, source: &Ready) -> Result<(Vec<u32>, Pick), DataError> {
        let length = self.length;
        for _ in 0..=MOST_REDRAWS {
            let at = self.chance.index(source.shards.len());
            let Some((shard, spool)) = source.shards.get(at) else { break };
            let text = self.chance.index(spool.len());
            if !self.texts.contains_key(&(index, at, text)) {
                self.remember((index, at, text), spool)?;
            }
            let Some((row, tokens)) = self.texts.get(&(index, at, text)) else { break };
            let start = match tokens.len() {
                count if count > length => self.chance.index(count - length + 1),
                _ => 0,
            };
            let drawn: Vec<u32> = tokens.iter().copied().skip(start).take(length).collect();
            if drawn.len() >= 2 && self.seen.insert(drawn.clone()) {
                let pick = Pick { source: index, shard: shard.clone(), row: *row, start };
                return Ok((drawn, pick));
            }
        }
        Err(DataError::RanOut { name: source.name.clone(), draws: MOST_REDRAWS, length })
    }

    fn remember(&mut self, key: TextKey, spool: &Spool) -> Result<(), DataError> {
        let (row, text) = spool.text(key.2)?;
        let tokens = self.tokenizer.encode(&text)?;
        if self.tokens > KEPT_TOKENS {
            self.texts.clear();
            self.tokens = 0;
        }
        self.tokens += tokens.len();
        self.texts.insert(key, (row, tokens));
        Ok(())
    }
}

/// Rows as batches, filled up with `pad`.
pub(crate) fn batches(by: &Draw, rows: &[Vec<u32>], pad: u32) -> Result<Vec<Batch>, DataError> {
    rows.chunks(by.size.max(1)).map(|rows| Batch::from_rows(rows, by.length, pad)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn own_seeds_differ_by_hotkey_and_version() {
        let key = |byte| Hotkey::from_public_key([byte; 32]);
        let seed = own_seed(&key(1), GlobalVersion(7));
        assert_ne!(seed, own_seed(&key(2), GlobalVersion(7)));
        assert_ne!(seed, own_seed(&key(1), GlobalVersion(8)));
        let round = Draw::new(Seed([1; 32]), 3, 2, 8);
        let own = |byte| round.own(&key(byte), GlobalVersion(7), 1);
        assert_eq!(own(1).shards, own(2).shards);
        assert_eq!((own(1).seed, own(1).rows(), own(1).length), (seed, 2, 8));
    }

    #[test]
    fn draws_of_nothing_or_of_too_much_are_refused() {
        for (batches, size, length) in
            [(0, 1, 8), (1, 0, 8), (1, 1, 1), (10, 10, 101), (usize::MAX, 2, 2)]
        {
            let by = Draw::new(Seed([1; 32]), batches, size, length);
            assert_eq!(by.check(10_000).unwrap_err().reason(), "draw");
        }
        Draw::new(Seed([1; 32]), 10, 10, 100).check(10_000).unwrap();
    }

    proptest! {
        #[test]
        fn chosen_shards_are_different_ones_of_those_there(
            seed: [u8; 32],
            counts in proptest::collection::vec(1usize..60, 1..5),
            most in 0usize..12,
        ) {
            let chosen = choose_shards(&Seed(seed), &counts, most);
            prop_assert_eq!(chosen.len(), counts.len());
            for (chosen, count) in chosen.iter().zip(counts) {
                prop_assert_eq!(chosen.len(), count.min(most.max(1)));
                let distinct: BTreeSet<_> = chosen.iter().collect();
                prop_assert_eq!(distinct.len(), chosen.len());
                prop_assert!(chosen.iter().all(|shard| *shard < count));
            }
        }

        #[test]
        fn all_shards_are_chosen_where_they_are_few(seed: [u8; 32], count in 1usize..40) {
            let mut chosen = choose_shards(&Seed(seed), &[count], count).remove(0);
            chosen.sort_unstable();
            prop_assert_eq!(chosen, (0..count).collect::<Vec<_>>());
        }
    }
}
