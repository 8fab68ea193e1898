use checkpoint::{CHUNK, Codec};
use merge::{Data, Digest, Slices};
use proptest::prelude::*;

use super::*;
use crate::{
    chunks::{Chunks, Filling, Writing},
    fixture::{bits, encoded, hotkey, noise, through, write},
    shelf::Shelf,
};

fn config(rule: config::Rule) -> config::Reduction {
    config::Reduction {
        rule,
        per_side: 0.25,
        radius: Some(3.0),
        iterations: 3,
        max_norm: None,
        weigh_by_stake: false,
    }
}

const RULES: [config::Rule; 4] = [
    config::Rule::Mean,
    config::Rule::TrimmedMean,
    config::Rule::CoordinateMedian,
    config::Rule::CenteredClipping,
];

fn reducer(config: &config::Reduction, cut: Cut) -> Reducer {
    let stakes = (1..=9).map(|n| (hotkey(n), f64::from(n))).collect();
    Reducer::new(config, cut, stakes)
}

/// One chunk each, by hotkeys from 1.
fn parts(codec: Codec, rows: &[Vec<f32>]) -> Vec<(Hotkey, Bytes)> {
    let part = |(n, row): (u8, &Vec<f32>)| {
        let cut = Cut { elements: row.len(), chunk: CHUNK, codec };
        (hotkey(n), Bytes::from(encoded(cut, row).remove(0)))
    };
    (1..).zip(rows).map(part).collect()
}

fn decode(codec: Codec, bytes: &[u8], len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    codec.decode(bytes, &mut values).unwrap();
    values
}

/// The second chunk of a vector that has `len` elements in it.
fn cut(codec: Codec, len: usize) -> Cut {
    Cut { elements: CHUNK + len, chunk: CHUNK, codec }
}

/// Reduces a whole merge in `parts` slices, each by way of files; the digests of all result's chunks.
fn merged(
    reducer: &Reducer,
    shelf: &Shelf,
    givers: &[(Hotkey, Chunks)],
    parts: u16,
) -> Vec<Digest> {
    let slices = Slices { chunks: reducer.cut().chunks(), parts };
    let piece = |(giver, own): &(Hotkey, Chunks), slice: u16| {
        let data = Data::Piece { giver: giver.clone(), slice };
        let (range, list) = (slices.range(slice), own.list().clone());
        let committed = Digest::of_chunks(&list);
        let path = shelf.path(&data);
        let mut filling =
            Filling::begin(path, own.cut(), range, own.range(), list, committed).unwrap();
        while let Some(chunk) = filling.next() {
            filling.push(&own.read(chunk).unwrap()).unwrap();
        }
        (giver.clone(), filling.finish().unwrap())
    };
    let mut list = Vec::new();
    for slice in 0..parts {
        let pieces: Vec<_> = givers.iter().map(|giver| piece(giver, slice)).collect();
        let mut writing =
            Writing::create(shelf.file("reduced"), reducer.result_cut(), slices.range(slice))
                .unwrap();
        for chunk in slices.range(slice) {
            let read =
                |(giver, piece): &(Hotkey, Chunks)| (giver.clone(), piece.checked(chunk).unwrap());
            let parts: Vec<_> = pieces.iter().map(read).collect();
            writing.push(&reducer.chunk(chunk, &parts).bytes).unwrap();
        }
        list.extend_from_slice(writing.finish().unwrap().list());
    }
    list
}

