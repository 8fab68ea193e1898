//! Reduction by honest and faulty members.

use checkpoint::{
    Codec, Encoded, Exclusion, Member, ReduceError, Reduced, Reduction, Rule, Values,
};
use domain::Hotkey;
use proptest::prelude::*;

use crate::setup::hotkey;

const TRIM: Rule = Rule::TrimmedMean { per_side: 0.25 };
const CLIP: Rule = Rule::CenteredClipping { radius: 10.0, iterations: 3 };
const RULES: [Rule; 4] = [Rule::Mean, TRIM, Rule::CoordinateMedian, CLIP];

fn keys(count: usize) -> Vec<Hotkey> {
    let mut keys: Vec<_> = (1..=count as u8).map(hotkey).collect();
    keys.sort();
    keys
}

fn reduction(rule: Rule, len: usize) -> Reduction {
    Reduction { rule, max_norm: None, vector_len: len }
}

fn members<'a>(keys: &'a [Hotkey], weights: &[f64], rows: &'a [Vec<f32>]) -> Vec<Member<'a>> {
    keys.iter()
        .zip(weights)
        .zip(rows)
        .map(|((hotkey, weight), values)| Member { hotkey, weight: *weight, values })
        .collect()
}

fn reduce(rule: Rule, weights: &[f64], rows: &[Vec<f32>]) -> (Vec<f32>, Reduced) {
    let keys = keys(rows.len());
    reduction(rule, rows[0].len()).reduce_whole(&members(&keys, weights, rows)).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Finite float32 of any size, or of an ordinary one.
fn value() -> impl Strategy<Value = f32> {
    let any = any::<u32>().prop_map(|bits| f32::from_bits(bits & 0xbfff_ffff));
    prop_oneof![any, -1.0f32..1.0, Just(0.0), Just(f32::MAX), Just(f32::MIN)]
}

fn rows(members: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Vec<f32>>> {
    (members, 1_usize..40).prop_flat_map(|(members, len)| {
        prop::collection::vec(prop::collection::vec(value(), len), members)
    })
}

proptest! {
    #[test]
    fn up_to_f_faulty_members_leave_every_element_between_honest_ones(
        honest in rows(3..9),
        faults in 0_usize..4,
        weighted: bool,
        lie in prop::collection::vec(value(), 40),
        turn in 0_usize..9,
    ) {
        // A quarter of all at most, as many as the trim takes; less than half for the median.
        let faults = faults.min(honest.len() / 3);
        let count = honest.len() + faults;
        let mut rows = honest.clone();
        for nth in 0..faults {
            let sign = if nth % 2 == 0 { 1.0 } else { -1.0 };
            rows.push(honest[0].iter().zip(&lie).map(|(_, x)| sign * x).collect());
        }
        rows.rotate_left(turn % count);
        let mut weights = vec![1.0; count];
        if weighted {
            // The faulty weigh what they weighed, the honest a little more, so that ranks alone do not do.
            let faulty = |row: &Vec<f32>| !honest.contains(row);
            for (weight, row) in weights.iter_mut().zip(&rows) {
                if !faulty(row) {
                    *weight = 1.5;
                }
            }
        }
        for rule in [TRIM, Rule::CoordinateMedian] {
            let (out, _) = reduce(rule, &weights, &rows);
            for (at, x) in out.iter().enumerate() {
                let all = honest.iter().map(|row| row[at]);
                let low = all.clone().fold(f32::INFINITY, f32::min);
                let high = all.fold(f32::NEG_INFINITY, f32::max);
                prop_assert!(low <= *x && *x <= high, "{rule:?} {at}: {x} not in {low}..{high}");
            }
        }
    }

    #[test]
    fn the_order_of_the_members_changes_nothing(rows in rows(1..8), seed: u64, stakes: bool) {
        let keys = keys(rows.len());
        let weight = |n: usize| if stakes { 1.0 + (n as f64) / 3.0 } else { 1.0 };
        let weights: Vec<f64> = (0..rows.len()).map(weight).collect();
        let straight = members(&keys, &weights, &rows);
        let mut turned = straight.clone();
        turned.rotate_left(seed as usize % rows.len());
        turned.reverse();
        for rule in RULES {
            let reduction = Reduction { max_norm: Some(3.0), ..reduction(rule, rows[0].len()) };
            let (one, told) = reduction.reduce_whole(&straight).unwrap();
            let (two, again) = reduction.reduce_whole(&turned).unwrap();
            prop_assert_eq!(bits(&one), bits(&two));
            prop_assert_eq!(told, again);
        }
    }

    #[test]
    fn the_mean_is_the_naive_mean_bit_for_bit(rows in rows(1..8)) {
        let naive: Vec<u32> = (0..rows[0].len())
            .map(|at| {
                let sum = rows.iter().fold(0.0, |sum, row| sum + f64::from(row[at]));
                ((sum / rows.len() as f64) as f32).to_bits()
            })
            .collect();
        let (out, told) = reduce(Rule::Mean, &vec![1.0; rows.len()], &rows);
        prop_assert_eq!(bits(&out), naive.clone());
        // Equal stakes are no stakes.
        let (out, _) = reduce(Rule::Mean, &vec![2.0; rows.len()], &rows);
        prop_assert_eq!(bits(&out), naive);
        prop_assert_eq!(told.influence.iter().map(|i| i.weight).sum::<f64>().round(), 1.0);
    }

    #[test]
    fn trimmed_mean_and_median_are_those_of_sorted_values(rows in rows(4..14)) {
        let weights = vec![1.0; rows.len()];
        let (trimmed, _) = reduce(TRIM, &weights, &rows);
        let (median, _) = reduce(Rule::CoordinateMedian, &weights, &rows);
        // Whole numbers of members are cut by the textbook.
        let count = rows.len() / 4 * 4;
        let (whole, told) = reduce(TRIM, &weights[..count], &rows[..count]);
        for at in 0..rows[0].len() {
            let sorted = |rows: &[Vec<f32>]| {
                let mut sorted: Vec<f32> = rows.iter().map(|row| row[at]).collect();
                sorted.sort_by(f32::total_cmp);
                sorted
            };
            let all = sorted(&rows);
            let (low, high) = (all[(all.len() - 1) / 2], all[all.len() / 2]);
            let middle = ((f64::from(low) + f64::from(high)) / 2.0) as f32;
            prop_assert_eq!(median[at], middle);
            prop_assert!(all[0] <= trimmed[at] && trimmed[at] <= all[all.len() - 1]);
            let kept = &sorted(&rows[..count])[count / 4..count - count / 4];
            let sum = kept.iter().fold(0.0, |sum, x| sum + f64::from(*x));
            prop_assert_eq!(whole[at], (sum / kept.len() as f64) as f32);
        }
        prop_assert!(told.influence.iter().all(|i| (0.0..=1.0).contains(&i.trimmed)));
    }

    #[test]
    fn unequal_weights_take_the_same_way_as_equal_ones(rows in rows(2..9)) {
        // One that differs in its last bit sends all down the path of unequal weights.
        let mut weights = vec![1.0; rows.len()];
        let equal = [TRIM, Rule::CoordinateMedian].map(|rule| reduce(rule, &weights, &rows).0);
        weights[0] = f64::from_bits(1f64.to_bits() + 1);
        let unequal = [TRIM, Rule::CoordinateMedian].map(|rule| reduce(rule, &weights, &rows).0);
        for (a, b) in equal.iter().flatten().zip(unequal.iter().flatten()) {
            let close = (f64::from(*a) - f64::from(*b)).abs() <= 1e-6 * f64::from(f32::MAX);
            prop_assert!(close && (a.abs() > 1e30 || (a - b).abs() <= 1e24), "{a} {b}");
        }
    }
}

/// Members of several chunks of the vector and a ragged end.
fn long(members: usize, len: usize) -> Vec<Vec<f32>> {
    let mut state = 7u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..members).map(|_| (0..len).map(|_| next()).collect()).collect()
}

#[test]
fn the_bits_are_the_same_with_any_number_of_threads() {
    let rows = long(5, 300_001);
    let keys = keys(5);
    let weights = [1.0, 2.0, 1.0, 0.5, 3.0];
    for (rule, weights) in RULES.into_iter().flat_map(|rule| [(rule, [1.0; 5]), (rule, weights)]) {
        let reduction = Reduction { max_norm: Some(100.0), ..reduction(rule, 900_000) };
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| reduction.reduce_whole(&members(&keys, &weights, &rows)).unwrap())
        };
        let (one, told) = run(1);
        for threads in [2, 3, 8] {
            let (other, again) = run(threads);
            assert!(bits(&one) == bits(&other) && told == again, "{rule:?} {threads}");
        }
    }
}

