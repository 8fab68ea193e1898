//! The outer step over published models, and the optimizer's state from version to version.

use std::{collections::BTreeMap, fs, path::Path};

use checkpoint::{
    Dtype, HubModel, Manifest, MemoryTensors, OptimizerState, OuterSgd, OuterStep, Publication,
    PublishedModel, StateError, StepError, TensorSource, TensorSpec, VectorLayout, encode_f32,
    overlay, publish_model, write_safetensors,
};
use domain::{ExpertGroup, GlobalVersion, ModelHash};

use crate::setup::{file_names, publication, vectors};

const STATE: &str = "optimizer_0.safetensors";

/// The vectors' model in one dtype, published; its folder is `at`.
fn publish(at: &Path, dtype: Dtype) -> Manifest {
    let hub = HubModel::open(&vectors().join("base")).unwrap();
    let mut tensors = MemoryTensors::default();
    for (name, spec) in hub.specs() {
        let bytes = encode_f32(dtype, &hub.to_f32(name).unwrap()).unwrap();
        let spec = TensorSpec { dtype, shape: spec.shape.clone() };
        tensors.insert(name, spec, bytes).unwrap();
    }
    publish_model(at, &tensors, publication(hub.config().clone())).unwrap()
}

fn tensors(manifest: &Manifest) -> BTreeMap<String, TensorSpec> {
    manifest.layout(ExpertGroup(0)).unwrap().tensors
}

fn next_publication(manifest: &Manifest) -> Publication {
    Publication {
        global_version: GlobalVersion(manifest.global_version.0 + 472),
        expert_group: ExpertGroup(0),
        parent: Some(manifest.model_hash),
        config: manifest.config.clone(),
        groups: manifest.groups.clone(),
    }
}

/// The `round`-th gradient: small steps, as training makes them.
fn gradient(len: usize, round: usize) -> Vec<f32> {
    (0..len).map(|n| ((n * 31 + round * 17) % 101) as f32 * 1e-5 - 4e-4).collect()
}

fn step(
    from: &Path,
    to: &Path,
    state: &OptimizerState,
    gradient: &Vec<f32>,
) -> Result<Manifest, StepError> {
    let base = PublishedModel::open(from).unwrap();
    let tensors = tensors(base.manifest());
    let optimizer = OuterSgd::default();
    let step = OuterStep { base: &base, tensors: &tensors, state, optimizer, gradient };
    step.publish(to, STATE, next_publication(base.manifest()))
}

fn load(folder: &Path) -> Result<OptimizerState, StateError> {
    let manifest = Manifest::read(folder).unwrap();
    OptimizerState::load(&folder.join(STATE), &tensors(&manifest), &manifest.model_hash)
}

/// Rounds in float32 that nothing is published of: what the masters must be.
fn reference(base: &Path, dtype: Dtype, rounds: usize) -> Vec<f32> {
    let base = PublishedModel::open(base).unwrap();
    let mut values = Vec::new();
    for name in tensors(base.manifest()).keys() {
        values.extend(base.to_f32(name).unwrap());
    }
    let mut velocity = vec![0.0; values.len()];
    for round in 0..rounds {
        let gradient = gradient(values.len(), round);
        OuterSgd::default().step(&mut values, &mut velocity, &gradient).unwrap();
    }
    let published = encode_f32(dtype, &values).unwrap();
    checkpoint::decode_f32(dtype, &published).unwrap()
}

#[test]
fn steps_over_restarts_are_the_steps_of_one_that_never_stopped() {
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let folder = tempfile::tempdir().unwrap();
        let at = |n: usize| folder.path().join(n.to_string());
        let len = VectorLayout::new(&tensors(&publish(&at(0), dtype))).len();
        for round in 0..4 {
            // Everything comes from files, as after a restart.
            let state = match round {
                0 => OptimizerState::fresh(),
                _ => load(&at(round)).unwrap(),
            };
            assert_eq!(state.format(), (round > 0).then_some(2));
            step(&at(round), &at(round + 1), &state, &gradient(len, round)).unwrap();
        }
        let last = PublishedModel::open(&at(4)).unwrap();
        let mut values = Vec::new();
        for name in tensors(last.manifest()).keys() {
            values.extend(last.to_f32(name).unwrap());
        }
        assert!(values == reference(&at(0), dtype, 4), "{dtype}");
        let state = checkpoint::open(&at(4).join(STATE), checkpoint::Limits::trusted()).unwrap();
        let masters = state.tensors().keys().filter(|name| name.starts_with("master/")).count();
        let expected = if dtype == Dtype::F32 { 0 } else { tensors(last.manifest()).len() };
        assert_eq!(masters, expected, "{dtype}: no float32 is kept twice");
    }
}

