//! From averages to the weights that go on chain (protocol, section 6).
//!
//! Two policies, [`TwoGroups`] and [`TopK`], the stale guard's [`fallback`], and the conversion to
//! the chain's integers. A set of weights is finite, not negative and sums to one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{BlockNumber, Cohorts, History, Metagraph, MinerHistory, RoundId, Uid, WeightRow};

/// Takes the share that nobody earned: the subnet's owner burns it.
pub const BURN_UID: Uid = Uid(0);

/// Shares by UID: finite, not negative, summing to one.
pub type Weights = BTreeMap<Uid, f64>;

/// The policy of the protocol: two groups with a share each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TwoGroups {
    /// Most miners in group 1, taken from cohorts A and B.
    pub group_1_size: usize,
    /// What group 1 shares.
    pub group_1_share: f64,
    /// Least records for group 1.
    pub group_1_min_records: usize,
    /// Most miners in group 2, taken from cohorts A, B and C.
    pub group_2_size: usize,
    /// What group 2 shares.
    pub group_2_share: f64,
    /// Least records for group 2.
    pub group_2_min_records: usize,
}

impl Default for TwoGroups {
    fn default() -> Self {
        Self {
            group_1_size: 3,
            group_1_share: 0.98,
            group_1_min_records: 3,
            group_2_size: 5,
            group_2_share: 0.02,
            group_2_min_records: 2,
        }
    }
}

/// The miners that [`TwoGroups`] pays, best first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WeightGroups {
    /// Best of A and B.
    pub group_1: Vec<Uid>,
    /// Next best of A, B and C.
    pub group_2: Vec<Uid>,
}

impl TwoGroups {
    /// Chooses the groups. `last_rounds` are the last two rounds of the network, this one included:
    /// group 1 must have a record in each.
    ///
    /// Only positive averages are paid, so that a miner that did nothing never shares what an
    /// empty group leaves over.
    pub fn choose(
        &self,
        cohorts: &Cohorts,
        history: &History,
        last_rounds: [RoundId; 2],
    ) -> WeightGroups {
        let (a, b, c) = (&cohorts.group_a, &cohorts.group_b, &cohorts.group_c);
        let group_1 = best(self.group_1_size, history, a.iter().chain(b), |miner| {
            miner.records().len() >= self.group_1_min_records
                && last_rounds.iter().all(|round| miner.has(*round))
        });
        let rest = a.iter().chain(b).chain(c).filter(|uid| !group_1.contains(uid));
        let group_2 = best(self.group_2_size, history, rest, |miner| {
            miner.records().len() >= self.group_2_min_records
        });
        WeightGroups { group_1, group_2 }
    }

    /// Shares the weights among chosen groups. The share of an empty group 1 goes to [`BURN_UID`];
    /// what an empty group 2 leaves goes to group 1, as the chain's own normalisation has it.
    pub fn weights(&self, groups: &WeightGroups, averages: &BTreeMap<Uid, f64>) -> Weights {
        let mut shares = share_out(
            &[(&groups.group_1, self.group_1_share), (&groups.group_2, self.group_2_share)],
            averages,
        );
        if groups.group_1.is_empty() {
            *shares.entry(BURN_UID).or_default() += self.group_1_share;
        }
        normalised(shares)
    }
}

/// The alternative policy: the best `k` averages, normalised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopK {
    /// Most miners that are paid.
    pub k: usize,
}

impl TopK {
    /// The best `k` positive averages of all miners with a history, best first.
    pub fn choose(&self, history: &History) -> Vec<Uid> {
        let uids: Vec<Uid> = history.iter().map(|(uid, _)| uid).collect();
        best(self.k, history, uids.iter(), |_| true)
    }

    /// Shares in proportion to the averages; all to [`BURN_UID`] when nobody earned any.
    pub fn weights(&self, chosen: &[Uid], averages: &BTreeMap<Uid, f64>) -> Weights {
        normalised(share_out(&[(chosen, 1.0)], averages))
    }
}

/// The averages of every miner with a history.
pub fn averages(history: &History) -> BTreeMap<Uid, f64> {
    history.iter().map(|(uid, miner)| (uid, miner.average())).collect()
}

/// The `size` best positive averages among `uids`, best first; equal ones by ascending UID.
fn best<'a>(
    size: usize,
    history: &History,
    uids: impl Iterator<Item = &'a Uid>,
    eligible: impl Fn(&MinerHistory) -> bool,
) -> Vec<Uid> {
    let uids: BTreeSet<Uid> = uids.copied().collect();
    let mut ranked: Vec<(f64, Uid)> = uids
        .into_iter()
        .filter_map(|uid| history.get(uid).filter(|miner| eligible(miner)).map(|m| (m, uid)))
        .map(|(miner, uid)| (miner.average(), uid))
        .filter(|(average, _)| *average > 0.0)
        .collect();
    ranked.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    ranked.into_iter().map(|(_, uid)| uid).take(size).collect()
}