#[test]
fn a_member_with_one_value_that_is_not_finite_is_left_out_whole() {
    let mut rows = long(4, 40_000);
    let weights = [1.0; 4];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        rows[1][39_999] = bad;
        rows[1][20_000] = bad;
        let without: Vec<_> = [0, 2, 3].map(|n| rows[n].clone()).to_vec();
        let keys = keys(4);
        let three: Vec<Hotkey> = [0, 2, 3].map(|n| keys[n].clone()).to_vec();
        for rule in RULES {
            let reduction = reduction(rule, 40_000);
            let (out, told) = reduction.reduce_whole(&members(&keys, &weights, &rows)).unwrap();
            let others = members(&three, &weights, &without);
            assert_eq!(bits(&out), bits(&reduction.reduce_whole(&others).unwrap().0), "{rule:?}");
            let [excluded] = told.excluded.as_slice() else { panic!("{told:?}") };
            assert_eq!(excluded.hotkey, keys[1]);
            assert_eq!(excluded.why, Exclusion::NonFinite { index: 20_000 });
            assert_eq!(excluded.why.reason(), "non_finite");
        }
    }
}

#[test]
fn one_member_is_its_own_result_and_two_meet_in_the_middle() {
    let one = vec![vec![1.0f32, -2.5, f32::MAX, 1e-40]];
    let two = vec![vec![1.0f32, -3.0], vec![2.0f32, 3.0]];
    for rule in [Rule::Mean, TRIM, Rule::CoordinateMedian, Rule::TrimmedMean { per_side: 0.49 }] {
        assert_eq!(bits(&reduce(rule, &[1.0], &one).0), bits(&one[0]), "{rule:?}");
        assert_eq!(reduce(rule, &[3.0, 3.0], &two).0, [1.5, 0.0], "{rule:?}");
    }
    assert_eq!(reduce(CLIP, &[1.0], &one).0, one[0]);
    assert_eq!(reduce(CLIP, &[1.0, 1.0], &two).0, [1.5, 0.0]);
}

