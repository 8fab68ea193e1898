//! Which validator evaluates which miner: seeded, and the same for everyone (protocol, section 5).

use std::{cmp::Reverse, collections::BTreeMap};

use sha2::{Digest as _, Sha256};

use crate::{BlockHash, CombinedSeed, Seed};

/// SHA-256 over each part's text followed by a zero byte. The protocol reads the digest as a
/// big-endian integer, which orders as these bytes do.
pub fn h256(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().into()
}

/// SHA-256 of the concatenated decimal seeds in ascending order of hotkey; of `0` without any.
pub fn combined_seed<K: AsRef<str>>(seeds: &[(K, u64)]) -> CombinedSeed {
    let mut ordered: Vec<(&str, u64)> =
        seeds.iter().map(|(hotkey, seed)| (hotkey.as_ref(), *seed)).collect();
    ordered.sort();
    let text: String = if ordered.is_empty() {
        "0".to_owned()
    } else {
        ordered.iter().map(|(_, seed)| seed.to_string()).collect()
    };
    CombinedSeed(Sha256::digest(text).into())
}

/// The seed that the evaluation batches of a round are drawn from: SHA-256 of the combined seed's
/// hex text followed by the 32 bytes of the hash of MinerCommit2's last block.
///
/// This derivation is ours: the protocol only asks that batches follow from the round's seed. The
/// block hash is in it so that nobody knows the batches before the models are revealed.
pub fn evaluation_seed(combined: &CombinedSeed, block: &BlockHash) -> Seed {
    let hash = Sha256::new().chain_update(combined.to_hex()).chain_update(block.0);
    Seed(hash.finalize().into())
}

/// Assigns every miner to exactly one validator.
///
/// Capacities are as equal as possible and at most `cap`; a miner that finds no room goes to its
/// least preferred validator, even beyond the cap. Lists are in the order in which miners chose.
/// Validators with the same seed are preferred in the order of `validators`, which must therefore
/// be the same for everyone: ascending by UID. Empty without validators.
pub fn assign<K: AsRef<str> + Ord + Clone>(
    validators: &[(K, u64)],
    miners: &[K],
    cap: Option<usize>,
) -> BTreeMap<K, Vec<K>> {
    if validators.is_empty() {
        return BTreeMap::new();
    }
    let combined = combined_seed(validators).to_hex();
    let seeds: Vec<String> = validators.iter().map(|(_, seed)| seed.to_string()).collect();

    let (base, remainder) = (miners.len() / validators.len(), miners.len() % validators.len());
    let mut room = vec![base; validators.len()];
    let mut bonus: Vec<usize> = (0..validators.len()).collect();
    bonus.sort_by_cached_key(|v| Reverse(h256(&["cap_bonus", &seeds[*v], &combined])));
    for v in bonus.into_iter().take(remainder) {
        room[v] += 1;
    }
    if let Some(cap) = cap {
        for capacity in &mut room {
            *capacity = (*capacity).min(cap);
        }
    }

    let mut order: Vec<&K> = miners.iter().collect();
    order.sort_by_cached_key(|miner| h256(&["miner_order", miner.as_ref(), &combined]));
    let mut assigned: BTreeMap<K, Vec<K>> =
        validators.iter().map(|(hotkey, _)| (hotkey.clone(), Vec::new())).collect();
    for miner in order {
        let mut preferred: Vec<usize> = (0..validators.len()).collect();
        preferred.sort_by_cached_key(|v| {
            Reverse(h256(&["preference", miner.as_ref(), &seeds[*v], &combined]))
        });
        let chosen = preferred.iter().find(|v| room[**v] > 0).or(preferred.last());
        if let Some(v) = chosen {
            room[*v] = room[*v].saturating_sub(1);
            assigned.entry(validators[*v].0.clone()).or_default().push(miner.clone());
        }
    }
    assigned
}

/// Ranks miners by on-chain incentive, descending, then by ascending hotkey.
pub fn rank_by_incentive<K: AsRef<str> + Ord + Clone>(miners: &[(K, u16)]) -> Vec<K> {
    let mut ranked: Vec<&(K, u16)> = miners.iter().collect();
    ranked.sort_by(|(hotkey_a, a), (hotkey_b, b)| {
        b.cmp(a).then_with(|| hotkey_a.as_ref().cmp(hotkey_b.as_ref()))
    });
    ranked.into_iter().map(|(hotkey, _)| hotkey.clone()).collect()
}

/// The miners that the assignment covers: the best `foreground_top_n * validators` by incentive.
pub fn foreground_cut<K: AsRef<str> + Ord + Clone>(
    miners: &[(K, u16)],
    foreground_top_n: usize,
    validators: usize,
) -> Vec<K> {
    let mut ranked = rank_by_incentive(miners);
    ranked.truncate(foreground_top_n.saturating_mul(validators));
    ranked
}

#[cfg(test)]
mod tests;
