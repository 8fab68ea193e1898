use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

type Validators = Vec<(String, u64)>;

fn inputs() -> impl Strategy<Value = (Validators, Vec<String>, Option<usize>)> {
    (
        prop::collection::btree_map("[a-z]{1,6}", prop_oneof![Just(0), any::<u64>()], 1..8),
        prop::collection::btree_set("[A-Z]{1,6}", 0..40),
        prop::option::of(0usize..10),
    )
        .prop_map(|(validators, miners, cap)| {
            (validators.into_iter().collect(), miners.into_iter().collect(), cap)
        })
}

#[test]
fn parts_are_kept_apart() {
    assert_ne!(h256(&["ab", "c"]), h256(&["a", "bc"]));
}

#[test]
fn without_a_validator_nobody_is_assigned() {
    assert!(assign::<String>(&[], &["miner".to_owned()], None).is_empty());
    assert_eq!(
        combined_seed::<String>(&[]).to_hex(),
        "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9"
    );
}

#[test]
fn the_evaluation_seed_is_the_hash_of_the_combined_seeds_text_and_the_blocks_bytes() {
    let combined = CombinedSeed([0xab; 32]);
    let mut bytes = "ab".repeat(32).into_bytes();
    bytes.extend([7; 32]);
    let expected: [u8; 32] = Sha256::digest(bytes).into();
    assert_eq!(evaluation_seed(&combined, &BlockHash([7; 32])), Seed(expected));
}

#[test]
fn incentive_ranks_before_the_hotkey_does() {
    let miners = [("b", 5u16), ("c", 9), ("a", 5), ("d", 0)];
    assert_eq!(rank_by_incentive(&miners), ["c", "a", "b", "d"]);
    assert_eq!(foreground_cut(&miners, 1, 3), ["c", "a", "b"]);
    assert_eq!(foreground_cut(&miners, usize::MAX, 3).len(), 4);
}

proptest! {
    #[test]
    fn each_miner_is_assigned_exactly_once((validators, miners, cap) in inputs()) {
        let assignment = assign(&validators, &miners, cap);
        let assigned: Vec<&String> = assignment.values().flatten().collect();
        let unique: BTreeSet<&String> = assigned.iter().copied().collect();
        prop_assert_eq!(assigned.len(), miners.len());
        prop_assert_eq!(unique, miners.iter().collect::<BTreeSet<_>>());
        prop_assert_eq!(assignment.len(), validators.len());
    }

    #[test]
    fn without_a_cap_the_load_differs_by_at_most_one((validators, miners, _) in inputs()) {
        let loads: Vec<usize> = assign(&validators, &miners, None).values().map(Vec::len).collect();
        let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
        prop_assert!(most - least <= 1);
    }

    #[test]
    fn the_order_in_which_miners_are_listed_does_not_matter((validators, miners, cap) in inputs()) {
        let reversed: Vec<String> = miners.iter().rev().cloned().collect();
        prop_assert_eq!(assign(&validators, &miners, cap), assign(&validators, &reversed, cap));
    }

    #[test]
    fn the_combined_seed_does_not_depend_on_the_order((validators, _, _) in inputs()) {
        let reversed: Vec<(String, u64)> = validators.iter().rev().cloned().collect();
        prop_assert_eq!(combined_seed(&validators), combined_seed(&reversed));
    }
}