/// Splits each group's share in proportion to its members' scores, evenly where no member has a
/// positive one: the deployed rule, case by case. Negative scores count as 0. The result sums to
/// the shares of the groups that have members.
pub fn share_out(groups: &[(&[Uid], f64)], scores: &BTreeMap<Uid, f64>) -> BTreeMap<Uid, f64> {
    let mut weights: BTreeMap<Uid, f64> = BTreeMap::new();
    for (members, share) in groups {
        let score = |uid: &Uid| {
            scores.get(uid).copied().filter(|score| score.is_finite()).unwrap_or(0.0).max(0.0)
        };
        let sum: f64 = members.iter().map(score).sum();
        for uid in *members {
            let part = if sum > 0.0 { score(uid) / sum } else { 1.0 / members.len() as f64 };
            *weights.entry(*uid).or_default() += share * part;
        }
    }
    weights
}

/// Scales to a sum of one; without anything to scale, all goes to [`BURN_UID`].
fn normalised(mut weights: BTreeMap<Uid, f64>) -> Weights {
    weights.retain(|_, weight| weight.is_finite() && *weight > 0.0);
    let sum: f64 = weights.values().sum();
    if weights.is_empty() || !sum.is_finite() {
        return Weights::from([(BURN_UID, 1.0)]);
    }
    for weight in weights.values_mut() {
        *weight /= sum;
    }
    weights
}

/// Whether this validator has set no weights for more than a cycle.
pub fn is_stale(last_update: BlockNumber, now: BlockNumber, cycle_length: u64) -> bool {
    now.0.saturating_sub(last_update.0) > cycle_length
}

/// What the stale guard sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "source", content = "weights")]
pub enum Fallback {
    /// This validator's own previous weights again.
    Previous(Weights),
    /// An even split over the miners that the other validators vote for.
    Votes(Weights),
}

impl Fallback {
    /// The weights to send.
    pub fn weights(&self) -> &Weights {
        match self {
            Self::Previous(weights) | Self::Votes(weights) => weights,
        }
    }
}

/// Miners that an even split covers at most.
const FALLBACK_MINERS: usize = 5;

/// What the stale guard of the validator `me` sends: `previous` when it says anything, else an even
/// split over the five miners with the most stake-weighted votes of other validators. `None` when
/// nobody votes for anybody: then nothing is sent.
///
/// `validators` are not paid: neither votes for them nor their shares of `previous` count.
pub fn fallback(
    me: Uid,
    previous: Option<&Weights>,
    rows: &[WeightRow],
    metagraph: &Metagraph,
    validators: &BTreeSet<Uid>,
) -> Option<Fallback> {
    if let Some(previous) = previous {
        let miners = previous.iter().filter(|(uid, _)| !validators.contains(uid));
        let miners: Vec<(Uid, f64)> =
            miners.map(|(uid, weight)| (*uid, *weight)).filter(|(_, w)| *w > 0.0).collect();
        if !is_uniform(miners.iter().map(|(_, weight)| *weight)) {
            return Some(Fallback::Previous(normalised(miners.into_iter().collect())));
        }
    }
    let mut votes: BTreeMap<Uid, f64> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.uid != me && validators.contains(&row.uid)) {
        let stake = metagraph.by_uid(row.uid).map_or(0, |neuron| neuron.stake) as f64;
        for (uid, share) in row.shares() {
            if !validators.contains(&uid) && stake > 0.0 {
                *votes.entry(uid).or_default() += stake * share;
            }
        }
    }
    let mut ranked: Vec<(Uid, f64)> = votes.into_iter().collect();
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    ranked.truncate(FALLBACK_MINERS);
    let even = 1.0 / ranked.len() as f64;
    (!ranked.is_empty())
        .then(|| Fallback::Votes(ranked.into_iter().map(|(uid, _)| (uid, even)).collect()))
}

/// Whether weights tell no miner from another: none at all, or several that are all equal. One
/// alone is a verdict.
fn is_uniform(mut weights: impl Iterator<Item = f64>) -> bool {
    let Some(first) = weights.next() else { return true };
    let mut rest = weights.peekable();
    rest.peek().is_some() && rest.all(|weight| weight == first)
}

/// The chain's integers: through f32, finite and positive ones divided by the largest, times 65535,
/// half rounded to even, zeros dropped. Ascending by UID; empty when nothing is positive.
pub fn to_u16<'a>(weights: impl IntoIterator<Item = (&'a Uid, &'a f64)>) -> Vec<(Uid, u16)> {
    let single: BTreeMap<Uid, f64> = weights
        .into_iter()
        .map(|(uid, weight)| (*uid, f64::from(*weight as f32)))
        .filter(|(_, weight)| weight.is_finite() && *weight > 0.0)
        .collect();
    let max = single.values().copied().fold(0.0, f64::max);
    single
        .into_iter()
        .map(|(uid, weight)| (uid, (weight / max * f64::from(u16::MAX)).round_ties_even() as u16))
        .filter(|(_, value)| *value > 0)
        .collect()
}

#[cfg(test)]
mod tests;
