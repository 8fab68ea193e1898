//! Copies, copies with noise, copies of copies, and honest miners beside them.

use proptest::prelude::*;

use super::*;
use crate::paired::tests::Chance;

fn key(n: u8) -> Hotkey {
    Hotkey::from_public_key([n; 32])
}

const COMBINED: CombinedSeed = CombinedSeed([3; 32]);

fn sketch(seed: u64) -> Sketch {
    let mut chance = Chance::new(seed);
    Sketch::new(std::array::from_fn(|_| chance.normal() as f32)).unwrap()
}

/// `one` with `share` of its own length of noise.
fn noisy(one: &Sketch, share: f64, seed: u64) -> Sketch {
    let mut chance = Chance::new(seed ^ 0xff);
    let bytes = one.to_bytes();
    let (words, _) = bytes.as_chunks::<4>();
    let sums: Vec<f32> =
        words.iter().map(|w| f32::from_le_bytes(*w) + (share * chance.normal()) as f32).collect();
    Sketch::new(sums.try_into().unwrap()).unwrap()
}

fn one(raw: f64, hash: u8, sketch: Option<&Sketch>, at: u64) -> Compared<'_> {
    let model_hash = Some(ModelHash([hash; 24]));
    Compared { raw, model_hash, sketch, committed_at: Some(BlockNumber(at)) }
}

fn groups(compared: &[(u8, Compared<'_>)], keep: Keep) -> Vec<DuplicateGroup> {
    let compared = compared.iter().map(|(n, one)| (key(*n), *one)).collect();
    duplicates(&compared, &DuplicatePolicy { keep, ..DuplicatePolicy::default() }, &COMBINED)
}

fn keys(n: &[u8]) -> BTreeSet<Hotkey> {
    n.iter().map(|n| key(*n)).collect()
}

#[test]
fn a_copy_with_a_little_noise_is_near_and_a_bit_equal_score_is_equal() {
    let (a, other) = (sketch(1), sketch(2));
    let copy = noisy(&a, 0.02, 1);
    let found = groups(
        &[
            (1, one(1.0, 1, Some(&a), 5)),
            (2, one(0.9, 2, Some(&copy), 5)),
            (3, one(0.8, 3, Some(&other), 5)),
            (4, one(0.7, 4, None, 5)),
            (5, one(0.7, 5, Some(&other), 5)),
        ],
        Keep::ZeroAll,
    );
    assert_eq!(found.len(), 2);
    let near = found.iter().find(|group| group.members == keys(&[1, 2])).unwrap();
    assert_eq!((near.equal.len(), &near.kept), (0, &None));
    // 3 is near 5, which is equal to 4: one group, in which 3 is nearly equal only.
    let chain = found.iter().find(|group| group.members == keys(&[3, 4, 5])).unwrap();
    assert_eq!(chain.equal, keys(&[4, 5]));
}

#[test]
fn equal_hashes_are_equal_whatever_was_measured() {
    let found = groups(&[(1, one(1.0, 7, None, 5)), (2, one(0.9, 7, None, 6))], Keep::ZeroAll);
    assert_eq!(found[0].equal, keys(&[1, 2]));
}

#[test]
fn who_changed_nothing_or_improved_nothing_groups_with_nobody() {
    let (a, empty) = (sketch(1), Sketch::new([0.0; Sketch::LENGTH]).unwrap());
    let idle = [(1, one(0.0, 1, Some(&empty), 1)), (2, one(0.0, 1, Some(&empty), 1))];
    assert_eq!(groups(&idle, Keep::ZeroAll), []);
    // A spoilt copy of an honest miner's, parallel to it and worthless.
    let spoilt = [(1, one(1.0, 1, Some(&a), 5)), (2, one(0.0, 2, Some(&a), 1))];
    assert_eq!(groups(&spoilt, Keep::ZeroAll), []);
    let unmeasured = [(1, one(1.0, 1, Some(&empty), 5)), (2, one(0.9, 2, Some(&empty), 5))];
    assert_eq!(groups(&unmeasured, Keep::ZeroAll), []);
}

#[test]
fn the_earliest_commitment_on_chain_is_kept_and_a_tie_is_nobodys_choice() {
    let a = sketch(1);
    let three = |blocks: [u64; 3]| {
        let all = [1, 2, 3].map(|n: u8| {
            (n, one(1.0 - f64::from(n) * 0.01, n, Some(&a), blocks[usize::from(n) - 1]))
        });
        groups(&all, Keep::Earliest)[0].kept.clone().unwrap()
    };
    assert_eq!(three([9, 4, 6]), key(2));
    // Neither the score nor the order of hotkeys decides a tie.
    let hash = |n: u8| h256(&["duplicate", key(n).as_str(), &COMBINED.to_hex()]);
    let smallest = [1, 2, 3].into_iter().min_by_key(|n| hash(*n)).unwrap();
    assert_eq!(three([4, 4, 4]), key(smallest));
    // One whose block is not known is never first.
    let unknown = Compared { committed_at: None, ..one(0.9, 2, Some(&a), 0) };
    let found = groups(&[(1, one(1.0, 1, Some(&a), 9)), (2, unknown)], Keep::Earliest);
    assert_eq!(found[0].kept, Some(key(1)));
}

#[test]
fn unrelated_changes_are_never_near_and_those_of_a_similar_mind_are_not_either() {
    for seed in 0..200 {
        let a = sketch(seed);
        assert!(a.cosine(&sketch(seed + 1000)).unwrap().abs() < 0.3);
        let near = |share| {
            let other = noisy(&a, share, seed);
            let limit = DuplicatePolicy::default().similarity;
            is_near(&one(1.0, 1, Some(&a), 1), &one(0.9, 2, Some(&other), 1), limit)
        };
        // A seventh of its length of noise: a cosine of about 0.99, as honest miners were seen to have.
        assert!(!near(0.14) && near(0.02));
    }
}

proptest! {
    #[test]
    fn groups_are_disjoint_of_two_or_more_and_closed_whatever_the_order(
        made in prop::collection::vec((0u8..4, 0u64..4, 1u64..4), 0..12)
    ) {
        let sketches: Vec<Sketch> = (0..4).map(sketch).collect();
        let compared: BTreeMap<Hotkey, Compared<'_>> = made
            .iter()
            .zip(1u8..)
            .map(|((raw, of, at), n)| {
                (key(n), one(f64::from(*raw) + 0.01 * f64::from(n / 2), n, sketches.get(*of as usize), *at))
            })
            .collect();
        for keep in [Keep::ZeroAll, Keep::Earliest] {
            let policy = DuplicatePolicy { keep, ..DuplicatePolicy::default() };
            let found = duplicates(&compared, &policy, &COMBINED);
            let mut seen = BTreeSet::new();
            for group in &found {
                prop_assert!(group.members.len() > 1 && group.equal.is_subset(&group.members));
                prop_assert!(group.members.iter().all(|member| seen.insert(member.clone())));
                prop_assert_eq!(group.kept.is_some(), keep == Keep::Earliest);
                prop_assert!(group.kept.iter().all(|kept| group.members.contains(kept)));
            }
            let group_of = |hotkey| found.iter().position(|group| group.members.contains(hotkey));
            for (a, one) in &compared {
                for (b, other) in &compared {
                    let scored = one.raw > 0.0 && other.raw > 0.0;
                    if a != b && scored && (is_equal(one, other) || is_near(one, other, policy.similarity)) {
                        prop_assert_eq!(group_of(a), group_of(b));
                        prop_assert!(group_of(a).is_some());
                    }
                }
            }
        }
    }
}
