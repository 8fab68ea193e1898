use checkpoint::{CHUNK, Codec};

use super::*;
use crate::fixture::{Base, ELEMENTS, bits, decoded, hotkey, noise};

fn cut(codec: Codec) -> Cut {
    Cut { elements: ELEMENTS, chunk: CHUNK, codec }
}

/// Two miners near the base, and what their gradient is.
fn two(base: &Base, seed: u64) -> (Vec<Contribution>, Vec<f32>) {
    let own = noise(1, ELEMENTS);
    let miner = |seed: u64| -> Vec<f32> {
        noise(seed, ELEMENTS).iter().zip(&own).map(|(x, own)| own + x * 1e-2).collect()
    };
    let contributions = vec![
        base.miner(10, 1.0 + seed as f64, &miner(2 * seed + 100)),
        base.miner(11, 2.0 + seed as f64, &miner(2 * seed + 101)),
    ];
    let model = base.open();
    let limits = Limits::default();
    let mean =
        PseudoGradient::new(model.published(), model.layout(), contributions.clone(), limits);
    let mut gradient = vec![0.0; ELEMENTS];
    mean.unwrap().fill(0, &mut gradient).unwrap();
    (contributions, gradient)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The values in a file of what was lost.
fn lost(path: &Path) -> Vec<f32> {
    checkpoint::open(path, Limits::trusted()).unwrap().to_f32("residual").unwrap()
}

#[test]
fn what_is_encoded_exactly_is_the_gradient_bit_for_bit() {
    let base = Base::new();
    let (contributions, gradient) = two(&base, 0);
    let folder = base.folder("own");
    let local = encode(&base.open(), contributions, cut(Codec::Float32), None, &folder).unwrap();
    let chunks = local.chunks.unwrap();
    assert_eq!((chunks.range(), chunks.bytes()), (0..3, 4 * ELEMENTS as u64));
    assert_eq!(bits(&decoded(&chunks)), bits(&gradient));
    assert!(local.residual.is_none() && local.skipped.is_empty());
    assert_eq!(names(&folder), ["gradient"]);
    drop(chunks);
    assert!(names(&folder).is_empty());
}

#[test]
fn over_rounds_what_was_sent_is_the_sum_of_the_gradients_but_for_one_residual() {
    for codec in [Codec::Int8, Codec::Bfloat16] {
        let base = Base::new();
        let model = base.open();
        let mut before: Option<PathBuf> = None;
        let mut off = vec![0.0_f64; ELEMENTS];
        let mut largest = 0.0_f64;
        for round in 0..4 {
            let (contributions, gradient) = two(&base, round);
            let folder = base.folder(&format!("{codec}-{round}"));
            let local =
                encode(&model, contributions, cut(codec), before.as_deref(), &folder).unwrap();
            let sent = decoded(&local.chunks.unwrap());
            for ((off, sent), x) in off.iter_mut().zip(&sent).zip(&gradient) {
                *off += f64::from(*x) - f64::from(*sent);
                largest = largest.max(f64::from(x.abs()));
            }
            before = local.residual;
            let lost = lost(before.as_ref().unwrap());
            let wrong = off.iter().zip(&lost).map(|(off, lost)| (off - f64::from(*lost)).abs());
            // Float32 sums of numbers of this size, a few of them.
            assert!(wrong.fold(0.0, f64::max) < largest * 1e-6, "{codec} after round {round}");
        }
        let lost = lost(&before.unwrap());
        assert!(lost.iter().any(|lost| *lost != 0.0));
        let bound = if codec == Codec::Int8 { 1.1 / 254.0 } else { 1.0 / 256.0 };
        let most = lost.iter().fold(0.0_f64, |most, lost| most.max(f64::from(lost.abs())));
        assert!(most <= largest * bound, "{codec}: {most} of {largest}");
    }
}

#[test]
fn a_gradient_that_was_not_merged_is_made_up_for_as_if_it_had_never_been() {
    let base = Base::new();
    let model = base.open();
    let (first, _) = two(&base, 0);
    let (second, _) = two(&base, 1);
    let round = |name: &str, contributions: &[Contribution], before: Option<&Path>| {
        let folder = base.folder(name);
        encode(&model, contributions.to_vec(), cut(Codec::Int8), before, &folder).unwrap()
    };
    let kept = round("kept", &first, None).residual.unwrap();
    let once = round("once", &second, Some(&kept));
    // In between a round failed: its residual is not kept.
    drop(round("failed", &first, Some(&kept)));
    let again = round("again", &second, Some(&kept));
    assert_eq!(once.chunks.unwrap().list(), again.chunks.unwrap().list());
}

#[test]
fn an_exact_codec_makes_up_for_what_another_has_lost_and_loses_nothing() {
    let base = Base::new();
    let model = base.open();
    let (contributions, gradient) = two(&base, 0);
    let encode = |name: &str, codec, before: Option<&Path>| {
        encode(&model, contributions.clone(), cut(codec), before, &base.folder(name)).unwrap()
    };
    let before = encode("int8", Codec::Int8, None).residual.unwrap();
    let local = encode("exact", Codec::Float32, Some(&before));
    assert!(local.residual.is_none());
    assert_eq!(names(&base.path("exact")), ["gradient"]);
    let sum: Vec<f32> = gradient.iter().zip(lost(&before)).map(|(x, lost)| x + lost).collect();
    assert_eq!(bits(&decoded(&local.chunks.unwrap())), bits(&sum));
}

#[test]
fn a_residual_that_cannot_be_used_is_as_good_as_none() {
    let base = Base::new();
    let model = base.open();
    let (contributions, _) = two(&base, 0);
    let encode = |name: &str, before: Option<&Path>| {
        encode(&model, contributions.clone(), cut(Codec::Int8), before, &base.folder(name)).unwrap()
    };
    let none = encode("none", None);
    let (list, residual) = (none.chunks.unwrap(), none.residual.unwrap());
    let mut spoilt = std::fs::read(&residual).unwrap();
    spoilt[2_000_000] ^= 1;
    std::fs::write(base.path("spoilt"), spoilt).unwrap();
    for name in ["missing", "spoilt", "base/model_full.safetensors"] {
        let local = encode(&format!("with-{}", name.len()), Some(&base.path(name)));
        assert_eq!(local.chunks.unwrap().list(), list.list(), "{name}");
        assert_eq!(bits(&lost(&local.residual.unwrap())), bits(&lost(&residual)), "{name}");
    }
    let other = encode("other", Some(&residual));
    assert_ne!(other.chunks.unwrap().list(), list.list(), "a good one is used");
}

#[test]
fn a_miner_that_is_refused_is_reported_and_the_others_added_up() {
    let base = Base::new();
    let model = base.open();
    let (mut contributions, _) = two(&base, 0);
    let alone =
        encode(&model, contributions[..1].to_vec(), cut(Codec::Int8), None, &base.folder("alone"));
    std::fs::write(&contributions[1].path, b"no model").unwrap();
    contributions.push(base.miner(12, 1.0, &vec![f32::NAN; ELEMENTS]));
    let local = encode(&model, contributions, cut(Codec::Int8), None, &base.folder("own")).unwrap();
    let skipped: Vec<_> = local.skipped.iter().map(|one| (&one.hotkey, &*one.reason)).collect();
    assert_eq!(skipped.len(), 2);
    assert_eq!(*skipped[0].0, hotkey(11));
    assert_eq!((skipped[1].0, skipped[1].1), (&hotkey(12), "non_finite"));
    assert_eq!(local.chunks.unwrap().list(), alone.unwrap().chunks.unwrap().list());
}

#[test]
fn a_file_that_turns_bad_after_it_was_verified_voids_what_was_written() {
    let base = Base::new();
    let model = base.open();
    let (contributions, _) = two(&base, 0);
    let alone = contributions[..1].to_vec();
    let alone = encode(&model, alone, cut(Codec::Int8), None, &base.folder("alone")).unwrap();
    let (bad, folder) = (contributions[1].path.clone(), base.folder("own"));
    let limits = Limits::default();
    let mean =
        PseudoGradient::new(model.published(), model.layout(), contributions, limits).unwrap();
    assert_eq!(mean.weights().len(), 2);
    let mut longer = std::fs::OpenOptions::new().append(true).open(bad).unwrap();
    std::io::Write::write_all(&mut longer, b"x").unwrap();
    let local = encode_mean(&model, mean, cut(Codec::Int8), None, &folder).unwrap();
    assert_eq!(local.skipped.len(), 1);
    assert_eq!(local.skipped[0].hotkey, hotkey(11));
    assert_eq!(local.chunks.unwrap().list(), alone.chunks.unwrap().list());
    assert_eq!(bits(&lost(&local.residual.unwrap())), bits(&lost(&alone.residual.unwrap())));
}

#[test]
fn without_a_usable_miner_there_is_no_gradient() {
    let base = Base::new();
    let model = base.open();
    let bad = base.miner(10, 1.0, &vec![f32::INFINITY; ELEMENTS]);
    for (name, contributions) in [("none", vec![]), ("bad", vec![bad])] {
        let folder = base.folder(name);
        let count = contributions.len();
        let local = encode(&model, contributions, cut(Codec::Int8), None, &folder).unwrap();
        assert!(local.chunks.is_none() && local.residual.is_none());
        assert_eq!(local.skipped.len(), count);
        assert!(names(&folder).is_empty());
    }
}

#[test]
fn a_sum_that_is_not_finite_is_not_given() {
    let base = Base::of(&vec![0.0; ELEMENTS]);
    let model = base.open();
    // The first tensor is published in float32; the other cannot hold the largest of these.
    let mut far = vec![-f32::MAX; ELEMENTS];
    far[512 * 400..].fill(-1.0);
    let miner = base.miner(10, 1.0, &far);
    let encode = |name: &str, before: Option<&Path>| {
        encode(&model, vec![miner.clone()], cut(Codec::Bfloat16), before, &base.folder(name))
            .unwrap()
    };
    let first = encode("first", None);
    assert!(first.chunks.is_some(), "{:?}", first.skipped);
    // The largest bfloat16 is less than the largest float32: what is left of it does not fit on top.
    let second = encode("second", first.residual.as_deref());
    assert!(second.chunks.is_none() && second.residual.is_none());
    assert!(names(&base.path("second")).is_empty());
}

#[test]
fn a_folder_that_is_not_there_is_a_failure_by_name() {
    let base = Base::new();
    let (contributions, _) = two(&base, 0);
    let folder = base.path("nowhere");
    let failed = encode(&base.open(), contributions, cut(Codec::Int8), None, &folder).unwrap_err();
    assert!(matches!(failed, Failure::Scratch(_)), "{failed}");
}
