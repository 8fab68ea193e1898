use proptest::prelude::*;

use super::*;

fn validator(hotkey: &str, weights: &[(u16, f64)]) -> CohortValidator<String> {
    let weights = weights.iter().map(|(uid, share)| (Uid(*uid), *share)).collect();
    CohortValidator { hotkey: hotkey.to_owned(), seed: 0, weights }
}

fn miners(uids: impl IntoIterator<Item = u16>) -> BTreeMap<Uid, String> {
    uids.into_iter().map(|uid| (Uid(uid), format!("miner{uid}"))).collect()
}

fn uids(uids: &[u16]) -> Vec<Uid> {
    uids.iter().copied().map(Uid).collect()
}

#[test]
fn a_miner_needs_more_than_three_percent_of_one_validator_for_group_a() {
    let me = "v".to_owned();
    let given = [validator("v", &[(1, 0.5), (2, 0.03), (3, 0.04)])];
    let found = cohorts(&given, &miners(1..6), &me, &CohortConfig::default());
    assert_eq!(found.group_a, uids(&[1, 3]));
    assert_eq!(found.group_b, uids(&[2]));
}

#[test]
fn consensus_is_counted_in_validators() {
    let me = "v".to_owned();
    let given = [validator("v", &[(1, 0.5), (2, 0.4)]), validator("w", &[(2, 0.1)])];
    let config = CohortConfig { group_a_min_consensus: 2, ..CohortConfig::default() };
    let found = cohorts(&given, &miners(1..4), &me, &config);
    assert_eq!((found.group_a, found.group_b), (uids(&[2]), uids(&[1])));
}

#[test]
fn equal_totals_rank_by_count_and_then_by_uid() {
    let me = "v".to_owned();
    let given = [validator("v", &[(4, 0.5), (3, 0.25)]), validator("w", &[(3, 0.25), (2, 0.5)])];
    let found = cohorts(&given, &miners(1..6), &me, &CohortConfig::default());
    assert_eq!(found.group_a, uids(&[3, 2, 4]));
}

#[test]
fn weights_for_validators_are_not_counted() {
    let me = "v".to_owned();
    let given = [validator("v", &[(9, 0.9), (1, 0.1)])];
    let found = cohorts(&given, &miners(1..3), &me, &CohortConfig::default());
    assert_eq!(found.group_a, uids(&[1]));
}

#[test]
fn group_c_is_never_larger_than_its_cap() {
    let me = "v".to_owned();
    let given = [validator("v", &[])];
    let config = CohortConfig { validation_group_c_size: 2, ..CohortConfig::default() };
    let found = cohorts(&given, &miners(0..10), &me, &config);
    assert_eq!(found.group_c.len(), 2);
}

#[test]
fn who_is_no_validator_of_the_round_has_no_share() {
    let given = [validator("v", &[(1, 0.9)])];
    let found = cohorts(&given, &miners(1..9), &"x".to_owned(), &CohortConfig::default());
    assert_eq!(found.group_a, uids(&[1]));
    assert!(found.foreground.is_empty() && found.group_c.is_empty());
}

#[test]
fn the_background_is_the_rest_of_the_groups_and_then_whoever_waited_longest() {
    let found = Cohorts {
        group_a: uids(&[1, 2]),
        group_b: uids(&[3]),
        group_c: uids(&[5, 4]),
        foreground: uids(&[2]),
    };
    let waited: BTreeMap<Uid, Option<u64>> = [
        (1, Some(9)),
        (2, None),
        (4, Some(1)),
        (5, Some(9)),
        (6, Some(7)),
        (7, Some(3)),
        (8, None),
    ]
    .map(|(uid, last)| (Uid(uid), last))
    .into();
    // 3 has no checkpoint, 2 is in the foreground, 8 was never evaluated.
    assert_eq!(background(&found, &waited), uids(&[1, 5, 4, 8, 7, 6]));
}

proptest! {
    #[test]
    fn the_groups_do_not_overlap_and_keep_their_sizes(
        rows in prop::collection::vec(prop::collection::vec((0u16..30, 0.0..1.0), 0..10), 1..6),
        c_size in 0usize..8,
        ab_total in 0usize..14,
    ) {
        let given: Vec<CohortValidator<String>> = rows
            .iter()
            .enumerate()
            .map(|(v, row)| validator(&format!("v{v}"), row))
            .collect();
        let config = CohortConfig {
            validation_group_c_size: c_size,
            validation_group_ab_total: ab_total,
            ..CohortConfig::default()
        };
        let mut in_foreground = 0;
        for v in &given {
            let found = cohorts(&given, &miners(0..30), &v.hotkey, &config);
            let all = [&found.group_a[..], &found.group_b, &found.group_c].concat();
            let unique: BTreeSet<Uid> = all.iter().copied().collect();
            prop_assert_eq!(unique.len(), all.len());
            prop_assert!(found.group_a.len() + found.group_b.len() <= ab_total);
            prop_assert!(found.group_c.len() <= c_size);
            let ab = [&found.group_a[..], &found.group_b].concat();
            prop_assert!(found.foreground.iter().all(|uid| ab.contains(uid)));
            in_foreground += found.foreground.len();
            if v.hotkey == "v0" {
                let last = miners(0..30).into_keys().map(|uid| (uid, None::<u64>)).collect();
                let order = [found.foreground.clone(), background(&found, &last)].concat();
                let once: BTreeSet<Uid> = order.iter().copied().collect();
                prop_assert_eq!((order.len(), once.len()), (30, 30));
            }
        }
        let found = cohorts(&given, &miners(0..30), &given[0].hotkey, &config);
        prop_assert_eq!(in_foreground, found.group_a.len() + found.group_b.len());
    }
}
