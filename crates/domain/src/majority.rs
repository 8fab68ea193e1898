//! Which model the validators have: the one that more than half of the stake behind a cycle's
//! reveals stands for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Checkpoint, GlobalVersion, Hotkey, ModelHash};

/// A validator that has revealed a model, and so should have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Who.
    pub hotkey: Hotkey,
    /// Its address, `ip:port`.
    pub axon: String,
    /// Its stake, in rao.
    pub stake: u64,
}

/// A model that was revealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backed {
    /// Hash of the expert group's slice.
    pub model_hash: ModelHash,
    /// Version of the model.
    pub version: GlobalVersion,
    /// Stake of those who have revealed it, in rao.
    pub stake: u64,
    /// Stake of all who have revealed anything for the group, in rao.
    pub revealed: u64,
    /// Who has revealed it, ascending by hotkey.
    pub holders: Vec<Holder>,
}

impl Backed {
    /// Whether it is the majority's.
    pub fn is_majority(&self) -> bool {
        u128::from(self.stake) * 2 > u128::from(self.revealed)
    }
}

/// The model that has the most stake behind it, `None` when nobody has revealed any. Among equals the
/// smallest hash, so that everyone names the same. A version is part of what is revealed: the same
/// hash under another version is another model.
pub fn most_backed<'a>(checkpoints: impl IntoIterator<Item = &'a Checkpoint>) -> Option<Backed> {
    let mut models: BTreeMap<(ModelHash, GlobalVersion), Vec<&Checkpoint>> = BTreeMap::new();
    for checkpoint in checkpoints {
        models.entry((checkpoint.model_hash, checkpoint.version)).or_default().push(checkpoint);
    }
    let stake = |of: &[&Checkpoint]| of.iter().fold(0u64, |sum, c| sum.saturating_add(c.stake));
    let revealed = models.values().fold(0u64, |sum, of| sum.saturating_add(stake(of)));
    let mut most: Option<((ModelHash, GlobalVersion), u64)> = None;
    for (name, of) in &models {
        let stake = stake(of);
        if most.is_none_or(|(_, most)| stake > most) {
            most = Some((*name, stake));
        }
    }
    let (name, stake) = most?;
    let mut holders: Vec<Holder> = models.remove(&name)?.into_iter().map(holder).collect();
    holders.sort_by(|a, b| a.hotkey.cmp(&b.hotkey));
    let (model_hash, version) = name;
    Some(Backed { model_hash, version, stake, revealed, holders })
}

fn holder(checkpoint: &Checkpoint) -> Holder {
    let (hotkey, axon) = (checkpoint.hotkey.clone(), checkpoint.axon.clone());
    Holder { hotkey, axon, stake: checkpoint.stake }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ExpertGroup, Uid};

    fn checkpoint(n: u8, hash: u8, version: u64, stake: u64) -> Checkpoint {
        Checkpoint {
            hotkey: Hotkey::from_public_key([n; 32]),
            uid: Uid(n.into()),
            axon: format!("192.0.2.{n}:8091"),
            stake,
            model_hash: ModelHash([hash; 24]),
            signature: "s".to_owned(),
            version: GlobalVersion(version),
            group: ExpertGroup(0),
            inner_step: None,
            repo: None,
            revision: None,
        }
    }

    fn most(all: &[(u8, u64, u64)]) -> Option<Backed> {
        let all: Vec<Checkpoint> = (0..)
            .zip(all)
            .map(|(n, (hash, version, stake))| checkpoint(n, *hash, *version, *stake))
            .collect();
        most_backed(&all)
    }

    #[test]
    fn more_than_half_of_the_stake_is_a_majority_and_half_is_none() {
        let found = most(&[(7, 24, 30), (8, 24, 40), (7, 24, 11)]).unwrap();
        assert_eq!((found.model_hash, found.stake, found.revealed), (ModelHash([7; 24]), 41, 81));
        assert!(found.is_majority());
        assert_eq!(found.holders.len(), 2);
        let half = most(&[(7, 24, 40), (8, 24, 40)]).unwrap();
        assert_eq!((half.model_hash, half.is_majority()), (ModelHash([7; 24]), false));
        let split = most(&[(7, 24, 4), (8, 24, 3), (9, 24, 2)]).unwrap();
        assert_eq!((split.model_hash, split.is_majority()), (ModelHash([7; 24]), false));
    }

    #[test]
    fn many_without_stake_are_no_majority_and_nobody_is_nobody() {
        assert!(!most(&[(7, 24, 0), (7, 24, 0)]).unwrap().is_majority());
        let found = most(&[(7, 24, 0), (7, 24, 0), (8, 24, 1)]).unwrap();
        assert_eq!((found.model_hash, found.is_majority()), (ModelHash([8; 24]), true));
        assert_eq!(most(&[]), None);
    }

    #[test]
    fn the_same_hash_under_another_version_is_another_model() {
        let found = most(&[(7, 24, 3), (7, 60, 4)]).unwrap();
        assert_eq!((found.version, found.stake), (GlobalVersion(60), 4));
    }

    #[test]
    fn stakes_that_overflow_are_no_panic() {
        assert!(most(&[(7, 24, u64::MAX), (7, 24, u64::MAX), (8, 24, 1)]).is_some());
    }

    proptest! {
        #[test]
        fn whoever_adds_up_in_whatever_order_finds_the_same_and_at_most_one_majority(
            (all, shuffled) in prop::collection::vec((0u8..4, 0u64..2, 0u64..50), 0..12)
                .prop_map(|all| {
                    let numbered = (0..).zip(all);
                    let one = |(n, (hash, version, stake))| checkpoint(n, hash, version, stake);
                    numbered.map(one).collect::<Vec<_>>()
                })
                .prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle()))
        ) {
            let found = most_backed(&all);
            prop_assert_eq!(&found, &most_backed(&shuffled));
            let Some(found) = found else { return Ok(()) };
            let total: u64 = all.iter().map(|one| one.stake).sum();
            let held: u64 = found.holders.iter().map(|one| one.stake).sum();
            prop_assert_eq!((found.revealed, found.stake), (total, held));
            if found.is_majority() {
                let rest: Vec<_> = all
                    .into_iter()
                    .filter(|c| (c.model_hash, c.version) != (found.model_hash, found.version))
                    .collect();
                let rest = most_backed(&rest).map_or(0, |rest| rest.stake);
                prop_assert!(rest < found.stake);
            }
        }
    }
}
