//! Submissions that are one submission: equal, or nearly so (protocol, section 6, and a policy).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{BlockNumber, CombinedSeed, Hotkey, ModelHash, Sketch, h256};

/// Whose score stays among duplicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Nobody's: the protocol's rule.
    #[default]
    ZeroAll,
    /// That of the one who committed first on chain.
    Earliest,
}

/// What is done about duplicates.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DuplicatePolicy {
    /// Whose score stays.
    pub keep: Keep,
    /// Cosine of two sketches from which on their submissions are nearly equal: above 0, at most 1.
    pub similarity: f64,
}

impl Default for DuplicatePolicy {
    /// Zeroes all from a cosine of 0.999 on. Honest miners that start from one base and train long on
    /// texts of one kind learn very nearly the same: on the demonstration's model up to 0.988 was
    /// seen. A sketch of 256 sums estimates a cosine `c` to about `(1 - c²) / 16`, there 0.0015, so
    /// that 0.999 is seven errors away. A copy with noise stays above it until the noise has a
    /// twentieth of the change's own length.
    fn default() -> Self {
        Self { keep: Keep::default(), similarity: 0.999 }
    }
}

/// What is compared of a submission.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compared<'a> {
    /// Its raw score.
    pub raw: f64,
    /// Its model hash.
    pub model_hash: Option<ModelHash>,
    /// What it changed in the base model, as a sketch.
    pub sketch: Option<&'a Sketch>,
    /// Block in which the signature of its hash was stored on chain: the chain's word.
    pub committed_at: Option<BlockNumber>,
}

/// Submissions that are one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuplicateGroup {
    /// Whose, ascending: two or more.
    pub members: BTreeSet<Hotkey>,
    /// Those of them that equal another one in raw score or model hash; the others are nearly equal.
    pub equal: BTreeSet<Hotkey>,
    /// Whose score stays.
    pub kept: Option<Hotkey>,
}

impl DuplicateGroup {
    /// Whether the score of this member stays.
    pub fn keeps(&self, hotkey: &Hotkey) -> bool {
        self.kept.as_ref() == Some(hotkey)
    }
}

/// Groups what is equal or nearly equal, ascending by first member.
///
/// Two belong together whose raw scores have the same bits, whose model hashes are equal, or whose
/// sketches have a cosine of at least the policy's; and whoever belongs to one of a group belongs to
/// all of it. What did not improve on the base model (a raw score of 0, an empty sketch) belongs to
/// nobody: it is paid nothing, and everybody who changes nothing looks the same. So nobody can drag
/// another miner down by a spoilt copy, such as one that is scaled until it is useless.
///
/// Under [`Keep::Earliest`] ties of the block are broken by the smallest
/// `h256("duplicate", hotkey, combined seed)`: nobody chooses the seed.
pub fn duplicates(
    compared: &BTreeMap<Hotkey, Compared<'_>>,
    policy: &DuplicatePolicy,
    combined: &CombinedSeed,
) -> Vec<DuplicateGroup> {
    let scored: Vec<(&Hotkey, &Compared<'_>)> =
        compared.iter().filter(|(_, one)| one.raw.is_finite() && one.raw > 0.0).collect();
    let mut groups: Vec<DuplicateGroup> = Vec::new();
    for (n, (hotkey, one)) in scored.iter().enumerate() {
        let mut own = BTreeSet::from([(*hotkey).clone()]);
        let mut equal = BTreeSet::new();
        for (other_key, other) in scored.iter().take(n) {
            let same = is_equal(one, other);
            if same {
                equal.extend([(*hotkey).clone(), (*other_key).clone()]);
            }
            if same || is_near(one, other, policy.similarity) {
                own.insert((*other_key).clone());
            }
        }
        let (joined, apart): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|group| !group.members.is_disjoint(&own));
        groups = apart;
        let mut group = DuplicateGroup { members: own, equal, kept: None };
        for joined in joined {
            group.members.extend(joined.members);
            group.equal.extend(joined.equal);
        }
        groups.push(group);
    }
    groups.retain(|group| group.members.len() > 1);
    groups.sort_by(|a, b| a.members.first().cmp(&b.members.first()));
    if policy.keep == Keep::Earliest {
        let combined = combined.to_hex();
        for group in &mut groups {
            let order = |hotkey: &&Hotkey| {
                let at = compared.get(*hotkey).and_then(|one| one.committed_at);
                let unknown = at.is_none();
                (unknown, at, h256(&["duplicate", hotkey.as_str(), &combined]))
            };
            group.kept = group.members.iter().min_by_key(order).cloned();
        }
    }
    groups
}

fn is_equal(a: &Compared<'_>, b: &Compared<'_>) -> bool {
    a.raw.to_bits() == b.raw.to_bits() || (a.model_hash.is_some() && a.model_hash == b.model_hash)
}

fn is_near(a: &Compared<'_>, b: &Compared<'_>, similarity: f64) -> bool {
    let cosine = a.sketch.zip(b.sketch).and_then(|(a, b)| a.cosine(b));
    cosine.is_some_and(|cosine| cosine >= similarity)
}

#[cfg(test)]
mod tests;
