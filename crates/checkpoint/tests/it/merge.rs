//! Local aggregation and the outer step over published models.

use std::{collections::BTreeMap, fs, path::PathBuf};

use checkpoint::{
    AggregateError, Contribution, GradientError, Limits, Manifest, MemoryTensors, OuterSgd,
    PseudoGradient, PublishedModel, SliceLayout, TensorSource, overlay, publish_model,
    write_safetensors,
};
use domain::{ExpertGroup, GlobalVersion};
use tempfile::TempDir;

use crate::setup::{hotkey, open_vector, publication, publish_base, vectors};

struct Round {
    folder: TempDir,
    manifest: Manifest,
    base: PublishedModel,
    layout: SliceLayout,
}

impl Round {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let manifest = publish_base(folder.path());
        let base = PublishedModel::open(folder.path()).unwrap();
        let layout = manifest.layout(ExpertGroup(0)).unwrap();
        Self { folder, manifest, base, layout }
    }

    fn gradient(&self, of: Vec<Contribution>) -> Result<PseudoGradient<'_>, AggregateError> {
        PseudoGradient::new(&self.base, &self.layout, of, Limits::default())
    }
}

fn contribution(miner: u8, weight: f64, file: &str) -> Contribution {
    Contribution { hotkey: hotkey(miner), weight, path: vectors().join(file), model_hash: None }
}

#[test]
fn the_gradient_is_the_weighted_mean_of_global_minus_miner() {
    let round = Round::new();
    let of = vec![
        contribution(1, 3.0, "miner1_g0.pt"),
        contribution(2, 1.0, "miner2_g0.safetensors"),
        contribution(3, 0.0, "absent.pt"),
    ];
    let gradient = round.gradient(of).unwrap();
    assert!(gradient.skipped().is_empty(), "a weight of zero is not even read");
    let weights: Vec<f64> = gradient.weights().into_iter().map(|(_, weight)| weight).collect();
    assert_eq!(weights.iter().sum::<f64>(), 1.0);
    assert_eq!(gradient.total_weight(), 4.0);
    let (one, two) = (open_vector("miner1_g0.pt"), open_vector("miner2_g0.pt"));
    let mut names = Vec::new();
    for tensor in gradient.iter() {
        let (name, values) = tensor.unwrap();
        names.push(name.to_owned());
        let base = round.base.to_f32(name).unwrap();
        let (one, two) = (one.to_f32(name).unwrap(), two.to_f32(name).unwrap());
        assert_eq!(values.len(), base.len());
        for (i, value) in values.iter().enumerate() {
            let mean = 0.75 * f64::from(base[i] - one[i]) + 0.25 * f64::from(base[i] - two[i]);
            assert!((f64::from(*value) - mean).abs() <= 1e-7, "{name}[{i}]: {value} and {mean}");
        }
    }
    assert!(names.is_sorted() && names.len() == round.layout.tensors.len());
}

#[test]
fn the_order_of_contributions_does_not_change_a_bit() {
    let round = Round::new();
    let files = ["miner0_g0.pt", "miner1_g0.pt", "miner2_g0.pt"];
    let of: Vec<_> =
        (1..).zip(files).map(|(n, f)| contribution(n, f64::from(n) / 7.0, f)).collect();
    let reversed = of.iter().rev().cloned().collect();
    let (one, two) = (round.gradient(of).unwrap(), round.gradient(reversed).unwrap());
    let bits = |gradient: &PseudoGradient<'_>| -> Vec<u32> {
        gradient.iter().flat_map(|tensor| tensor.unwrap().1).map(f32::to_bits).collect()
    };
    assert_eq!(bits(&one), bits(&two));
}

#[test]
fn a_bad_miner_is_skipped_and_the_rest_weigh_as_much_as_without_it() {
    let round = Round::new();
    let good = || vec![contribution(1, 1.0, "miner1_g0.pt"), contribution(2, 2.0, "miner2_g0.pt")];
    let mut all = good();
    all.push(contribution(3, 5.0, "hostile_nan.pt"));
    all.push(contribution(4, 5.0, "hostile_exec.pt"));
    all.push(contribution(5, 5.0, "miner1_g1.pt"));
    all.push(contribution(6, 5.0, "absent.pt"));
    let lied = Some(domain::ModelHash([1; 24]));
    all.push(Contribution { model_hash: lied, ..contribution(7, 5.0, "miner0_g0.pt") });
    let (all, good) = (round.gradient(all).unwrap(), round.gradient(good()).unwrap());
    let reasons: BTreeMap<_, _> =
        all.skipped().iter().map(|(who, why)| (who.clone(), why.reason())).collect();
    let expected =
        ["non_finite", "forbidden_pickle", "foreign_tensor", "evaluator_error", "hash_mismatch"];
    assert_eq!(reasons, (3..).map(hotkey).zip(expected).collect());
    assert_eq!(all.weights(), good.weights());
    let name = "model.layers.1.mlp.experts.2.down_proj";
    assert_eq!(all.tensor(name), good.tensor(name));
}

