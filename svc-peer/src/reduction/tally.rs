//! What each contributor did to the chunks that were reduced here, added up: for people, not for the result.

use std::collections::BTreeMap;

use domain::Hotkey;
use serde::{Deserialize, Serialize};

/// Sums over chunks, per contributor.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    elements: u64,
    contributors: BTreeMap<Hotkey, Sums>,
}

#[derive(Debug, Clone, Default)]
struct Sums {
    /// Of the chunks that it has part in.
    elements: u64,
    weight_elements: f64,
    square: f64,
    bounded_square: f64,
    /// With the result, after the bound.
    dot: f64,
    result_square: f64,
    trimmed: f64,
    /// Chunks that it has no part in, by reason.
    excluded: BTreeMap<String, u32>,
}

/// A contributor's part in what was reduced here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Influence {
    /// Whose gradient.
    pub(crate) hotkey: Hotkey,
    /// Of those that took part, summing to 1; the mean over elements.
    pub(crate) weight: f64,
    /// L2 norm of what it gave.
    pub(crate) norm: f64,
    /// After the bound.
    pub(crate) bounded_norm: f64,
    /// Of the angle between what it gave and the result, from -1 to 1; 0 where either is all zeros.
    pub(crate) cosine: f64,
    /// Share of its elements that lie outside of what was kept, 0 to 1.
    pub(crate) trimmed: f64,
    /// Chunks that it has no part in, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) excluded: BTreeMap<String, u32>,
}

impl Tally {
    /// Of one chunk, with nobody in it yet.
    pub(super) fn of_chunk(elements: usize) -> Self {
        Self { elements: elements as u64, contributors: BTreeMap::new() }
    }

    /// A contributor that has no part in this chunk.
    pub(super) fn exclude(&mut self, hotkey: &Hotkey, reason: &str) {
        let sums = self.contributors.entry(hotkey.clone()).or_default();
        *sums.excluded.entry(reason.to_owned()).or_default() += 1;
    }

    /// What this chunk came to.
    pub(super) fn add_reduced(&mut self, reduced: &checkpoint::Reduced) {
        let elements = self.elements;
        for one in &reduced.influence {
            let sums = self.contributors.entry(one.hotkey.clone()).or_default();
            sums.elements += elements;
            sums.weight_elements += one.weight * elements as f64;
            sums.square += one.norm * one.norm;
            sums.bounded_square += one.bounded_norm * one.bounded_norm;
            sums.dot += one.cosine * one.bounded_norm * reduced.norm;
            sums.result_square += reduced.norm * reduced.norm;
            sums.trimmed += one.trimmed * elements as f64;
        }
        for one in &reduced.excluded {
            self.exclude(&one.hotkey, one.why.reason());
        }
    }

    /// Adds another chunk's sums, or those of many.
    pub(crate) fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        for (hotkey, theirs) in &other.contributors {
            let sums = self.contributors.entry(hotkey.clone()).or_default();
            sums.elements += theirs.elements;
            sums.weight_elements += theirs.weight_elements;
            sums.square += theirs.square;
            sums.bounded_square += theirs.bounded_square;
            sums.dot += theirs.dot;
            sums.result_square += theirs.result_square;
            sums.trimmed += theirs.trimmed;
            for (reason, chunks) in &theirs.excluded {
                *sums.excluded.entry(reason.clone()).or_default() += chunks;
            }
        }
    }

    /// Elements of all chunks that were reduced here: what the norms are over.
    #[cfg(test)]
    pub(crate) fn elements(&self) -> u64 {
        self.elements
    }

    /// Each contributor's part, ascending by hotkey.
    pub(crate) fn report(&self) -> Vec<Influence> {
        let share = |part: f64, of: u64| if of == 0 { 0.0 } else { part / of as f64 };
        let of = |(hotkey, sums): (&Hotkey, &Sums)| {
            let lengths = (sums.bounded_square * sums.result_square).sqrt();
            let cosine = if lengths > 0.0 { (sums.dot / lengths).clamp(-1.0, 1.0) } else { 0.0 };
            Influence {
                hotkey: hotkey.clone(),
                weight: share(sums.weight_elements, sums.elements),
                norm: sums.square.sqrt(),
                bounded_norm: sums.bounded_square.sqrt(),
                cosine,
                trimmed: share(sums.trimmed, sums.elements),
                excluded: sums.excluded.clone(),
            }
        };
        self.contributors.iter().map(of).collect()
    }
}