#[test]
fn centered_clipping_follows_its_formula_and_a_liar_moves_it_by_the_radius_at_most() {
    let rows = vec![vec![0.0f32, 0.0], vec![0.0, 0.0], vec![0.0, 0.0], vec![300.0, 400.0]];
    let rule = Rule::CenteredClipping { radius: 5.0, iterations: 1 };
    let (out, told) = reduce(rule, &[1.0; 4], &rows);
    // From the median (0, 0): a quarter of (300, 400) scaled to length 5.
    assert_eq!(out, [0.75, 1.0]);
    let scales: Vec<_> = told.influence.iter().map(|i| i.clipping.unwrap()).collect();
    assert_eq!(scales, [1.0, 1.0, 1.0, 0.01]);
    assert_eq!(told.influence[3].norm, 500.0);
    assert_eq!((told.influence[3].cosine, told.norm), (1.0, 1.25));
    // A radius beyond all is the mean.
    let rule = Rule::CenteredClipping { radius: 1e9, iterations: 1 };
    assert_eq!(reduce(rule, &[1.0; 4], &rows).0, [75.0, 100.0]);
}

#[test]
fn a_contribution_beyond_the_norm_is_scaled_to_it_by_the_slices_share() {
    let keys = keys(2);
    let rows = vec![vec![3.0f32, 4.0, 0.0, 0.0], vec![0.0, 0.0, 0.3, 0.4]];
    let members = members(&keys, &[1.0, 1.0], &rows);
    // A quarter of the vector has half of the bound.
    let reduction = Reduction { rule: Rule::Mean, max_norm: Some(2.0), vector_len: 16 };
    let (out, told) = reduction.reduce_whole(&members).unwrap();
    let expected = [0.3f32, 0.4, 0.15, 0.2];
    assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-7), "{out:?}");
    let norms: Vec<_> = told.influence.iter().map(|i| (i.norm, i.bounded_norm)).collect();
    assert_eq!(norms[0], (5.0, 1.0));
    assert_eq!(norms[1].0, norms[1].1, "what is within the bound stays");
}