/// Miners of three types, one with its tensors in another order in memory, copied so that a test may spoil them.
fn spoilable(round: &Round) -> Vec<Contribution> {
    let files = ["miner0_g0.pt", "miner1_g0.safetensors", "miner2_g0.pt"];
    let copied = (1..).zip(files).map(|(n, file)| {
        let path = round.folder.path().join(format!("copy-{n}"));
        fs::copy(vectors().join(file), &path).unwrap();
        Contribution { path, ..contribution(n, f64::from(n), file) }
    });
    copied.collect()
}

#[test]
fn any_range_has_the_bits_of_the_whole_with_any_number_of_threads() {
    let round = Round::new();
    let gradient = round.gradient(spoilable(&round)).unwrap();
    let whole: Vec<u32> =
        gradient.iter().flat_map(|tensor| tensor.unwrap().1).map(f32::to_bits).collect();
    assert_eq!(whole.len(), gradient.layout().len());
    for (threads, part) in [(1, whole.len()), (2, 1), (3, 4097), (8, 10_000)] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let starts: Vec<usize> = (0..whole.len()).step_by(part).collect();
        // Single elements here and there, the last parts first.
        for start in starts.into_iter().rev().step_by(if part == 1 { 997 } else { 1 }) {
            let mut values = vec![0.0; part.min(whole.len() - start)];
            pool.install(|| gradient.fill(start, &mut values)).unwrap();
            let bits: Vec<u32> = values.iter().map(|v| v.to_bits()).collect();
            assert_eq!(bits, whole[start..start + values.len()], "{threads} {part} {start}");
        }
    }
    let beyond = gradient.fill(whole.len() - 1, &mut [0.0; 2]).unwrap_err();
    assert!(matches!(beyond, GradientError::Range { .. }), "{beyond}");
}

#[test]
fn a_file_that_turns_bad_after_it_was_verified_is_left_out_of_the_whole() {
    type Spoil = fn(&fs::File);
    let cut: Spoil = |file| file.set_len(1000).unwrap();
    let grown: Spoil = |file| file.set_len(10_000_000).unwrap();
    let changed: Spoil = |mut file| {
        use std::io::{Seek as _, SeekFrom, Write as _};
        file.seek(SeekFrom::End(-5000)).unwrap();
        file.write_all(&[0x3c; 100]).unwrap();
        // Whatever the clock's ticks: a time that it did not have.
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    };
    for spoil in [cut, grown, changed] {
        let round = Round::new();
        let of = spoilable(&round);
        let gradient = round.gradient(of.clone()).unwrap();
        let mut early = vec![0.0; 1000];
        gradient.fill(0, &mut early).unwrap();
        spoil(&fs::File::options().write(true).open(&of[1].path).unwrap());
        let mut rest = vec![0.0; gradient.layout().len()];
        let fault = gradient.fill(0, &mut rest).unwrap_err();
        assert_eq!(gradient.confirm().unwrap_err(), fault, "what was sent before is void");
        let GradientError::Contribution { hotkey, refusal } = fault else { panic!("{fault}") };
        assert_eq!((&hotkey, refusal.is_miners_fault()), (&of[1].hotkey, false));
        let gradient = gradient.without(&hotkey, *refusal);
        gradient.fill(0, &mut rest).unwrap();
        gradient.confirm().unwrap();
        assert_eq!(gradient.skipped().len(), 1);
        let others = round.gradient(vec![of[0].clone(), of[2].clone()]).unwrap();
        assert_eq!(gradient.weights(), others.weights());
        let mut expected = vec![0.0; rest.len()];
        others.fill(0, &mut expected).unwrap();
        assert_eq!(rest, expected);
    }
}

