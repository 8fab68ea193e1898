//! Whom to evaluate first (protocol, section 5): groups A, B and C, foreground and background.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Uid, assignment::assign};

/// How cohorts are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CohortConfig {
    /// How many validators must name a miner for group A.
    pub group_a_min_consensus: usize,
    /// Share that one validator must exceed for a miner of group A.
    pub group_a_min_weight_per_validator: f64,
    /// Most miners in A and B together.
    pub validation_group_ab_total: usize,
    /// Most miners in C.
    pub validation_group_c_size: usize,
    /// Miners per validator in the tally for A.
    pub weight_group_1_size: usize,
    /// Miners per validator in the tally for B.
    pub weight_group_2_size: usize,
}

impl Default for CohortConfig {
    fn default() -> Self {
        Self {
            group_a_min_consensus: 1,
            group_a_min_weight_per_validator: 0.03,
            validation_group_ab_total: 13,
            validation_group_c_size: 17,
            weight_group_1_size: 3,
            weight_group_2_size: 5,
        }
    }
}

/// What the validators' best miners were given; serialised as `[total, count, max]`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "(f64, usize, f64)", into = "(f64, usize, f64)")]
pub struct Tally {
    /// Sum of the shares.
    pub total: f64,
    /// How many validators named it.
    pub count: usize,
    /// Largest share by one validator.
    pub max: f64,
}

impl From<(f64, usize, f64)> for Tally {
    fn from((total, count, max): (f64, usize, f64)) -> Self {
        Self { total, count, max }
    }
}

impl From<Tally> for (f64, usize, f64) {
    fn from(tally: Tally) -> Self {
        (tally.total, tally.count, tally.max)
    }
}

/// The groups of one round, each in order of rank.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cohorts {
    /// Named by enough validators.
    pub group_a: Vec<Uid>,
    /// The next best by the validators' weights.
    pub group_b: Vec<Uid>,
    /// This validator's share of everyone else.
    pub group_c: Vec<Uid>,
    /// This validator's share of A and B: evaluated first.
    pub foreground: Vec<Uid>,
}

/// A validator of the round as the cohorts see it.
#[derive(Debug, Clone, PartialEq)]
pub struct CohortValidator<K> {
    /// Its hotkey.
    pub hotkey: K,
    /// Its seed, 0 where it committed none.
    pub seed: u64,
    /// What it gave to whom on chain, as shares of one.
    pub weights: Vec<(Uid, f64)>,
}

/// Adds up what each validator gave its `k` best miners, counting only those in `miners`. Equal
/// shares of one validator rank by ascending UID.
pub fn tally<'a>(
    rows: impl IntoIterator<Item = &'a [(Uid, f64)]>,
    miners: &BTreeSet<Uid>,
    k: usize,
) -> BTreeMap<Uid, Tally> {
    let mut tally: BTreeMap<Uid, Tally> = BTreeMap::new();
    for row in rows {
        let mut row: Vec<(Uid, f64)> = row
            .iter()
            .filter(|(uid, share)| miners.contains(uid) && share.is_finite() && *share > 0.0)
            .copied()
            .collect();
        row.sort_by(|(uid_a, a), (uid_b, b)| b.total_cmp(a).then(uid_a.cmp(uid_b)));
        for (uid, share) in row.into_iter().take(k) {
            let entry = tally.entry(uid).or_default();
            entry.total += share;
            entry.count += 1;
            entry.max = entry.max.max(share);
        }
    }
    tally
}

/// By total, then by count, then by ascending UID.
fn ranked(tally: &BTreeMap<Uid, Tally>) -> Vec<(Uid, Tally)> {
    let mut ranked: Vec<(Uid, Tally)> = tally.iter().map(|(uid, tally)| (*uid, *tally)).collect();
    ranked.sort_by(|(_, a), (_, b)| b.total.total_cmp(&a.total).then(b.count.cmp(&a.count)));
    ranked
}

/// Makes the cohorts of the validator `me`.
///
/// `validators` are the qualified ones, ascending by UID: where two have the same seed, the
/// seeded assignment prefers the earlier. `miners` are all other neurons. Without `me` among the
/// validators, group C and the foreground are empty.
pub fn cohorts<K: AsRef<str> + Ord + Clone>(
    validators: &[CohortValidator<K>],
    miners: &BTreeMap<Uid, K>,
    me: &K,
    config: &CohortConfig,
) -> Cohorts {
    let uids: BTreeSet<Uid> = miners.keys().copied().collect();
    let rows = || validators.iter().map(|validator| validator.weights.as_slice());
    let best = tally(rows(), &uids, config.weight_group_1_size);
    let good = tally(rows(), &uids, config.weight_group_2_size);

    let group_a: Vec<Uid> = ranked(&best)
        .into_iter()
        .filter(|(_, tally)| {
            tally.count >= config.group_a_min_consensus
                && tally.max > config.group_a_min_weight_per_validator
        })
        .map(|(uid, _)| uid)
        .take(config.validation_group_ab_total)
        .collect();
    let group_b: Vec<Uid> = ranked(&good)
        .into_iter()
        .map(|(uid, _)| uid)
        .filter(|uid| !group_a.contains(uid))
        .take(config.validation_group_ab_total - group_a.len())
        .collect();

    let seeds: Vec<(K, u64)> =
        validators.iter().map(|validator| (validator.hotkey.clone(), validator.seed)).collect();
    let (in_ab, others): (Vec<_>, Vec<_>) =
        miners.iter().partition(|(uid, _)| group_a.contains(uid) || group_b.contains(uid));
    let share = |pool: Vec<(&Uid, &K)>, cap: Option<usize>| -> Vec<Uid> {
        let uid_of: BTreeMap<&K, Uid> = pool.iter().map(|(uid, key)| (*key, **uid)).collect();
        let hotkeys: Vec<K> = pool.iter().map(|(_, key)| (*key).clone()).collect();
        let mine = assign(&seeds, &hotkeys, cap).remove(me).unwrap_or_default();
        mine.iter()
            .filter_map(|hotkey| uid_of.get(hotkey).copied())
            .take(cap.unwrap_or(usize::MAX))
            .collect()
    };
    let group_c = share(others, Some(config.validation_group_c_size));
    let foreground = share(in_ab, None);
    Cohorts { group_a, group_b, group_c, foreground }
}

/// The order of the background: what A, B and C have beyond the foreground, in that order, then
/// everyone else with a usable checkpoint, longest unevaluated first.
///
/// `last_evaluated` tells for every miner with a usable checkpoint when it was evaluated last; a
/// miner that never was comes first, equal ones by ascending UID. Miners without a checkpoint are
/// left out everywhere.
pub fn background<T: Ord>(
    cohorts: &Cohorts,
    last_evaluated: &BTreeMap<Uid, Option<T>>,
) -> Vec<Uid> {
    let mut order: Vec<Uid> = Vec::new();
    let foreground: BTreeSet<Uid> = cohorts.foreground.iter().copied().collect();
    let mut seen = foreground;
    let grouped = cohorts.group_a.iter().chain(&cohorts.group_b).chain(&cohorts.group_c);
    for uid in grouped {
        if last_evaluated.contains_key(uid) && seen.insert(*uid) {
            order.push(*uid);
        }
    }
    let mut rest: Vec<(&Option<T>, Uid)> = last_evaluated
        .iter()
        .filter(|(uid, _)| !seen.contains(uid))
        .map(|(uid, last)| (last, *uid))
        .collect();
    rest.sort();
    order.extend(rest.into_iter().map(|(_, uid)| uid));
    order
}

#[cfg(test)]
mod tests;
