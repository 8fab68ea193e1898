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