#[test]
fn who_is_always_outermost_is_seen_to_be_cut() {
    let mut rows = long(4, 5000);
    rows[2].iter_mut().for_each(|x| *x += 10.0);
    let (_, told) = reduce(TRIM, &[1.0; 4], &rows);
    assert_eq!(told.influence[2].trimmed, 1.0);
    let others: f64 = [0, 1, 3].iter().map(|n| told.influence[*n].trimmed).sum();
    assert!((others - 1.0).abs() < 0.01, "one of three is lowest: {others}");
    assert!(told.influence.iter().all(|i| i.cosine.abs() <= 1.0));
}

#[test]
fn encoded_slices_are_reduced_as_what_they_decode_to() {
    let rows = long(3, 70_000);
    let (keys, codec) = (keys(3), Codec::Int8);
    let encode = |row: &Vec<f32>| {
        let mut bytes = vec![0; codec.encoded_len(row.len())];
        codec.encode(row, &mut bytes).unwrap();
        bytes
    };
    let mut bytes: Vec<Vec<u8>> = rows.iter().map(encode).collect();
    let decode = |bytes: &Vec<u8>| {
        let mut row = vec![0.0; 70_000];
        codec.decode(bytes, &mut row).unwrap();
        row
    };
    let decoded: Vec<_> = bytes.iter().map(decode).collect();
    let reduction = reduction(TRIM, 70_000);
    let run = |bytes: &[Vec<u8>]| {
        let encoded: Vec<_> =
            bytes.iter().map(|b| Encoded::new(codec, 70_000, b.as_slice()).unwrap()).collect();
        let of = |(hotkey, values)| Member { hotkey, weight: 1.0, values: values as &dyn Values };
        reduction.reduce_whole(&keys.iter().zip(&encoded).map(of).collect::<Vec<_>>()).unwrap()
    };
    let expected = reduction.reduce_whole(&members(&keys, &[1.0; 3], &decoded)).unwrap();
    assert_eq!(run(&bytes), expected);
    bytes[0][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let (_, told) = run(&bytes);
    assert_eq!(told.excluded[0].why.reason(), "unreadable");
    assert_eq!(told.influence.len(), 2);
}

#[test]
fn a_reduction_that_is_asked_for_wrongly_says_so() {
    let keys = keys(2);
    let rows = vec![vec![1.0f32, 2.0], vec![1.0]];
    let mean = reduction(Rule::Mean, 2);
    let of = |weights: [f64; 2], rows: &[Vec<f32>]| {
        mean.reduce_whole(&members(&keys, &weights, rows)).unwrap_err()
    };
    let same = vec![rows[0].clone(); 2];
    assert!(matches!(of([1.0, 1.0], &rows), ReduceError::Length { expected: 2, found: 1, .. }));
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(of([1.0, bad], &same), ReduceError::Weight { .. }));
    }
    assert!(matches!(of([0.0, 0.0], &same), ReduceError::NoMembers { .. }));
    let nan = vec![vec![f32::NAN; 2]; 2];
    let ReduceError::NoMembers { excluded } = of([1.0, 1.0], &nan) else { panic!() };
    assert_eq!(excluded.len(), 2);
    let one = Member { hotkey: &keys[0], weight: 1.0, values: &rows[0] };
    assert_eq!(mean.reduce_whole(&[one, one]), Err(ReduceError::Twice(keys[0].clone())));
    let slice = Reduction { vector_len: 1, ..mean }.reduce_whole(&[one]);
    assert_eq!(slice, Err(ReduceError::Slice { slice: 2, vector: 1 }));
    for rule in [
        Rule::TrimmedMean { per_side: 0.5 },
        Rule::TrimmedMean { per_side: -0.1 },
        Rule::TrimmedMean { per_side: f64::NAN },
        Rule::CenteredClipping { radius: 0.0, iterations: 1 },
        Rule::CenteredClipping { radius: 1.0, iterations: 0 },
    ] {
        let error = Reduction { rule, ..mean }.reduce_whole(&[one]).unwrap_err();
        assert!(matches!(error, ReduceError::Parameter { .. }), "{rule:?}");
    }
}