#[test]
fn the_result_has_the_same_bits_however_the_vector_is_sliced() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(folder.path().join("round")).unwrap();
    for (rule, codec) in
        RULES.into_iter().zip([Codec::Int8, Codec::Float32, Codec::Bfloat16, Codec::Int8])
    {
        let cut = Cut { elements: 3 * CHUNK + 100, chunk: CHUNK, codec };
        let give = |n: u8| {
            let values = noise(n.into(), cut.elements);
            (hotkey(n), write(&shelf.file("own"), cut, 0..cut.chunks(), &values))
        };
        let givers: Vec<_> = (1..=3).map(give).collect();
        let config = config::Reduction { max_norm: Some(200.0), ..config(rule) };
        let reducer = reducer(&config, cut);
        let whole = merged(&reducer, &shelf, &givers, 1);
        assert_eq!(whole.len(), 4);
        for parts in [2, 3, 7] {
            assert_eq!(merged(&reducer, &shelf, &givers, parts), whole, "{rule:?} in {parts}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_chunk_is_what_the_rule_makes_of_the_decoded_values(
        rule in prop::sample::select(&RULES),
        codec in prop::sample::select(&Codec::ALL),
        members in 1_usize..8,
        len in 1_usize..3000,
        max_norm in prop::option::of(0.1_f64..20.0),
        weigh_by_stake: bool,
        seed: u64,
    ) {
        let rows: Vec<_> = (0..members as u64).map(|n| noise(seed ^ n, len)).collect();
        let config = config::Reduction { max_norm, weigh_by_stake, ..config(rule) };
        let reducer = reducer(&config, cut(codec, len));
        let parts = parts(codec, &rows);
        let made = reducer.chunk(1, &parts);

        let values: Vec<_> = rows.iter().map(|row| through(codec, row)).collect();
        let keys: Vec<_> = (1..).take(members).map(hotkey).collect();
        let of = |n: usize| {
            let weight = if weigh_by_stake { (n + 1) as f64 } else { 1.0 };
            Member { hotkey: &keys[n], weight, values: &values[n] }
        };
        let all: Vec<_> = (0..members).map(of).collect();
        let rule = match rule {
            config::Rule::Mean => Rule::Mean,
            config::Rule::TrimmedMean => Rule::TrimmedMean { per_side: 0.25 },
            config::Rule::CoordinateMedian => Rule::CoordinateMedian,
            config::Rule::CenteredClipping => Rule::CenteredClipping { radius: 3.0, iterations: 3 },
        };
        let reduction = Reduction { rule, max_norm, vector_len: CHUNK + len };
        let (expected, influence) = reduction.reduce_whole(&all).unwrap();
        let result = result_codec(codec);
        prop_assert_eq!(
            bits(&decode(result, &made.bytes, len)),
            bits(&through(result, &expected))
        );
        let report = made.tally.report();
        prop_assert_eq!(report.len(), members);
        for (one, other) in report.iter().zip(&influence.influence) {
            prop_assert_eq!(&one.hotkey, &other.hotkey);
            prop_assert!((one.weight - other.weight).abs() < 1e-9);
            prop_assert!((one.norm - other.norm).abs() <= 1e-9 * other.norm);
            prop_assert!((one.cosine - other.cosine).abs() < 1e-9);
            prop_assert!((one.trimmed - other.trimmed).abs() < 1e-9);
        }

        let mut backwards = parts;
        backwards.reverse();
        prop_assert_eq!(reducer.chunk(1, &backwards).bytes, made.bytes, "whatever their order");
    }

    #[test]
    fn while_few_lie_the_result_is_among_the_values_of_the_others(
        rule in prop::sample::select(&[config::Rule::TrimmedMean, config::Rule::CoordinateMedian][..]),
        codec in prop::sample::select(&Codec::ALL),
        faulty in 0_usize..4,
        more in 0_usize..3,
        len in 1_usize..600,
        seed: u64,
        lie in prop::sample::select(&["far", "bits", "garbage", "short", "nothing"][..]),
    ) {
        // A trimmed mean bears the share that it cuts, a median all below a half.
        let least = if rule == config::Rule::TrimmedMean { 3 * faulty } else { faulty + 1 };
        let honest = least.max(1) + more;
        let rows: Vec<_> = (0..honest as u64).map(|n| noise(seed ^ n, len)).collect();
        let reducer = reducer(&config(rule), cut(codec, len));
        let mut all = parts(codec, &rows);
        for n in 0..faulty {
            let bytes = match lie {
                "far" => encoded(Cut { elements: len, chunk: CHUNK, codec }, &vec![-1e30; len]).remove(0),
                "bits" => noise(seed + n as u64, codec.encoded_len(len)).iter().map(|x| x.to_bits() as u8).collect(),
                "garbage" => vec![0xff; codec.encoded_len(len)],
                "short" => vec![0; codec.encoded_len(len) - 1],
                _ => Vec::new(),
            };
            // Before and after the honest ones.
            let key = if n % 2 == 0 { 200 + n as u8 } else { 100 - n as u8 };
            all.push((hotkey(key), bytes.into()));
        }
        let result = decode(result_codec(codec), &reducer.chunk(1, &all).bytes, len);
        let sent: Vec<_> = rows.iter().map(|row| through(codec, row)).collect();
        for (at, x) in result.iter().enumerate() {
            let values = || sent.iter().map(|row| row[at]);
            let range = [values().fold(f32::MAX, f32::min), values().fold(f32::MIN, f32::max)];
            // Rounding keeps the order: the result is within the range as it would travel itself.
            let range = through(result_codec(codec), &range);
            prop_assert!(range[0] <= *x && *x <= range[1], "{x} at {at} outside of {range:?}");
        }
    }
}

#[test]
fn who_cannot_be_decoded_has_no_part_and_is_named() {
    let len = 1000;
    let rows = [noise(1, len), noise(2, len)];
    for codec in Codec::ALL {
        let reducer = reducer(&config(config::Rule::Mean), cut(codec, len));
        let honest = parts(codec, &rows);
        let mut all = honest.clone();
        all.push((hotkey(7), vec![0; 5].into()));
        all.push((hotkey(8), vec![0xff; codec.encoded_len(len)].into()));
        let (made, alone) = (reducer.chunk(1, &all), reducer.chunk(1, &honest));
        assert_eq!(made.bytes, alone.bytes);
        let report = made.tally.report();
        let excluded = |n: usize| report[n].excluded.keys().next().map(String::as_str);
        let bad = if codec == Codec::Int8 { "bad_scale" } else { "non_finite" };
        let named: Vec<_> = (0..4).map(excluded).collect();
        let mut expected: Vec<_> = all
            .iter()
            .map(|(hotkey, _)| hotkey.clone())
            .zip([None, None, Some("wrong_length"), Some(bad)])
            .collect();
        expected.sort();
        assert_eq!(named, expected.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>());
    }
}

#[test]
fn where_nobody_is_left_the_chunk_is_zeros() {
    for codec in Codec::ALL {
        let reducer = reducer(&config(config::Rule::TrimmedMean), cut(codec, 300));
        let garbage = (hotkey(1), Bytes::from_static(b"x"));
        for parts in [vec![], vec![garbage]] {
            let made = reducer.chunk(1, &parts);
            let zeros = decode(result_codec(codec), &made.bytes, 300);
            assert_eq!(bits(&zeros), vec![0; 300]);
        }
        assert!(reducer.chunk(2, &[]).bytes.is_empty(), "there is no third chunk");
    }
}

#[test]
fn weights_count_where_they_are_asked_for() {
    let cut = cut(Codec::Float32, 1);
    let parts = parts(Codec::Float32, &[vec![1.0], vec![4.0]]);
    let stakes = BTreeMap::from([(hotkey(1), 2.0), (hotkey(2), 1.0), (hotkey(4), f64::NAN)]);
    let value = |weigh_by_stake, parts: &[(Hotkey, Bytes)]| {
        let config = config::Reduction { weigh_by_stake, ..config(config::Rule::Mean) };
        let made = Reducer::new(&config, cut, stakes.clone()).chunk(1, parts);
        (decode(Codec::Float32, &made.bytes, 1)[0], made.tally.report())
    };
    assert_eq!(value(false, &parts).0, 2.5);
    assert_eq!(value(true, &parts).0, 2.0);
    let of = |n: u8| (hotkey(n), parts[1].1.clone());
    let strangers = [parts.clone(), vec![of(3), of(4)]].concat();
    let (with, report) = value(true, &strangers);
    assert_eq!(with, 2.0, "who has nothing at stake has no say");
    let none = report.iter().filter(|one| one.excluded.contains_key("no_weight")).count();
    assert_eq!(none, 2);
}

#[test]
fn a_bound_is_of_the_whole_vector_and_each_chunk_has_its_share() {
    let cut = Cut { elements: 4 * CHUNK, chunk: CHUNK, codec: Codec::Float32 };
    let config = config::Reduction { max_norm: Some(8.0), ..config(config::Rule::Mean) };
    let reducer = reducer(&config, cut);
    let mut tally = Tally::default();
    for chunk in 0..4 {
        let made = reducer.chunk(chunk, &parts(Codec::Float32, &[vec![1.0; CHUNK]]));
        let norm = decode(Codec::Float32, &made.bytes, CHUNK)
            .iter()
            .fold(0.0, |sum, x| sum + f64::from(*x).powi(2))
            .sqrt();
        assert!((norm - 4.0).abs() < 1e-4, "{norm}");
        tally.add(&made.tally);
    }
    let report = tally.report();
    assert_eq!(tally.elements(), cut.elements as u64);
    assert!((report[0].norm - 1024.0).abs() < 1e-6 && (report[0].bounded_norm - 8.0).abs() < 1e-6);
    assert!((report[0].cosine - 1.0).abs() < 1e-9);
}

#[test]
fn influence_over_chunks_is_that_over_the_vector() {
    let (codec, members) = (Codec::Float32, 3);
    let cut = Cut { elements: CHUNK + 5000, chunk: CHUNK, codec };
    let rows: Vec<_> = (0..members as u64).map(|n| noise(n, cut.elements)).collect();
    let reducer = reducer(&config(config::Rule::CoordinateMedian), cut);
    let chunks: Vec<_> = rows.iter().map(|row| encoded(cut, row)).collect();
    let mut tally = Tally::default();
    for chunk in 0..2 {
        let part = |(n, all): (u8, &Vec<Vec<u8>>)| (hotkey(n), all[chunk].clone().into());
        let parts: Vec<_> = (1..).zip(&chunks).map(part).collect();
        tally.add(&reducer.chunk(chunk as u32, &parts).tally);
    }
    let keys: Vec<_> = (1..).take(members).map(hotkey).collect();
    let of = |(hotkey, values)| Member { hotkey, weight: 1.0, values: values as &Vec<f32> };
    let all: Vec<_> = keys.iter().zip(&rows).map(of).collect();
    let reduction =
        Reduction { rule: Rule::CoordinateMedian, max_norm: None, vector_len: cut.elements };
    let (_, whole) = reduction.reduce_whole(&all).unwrap();
    let report = tally.report();
    assert_eq!(report.len(), members);
    for one in report {
        let other = whole.influence.iter().find(|other| other.hotkey == one.hotkey).unwrap();
        assert!((one.norm - other.norm).abs() < 1e-9 * other.norm);
        assert!((one.cosine - other.cosine).abs() < 1e-9);
        assert!((one.trimmed - other.trimmed).abs() < 1e-9 && one.trimmed > 0.0);
    }
}

#[test]
fn whoever_reduces_otherwise_has_another_name() {
    let cut = cut(Codec::Float32, 1);
    let name = |config: config::Reduction| reducer(&config, cut).name();
    let mean = config(config::Rule::Mean);
    let trimmed = config(config::Rule::TrimmedMean);
    let clipping = config(config::Rule::CenteredClipping);
    let bounded =
        config::Reduction { max_norm: Some(10.0), weigh_by_stake: true, ..trimmed.clone() };
    assert_eq!(name(mean.clone()), "mean");
    assert_eq!(name(bounded.clone()), "trimmed_mean 0.25 norm<=10 by_stake");
    assert_eq!(name(clipping.clone()), "centered_clipping 3 x3");
    let long = config::Reduction {
        radius: Some(f64::MIN_POSITIVE),
        max_norm: Some(f64::MAX),
        ..clipping.clone()
    };
    let all = [
        name(mean.clone()),
        name(trimmed.clone()),
        name(config(config::Rule::CoordinateMedian)),
        name(clipping.clone()),
        name(bounded),
        name(config::Reduction { per_side: 0.3, ..trimmed.clone() }),
        name(config::Reduction { per_side: 0.1 + 0.2, ..trimmed }),
        name(config::Reduction { radius: Some(4.0), ..clipping.clone() }),
        name(config::Reduction { iterations: 1, ..clipping }),
        name(config::Reduction { max_norm: Some(1.0), ..mean.clone() }),
        name(config::Reduction { weigh_by_stake: true, ..mean.clone() }),
        name(long.clone()),
        name(config::Reduction { max_norm: Some(f64::MAX.next_down()), ..long }),
    ];
    for (i, one) in all.iter().enumerate() {
        assert!(one.len() <= MAX_TEXT, "{one}");
        assert!(all[i + 1..].iter().all(|other| other != one), "{one}");
    }
    let unused = config::Reduction { per_side: 0.1, radius: None, iterations: 9, ..mean };
    assert_eq!(name(unused), "mean", "what plays no part makes no difference");
}