#[test]
fn a_finite_parameter_that_would_make_the_sum_infinite_is_its_miners_fault() {
    let round = Round::new();
    let name = "model.layers.1.mlp.experts.2.down_proj";
    let mut of = spoilable(&round);
    let mut tensors = MemoryTensors::default();
    for name in round.layout.tensors.keys() {
        let shape = round.layout.tensors[name].shape.clone();
        tensors.insert_f32(name, shape, &round.base.to_f32(name).unwrap()).unwrap();
    }
    let mut base = tensors.clone();
    let shape = round.layout.tensors[name].shape.clone();
    let mut values = round.base.to_f32(name).unwrap();
    values[7] = f32::MIN;
    base.insert_f32(name, shape.clone(), &values).unwrap();
    values[7] = f32::MAX;
    tensors.insert_f32(name, shape, &values).unwrap();
    write_safetensors(&of[1].path, &tensors).unwrap();
    let far = of.remove(1);
    // The base is as far on the other side as float32 goes.
    let gradient =
        PseudoGradient::new(&base, &round.layout, vec![far.clone()], Limits::default()).unwrap();
    let [(hotkey, refusal)] = gradient.skipped() else { panic!("{gradient:?}") };
    assert_eq!((hotkey, refusal.reason()), (&far.hotkey, "non_finite"));
    assert!(refusal.to_string().contains("[7]"), "{refusal}");
}

#[test]
fn without_a_contribution_the_gradient_is_zero() {
    let round = Round::new();
    let gradient = round.gradient(vec![contribution(1, 1.0, "hostile_inf.pt")]).unwrap();
    assert!(gradient.weights().is_empty());
    assert!(gradient.iter().all(|tensor| tensor.unwrap().1.iter().all(|v| *v == 0.0)));
    let absent = gradient.tensor("lm_head.weight").unwrap_err();
    assert_eq!(absent, GradientError::NoTensor("lm_head.weight".to_owned()));
}

#[test]
fn a_merge_that_is_asked_for_wrongly_says_so() {
    let round = Round::new();
    for weight in [-1.0, f64::NAN, f64::INFINITY] {
        let error = round.gradient(vec![contribution(1, weight, "miner1_g0.pt")]).unwrap_err();
        assert!(matches!(error, AggregateError::Weight { .. }), "{error}");
    }
    let twice = vec![contribution(1, 1.0, "miner1_g0.pt"), contribution(1, 1.0, "miner2_g0.pt")];
    assert_eq!(round.gradient(twice).unwrap_err(), AggregateError::Twice(hotkey(1)));
    let empty = MemoryTensors::default();
    let error = PseudoGradient::new(&empty, &round.layout, Vec::new(), Limits::default());
    assert!(matches!(error.unwrap_err(), AggregateError::Base(_)));
}

/// One merge as a validator does it; the folder of the new model.
fn merge(round: &Round, target: PathBuf) -> Manifest {
    let of = vec![contribution(1, 2.25, "miner1_g0.pt"), contribution(2, 1.5, "miner2_g0.pt")];
    let gradient = round.gradient(of).unwrap();
    let (mut changed, mut momentum) = (MemoryTensors::default(), MemoryTensors::default());
    for tensor in gradient.iter() {
        let (name, gradient) = tensor.unwrap();
        let mut param = round.base.to_f32(name).unwrap();
        let mut velocity = vec![0.0; param.len()];
        OuterSgd::default().step(&mut param, &mut velocity, &gradient).unwrap();
        let shape = round.base.spec(name).unwrap().shape.clone();
        changed.insert_f32(name, shape.clone(), &param).unwrap();
        momentum.insert_f32(name, shape, &velocity).unwrap();
    }
    let mut publication = publication(round.manifest.config.clone());
    publication.global_version = GlobalVersion(944);
    publication.parent = Some(round.manifest.model_hash);
    let model = overlay(Box::new(&round.base), Box::new(changed)).unwrap();
    let manifest = publish_model(&target, &model, publication).unwrap();
    write_safetensors(&target.join("optimizer_0.safetensors"), &momentum).unwrap();
    manifest
}

#[test]
fn a_merge_makes_the_next_model_the_same_for_every_validator() {
    let round = Round::new();
    let one = merge(&round, round.folder.path().join("one"));
    let two = merge(&round, round.folder.path().join("two"));
    assert_eq!(one, two);
    assert_ne!(one.model_hash, round.manifest.model_hash);
    assert_eq!(one.parent, Some(round.manifest.model_hash));
    let other = checkpoint::SliceId::Group(ExpertGroup(1));
    assert_eq!(one.slice(other), round.manifest.slice(other), "the other group is untouched");

    // The step goes from the base towards the miners.
    let name = "model.layers.3.mlp.experts.0.down_proj";
    let merged = PublishedModel::open(&round.folder.path().join("one")).unwrap();
    let miner = open_vector("miner2_g0.pt").to_f32(name).unwrap();
    let distance =
        |values: Vec<f32>| -> f32 { values.iter().zip(&miner).map(|(a, b)| (a - b).powi(2)).sum() };
    let base = distance(round.base.to_f32(name).unwrap());
    assert!(distance(merged.to_f32(name).unwrap()) < base);
    assert!(fs::exists(round.folder.path().join("one/optimizer_0.safetensors")).unwrap());
}
