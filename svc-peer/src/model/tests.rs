use checkpoint::{CHUNK, OuterSgd, OuterStep, Publication};

use super::*;
use crate::fixture::{Base, ELEMENTS, noise};

/// The base after one step along zeros but one: the folder of the next model.
fn step(base: &Base) -> PathBuf {
    let model = base.open();
    let manifest = model.published().manifest().clone();
    let publication = Publication {
        global_version: base.plan.new_version,
        expert_group: base.plan.group,
        parent: Some(manifest.model_hash),
        config: manifest.config,
        groups: manifest.groups,
    };
    let gradient = noise(9, ELEMENTS);
    let step = OuterStep {
        base: model.published(),
        tensors: model.tensors(),
        state: model.state(),
        optimizer: OuterSgd::default(),
        gradient: &gradient,
    };
    let folder = base.path("next");
    step.publish(&folder, &base.plan.optimizer_file(), publication).unwrap();
    folder
}

#[test]
fn the_model_of_another_plan_is_no_base() {
    let base = Base::new();
    let folder = base.path("base");
    let mut other = base.plan.clone();
    other.base.model_hash.0[0] ^= 1;
    let error = Model::open(&folder, None, &other).unwrap_err();
    assert!(error.to_string().contains("its hash is"), "{error}");
    let mut other = base.plan.clone();
    other.group.0 += 1;
    let error = Model::open(&folder, None, &other).unwrap_err();
    assert!(error.to_string().contains("group"), "{error}");
    assert!(matches!(Model::open(&base.path("none"), None, &base.plan), Err(Failure::Base(_))));
    let model = Model::open(&folder, None, &base.plan).unwrap();
    assert_eq!(
        model.cut(Codec::Int8, CHUNK),
        Cut { elements: ELEMENTS, chunk: CHUNK, codec: Codec::Int8 }
    );
}

#[test]
fn the_state_of_another_model_is_refused() {
    let base = Base::new();
    let next = step(&base);
    let state = next.join(base.plan.optimizer_file());
    let error = Model::open(&base.path("base"), Some(&state), &base.plan).unwrap_err();
    assert!(error.to_string().contains("belongs to the model"), "{error}");
    let mut plan = base.plan.clone();
    plan.base.model_hash = Manifest::read(&next).unwrap().model_hash;
    let model = Model::open(&next, Some(&state), &plan).unwrap();
    assert!(model.state().digest().is_some());
    let mut file = std::fs::read(&state).unwrap();
    let middle = file.len() / 2;
    file[middle] ^= 1;
    std::fs::write(&state, file).unwrap();
    assert!(matches!(Model::open(&next, Some(&state), &plan), Err(Failure::Base(_))));
}

#[test]
fn who_would_make_another_model_has_another_layout() {
    let tensors = |name: &str, dtype: checkpoint::Dtype, shape: &[usize]| {
        BTreeMap::from([(name.to_owned(), TensorSpec { dtype, shape: shape.to_vec() })])
    };
    let digest = |tensors: &BTreeMap<_, _>, optimizer, state| {
        layout_digest(tensors, &VectorLayout::new(tensors), optimizer, state)
    };
    use checkpoint::Dtype::{BF16, F32};
    let sgd = OuterSgd::default();
    let plain = tensors("a", F32, &[2, 3]);
    let all = [
        digest(&plain, &sgd, None),
        digest(&tensors("a", F32, &[3, 2]), &sgd, None),
        digest(&tensors("b", F32, &[2, 3]), &sgd, None),
        digest(&tensors("a", BF16, &[2, 3]), &sgd, None),
        digest(&plain, &OuterSgd { lr: 0.1, ..sgd }, None),
        digest(&plain, &OuterSgd { momentum: 0.1, ..sgd }, None),
        digest(&plain, &OuterSgd { nesterov: false, ..sgd }, None),
        digest(&plain, &sgd, Some([7; 32])),
        digest(&plain, &sgd, Some([0; 32])),
    ];
    for (i, one) in all.iter().enumerate() {
        assert!(all[i + 1..].iter().all(|other| other != one), "{i}");
    }
    let base = Base::new();
    let digest = base.open().layout_digest(&sgd);
    assert_eq!(digest, base.open().layout_digest(&sgd));
    assert_eq!(digest, Base::of(&noise(2, ELEMENTS)).open().layout_digest(&sgd));
}