#[test]
fn a_step_publishes_what_publishing_the_stepped_model_does() {
    let folder = tempfile::tempdir().unwrap();
    let (base, one, two) =
        (folder.path().join("0"), folder.path().join("1"), folder.path().join("2"));
    let manifest = publish(&base, Dtype::BF16);
    let tensors = tensors(&manifest);
    let gradient = gradient(VectorLayout::new(&tensors).len(), 0);
    let stepped = step(&base, &one, &OptimizerState::fresh(), &gradient).unwrap();

    let model = PublishedModel::open(&base).unwrap();
    let (mut changed, mut at) = (MemoryTensors::default(), 0);
    for (name, spec) in &tensors {
        let mut param = model.to_f32(name).unwrap();
        let mut velocity = vec![0.0; param.len()];
        let gradient = &gradient[at..at + param.len()];
        at += param.len();
        OuterSgd::default().step(&mut param, &mut velocity, gradient).unwrap();
        changed.insert_f32(name, spec.shape.clone(), &param).unwrap();
    }
    let model = overlay(Box::new(model), Box::new(changed)).unwrap();
    assert_eq!(publish_model(&two, &model, next_publication(&manifest)).unwrap(), stepped);
    assert_eq!(Manifest::read(&one).unwrap(), stepped);
    for name in file_names(&two) {
        assert!(fs::read(one.join(&name)).unwrap() == fs::read(two.join(&name)).unwrap(), "{name}");
    }
    // Once more, with other threads: the same bytes, the state's too.
    let three = folder.path().join("3");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(7).build().unwrap();
    pool.install(|| step(&base, &three, &OptimizerState::fresh(), &gradient)).unwrap();
    for name in file_names(&one) {
        assert!(
            fs::read(one.join(&name)).unwrap() == fs::read(three.join(&name)).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn momentum_of_the_format_before_is_still_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |n: usize| folder.path().join(n.to_string());
    let manifest = publish(&at(0), Dtype::F32);
    let tensors = tensors(&manifest);
    let len = VectorLayout::new(&tensors).len();
    step(&at(0), &at(1), &OptimizerState::fresh(), &gradient(len, 0)).unwrap();
    let now = load(&at(1)).unwrap();
    step(&at(1), &at(2), &now, &gradient(len, 1)).unwrap();

    let state = checkpoint::open(&at(1).join(STATE), checkpoint::Limits::trusted()).unwrap();
    let mut momentum = MemoryTensors::default();
    for (name, spec) in &tensors {
        let values = state.to_f32(&format!("momentum/{name}")).unwrap();
        momentum.insert_f32(name, spec.shape.clone(), &values).unwrap();
    }
    write_safetensors(&at(1).join(STATE), &momentum).unwrap();
    let before = load(&at(1)).unwrap();
    assert_eq!(before.format(), Some(1));
    assert_eq!(before.digest(), now.digest(), "the same state, whatever the format");
    step(&at(1), &at(3), &before, &gradient(len, 1)).unwrap();
    let read = |n| Manifest::read(&at(n)).unwrap().model_hash;
    assert_eq!(read(2), read(3));
}

#[test]
fn a_state_that_is_of_another_model_layout_or_hash_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |n: usize| folder.path().join(n.to_string());
    let tensors = tensors(&publish(&at(0), Dtype::BF16));
    let len = VectorLayout::new(&tensors).len();
    let manifest = step(&at(0), &at(1), &OptimizerState::fresh(), &gradient(len, 0)).unwrap();
    let path = at(1).join(STATE);
    let other = OptimizerState::load(&path, &tensors, &ModelHash([1; 24])).unwrap_err();
    assert!(
        matches!(other, StateError::Model { found: Some(found), .. } if found == manifest.model_hash)
    );
    let mut fewer = tensors.clone();
    fewer.pop_first();
    let other = OptimizerState::load(&path, &fewer, &manifest.model_hash).unwrap_err();
    assert!(matches!(other, StateError::Layout(_)), "{other}");
    let good = fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(good.len() / 60) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        assert!(load(path.parent().unwrap()).is_err(), "byte {at}");
    }
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(load(path.parent().unwrap()).is_err());
    // Momentum of other tensors, in the format before.
    let mut momentum = MemoryTensors::default();
    momentum.insert_f32("other", vec![1], &[0.0]).unwrap();
    write_safetensors(&path, &momentum).unwrap();
    let other = load(path.parent().unwrap()).unwrap_err();
    assert!(matches!(other, StateError::Tensors { name } if name == "other"));
}

#[test]
fn float32_parameters_that_are_not_the_published_ones_stop_the_step() {
    let folder = tempfile::tempdir().unwrap();
    let at = |n: usize| folder.path().join(n.to_string());
    let len = VectorLayout::new(&tensors(&publish(&at(0), Dtype::BF16))).len();
    step(&at(0), &at(1), &OptimizerState::fresh(), &gradient(len, 0)).unwrap();
    step(&at(0), &at(2), &OptimizerState::fresh(), &gradient(len, 50)).unwrap();
    let foreign = load(&at(2)).unwrap();
    let error = step(&at(1), &at(3), &foreign, &gradient(len, 1)).unwrap_err();
    assert!(matches!(error, StepError::Master { .. }), "{error}");
    assert!(!at(3).join(Manifest::FILE_NAME).exists(), "what is there is no model");
}

#[test]
fn a_step_that_cannot_be_made_leaves_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let at = |n: usize| folder.path().join(n.to_string());
    let len = VectorLayout::new(&tensors(&publish(&at(0), Dtype::F16))).len();
    let fresh = OptimizerState::fresh();
    let short = step(&at(0), &at(1), &fresh, &gradient(len - 1, 0)).unwrap_err();
    assert!(matches!(short, StepError::Gradient { .. }), "{short}");
    // Finite in float32, infinite as published.
    for value in [1e6, f32::NAN] {
        let mut huge = gradient(len, 0);
        huge[len - 1] = value;
        let error = step(&at(0), &at(1), &fresh, &huge).unwrap_err();
        assert!(matches!(error, StepError::NonFinite { .. }), "{error}");
    }
    assert!(!at(1).join(Manifest::FILE_NAME).exists());
}
