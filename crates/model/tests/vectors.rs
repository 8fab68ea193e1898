//! The golden vectors: what the deployed implementation computed, to the tolerances that their
//! README states.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeMap, path::PathBuf};

use checkpoint::{Checkpoint, ExpertGroups, Limits, TensorSource as _};
use data::Batch;
use domain::ExpertGroup;
use model::{
    Autocast, Device, GroupExperts, LanguageModel, LoadOptions, ModelError, Next, WeightType,
    mean_loss, single_threaded,
};
use serde_json::Value;

const LOGITS: f32 = 1e-4;
const LOSS: f64 = 1e-5;

fn vectors() -> PathBuf {
    std::env::var_os("CONNITO_VECTORS").map_or_else(
        || concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors").into(),
        Into::into,
    )
}

/// Where the models of these tests run: the processor, unless `CONNITO_DEVICE` names another device.
fn device() -> Device {
    std::env::var("CONNITO_DEVICE").map_or(Device::Cpu, |name| name.parse().unwrap())
}

fn open(name: &str) -> Checkpoint {
    checkpoint::open(&vectors().join(name), Limits::trusted()).unwrap()
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(vectors().join(name)).unwrap()).unwrap()
}

fn integers(file: &Checkpoint, name: &str) -> Vec<i64> {
    let bytes = file.bytes(name).unwrap();
    bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn batch(file: &Checkpoint, labels: &str) -> Batch {
    let length = file.specs()["input_ids"].shape[1];
    Batch::new(length, integers(file, "input_ids"), integers(file, labels)).unwrap()
}

fn inputs() -> Batch {
    batch(&open("model/full.safetensors"), "labels")
}

fn group(id: u32) -> GroupExperts {
    let groups: ExpertGroups = serde_json::from_value(json("model/expert_groups.json")).unwrap();
    groups.0[&ExpertGroup(id)].clone()
}

/// The base model of the vectors, with `top_k` experts per token.
fn base(group: Option<&GroupExperts>, top_k: u64) -> LanguageModel {
    single_threaded();
    let hub = checkpoint::HubModel::open(&vectors().join("model/base")).unwrap();
    let mut config = hub.config().clone();
    config["num_experts_per_tok"] = top_k.into();
    LanguageModel::load(
        &config,
        &[&hub],
        group,
        LoadOptions { device: device(), ..LoadOptions::default() },
    )
    .unwrap()
}

fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn assert_like_vector(model: &LanguageModel, file: &str, inputs: &Batch) {
    let expected = open(file);
    let logits = model.logits(inputs).unwrap();
    let apart = distance(&logits, &expected.to_f32("logits").unwrap());
    assert!(apart < LOGITS, "{file}: logits differ by {apart:e}");
    let loss = mean_loss(&model.losses(std::slice::from_ref(inputs)).unwrap());
    let expected = f64::from(expected.to_f32("loss").unwrap()[0]);
    assert!((loss - expected).abs() < LOSS, "{file}: loss {loss} instead of {expected}");
}

#[test]
fn the_full_model_computes_the_vectors_logits_and_loss() {
    assert_like_vector(&base(None, 2), "model/full.safetensors", &inputs());
}

#[test]
fn the_partial_models_compute_the_vectors_logits_and_losses() {
    for id in [0, 1] {
        for top_k in [1, 2] {
            let model = base(Some(&group(id)), top_k);
            let file = format!("model/partial_g{id}_top{top_k}.safetensors");
            assert_like_vector(&model, &file, &inputs());
        }
    }
}

#[test]
fn the_miners_of_the_vectors_get_their_losses_and_scores_in_both_formats() {
    let expected = json("model/expected.json");
    let inputs = [inputs()];
    for id in [0, 1] {
        let mut model = base(Some(&group(id)), 2);
        let baseline = mean_loss(&model.losses(&inputs).unwrap());
        for miner in 0..3 {
            for format in ["pt", "safetensors"] {
                let name = format!("miner{miner}_g{id}");
                let want = &expected[&name];
                model.overlay(&open(&format!("model/{name}.{format}"))).unwrap();
                let loss = mean_loss(&model.losses(&inputs).unwrap());
                let apart = (loss - want["loss"].as_f64().unwrap()).abs();
                assert!(apart < LOSS, "{name}: loss {loss}, {apart:e} apart");
                let score = (baseline - loss).max(0.0).powf(1.2);
                let apart = (score - want["score"].as_f64().unwrap()).abs();
                assert!(apart < 2.0 * LOSS, "{name}: score {score}, {apart:e} apart");
                model.restore();
            }
        }
        let after = mean_loss(&model.losses(&inputs).unwrap());
        assert_eq!(after.to_bits(), baseline.to_bits(), "restored bit for bit");
    }
}

#[test]
fn the_hostile_vectors_that_can_be_opened_are_refused_at_the_overlay() {
    let inputs = [inputs()];
    let mut model = base(Some(&group(0)), 2);
    let baseline = model.losses(&inputs).unwrap();
    for (name, reason) in [
        ("nan", "non_finite"),
        ("inf", "non_finite"),
        ("foreign_expert", "foreign_tensor"),
        ("shared_weights", "foreign_tensor"),
        ("wrong_shape", "wrong_shape"),
        ("missing_tensor", "missing_tensor"),
    ] {
        let file = open(&format!("model/hostile_{name}.pt"));
        let error = model.overlay(&file).unwrap_err();
        assert_eq!(error.submission_reason(), Some(reason), "{name}: {error}");
        assert_eq!(model.losses(&inputs).unwrap(), baseline, "{name} left something behind");
    }
}

#[test]
fn finite_weights_that_overflow_inside_are_non_finite() {
    let mut model = base(Some(&group(0)), 2);
    let file = open("model/miner0_g0.safetensors");
    let mut tensors = checkpoint::MemoryTensors::default();
    for (name, spec) in file.specs() {
        let huge: Vec<_> = file.to_f32(name).unwrap().iter().map(|x| x.signum() * 1e19).collect();
        tensors.insert_f32(name, spec.shape.clone(), &huge).unwrap();
    }
    model.overlay(&tensors).unwrap();
    let error = model.losses(&[inputs()]).unwrap_err();
    assert!(matches!(error, ModelError::NonFinite { .. }), "{error}");
    assert_eq!(error.submission_reason(), Some("non_finite"));
}

/// Experts in a loop, as deployed; scaled dot product attention.
fn numerics(weights: WeightType, autocast: Option<Autocast>, mscale: bool) -> LanguageModel {
    single_threaded();
    let folder = match weights {
        WeightType::Float32 | WeightType::Float16 => "numerics/f32",
        WeightType::BFloat16 => "numerics/bf16",
    };
    let options = LoadOptions { weights, autocast, mscale_in_attention: mscale, device: device() };
    LanguageModel::from_hub(&vectors().join(folder), None, options).unwrap()
}

#[test]
fn float32_computes_the_numerics_vectors_with_and_without_mscale() {
    let file = open("numerics/inputs.safetensors");
    for (version, mscale) in [("tf5.4.0-experts-eager", false), ("tf5.23.0-experts-eager", true)] {
        let model = numerics(WeightType::Float32, None, mscale);
        let expected = open(&format!("numerics/expected-{version}.safetensors"));
        let losses = json(&format!("numerics/expected-{version}.json"));
        for (name, labels) in [("f32.sdpa", "input_ids"), ("f32.sdpa.padded", "labels")] {
            let batch = batch(&file, labels);
            let logits = model.logits(&batch).unwrap();
            let apart = distance(&logits, &expected.to_f32(&format!("{name}.logits")).unwrap());
            assert!(apart < LOGITS, "{version} {name}: logits differ by {apart:e}");
            let loss = mean_loss(&model.losses(&[batch]).unwrap());
            let apart = (loss - losses[name].as_f64().unwrap()).abs();
            assert!(apart < LOSS, "{version} {name}: losses differ by {apart:e}");
        }
    }
}

/// Only the deployed version: a near tie of the router falls the other way with mscale, and
/// attention kernels of different releases round differently.
#[test]
fn half_precision_computes_the_deployed_numerics_vectors() {
    use Autocast as A;
    use WeightType as W;
    const UNITS: &str = "ONEDNN_MAX_CPU_ISA";
    // Processors with float16 units add up in float16; the vectors are of one without. What the library may use is
    // settled when a process begins.
    if std::env::var_os(UNITS).is_none() {
        let name = "half_precision_computes_the_deployed_numerics_vectors";
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(UNITS, "AVX512_CORE_BF16")
            .status();
        assert!(status.unwrap().success(), "in a process of its own");
        return;
    }
    let batch = batch(&open("numerics/inputs.safetensors"), "input_ids");
    let version = "tf5.4.0-experts-eager";
    let expected = open(&format!("numerics/expected-{version}.safetensors"));
    let losses = json(&format!("numerics/expected-{version}.json"));
    // One unit in the last place of a logit near 2: 2^-6 in bfloat16, 2^-9 in float16.
    for (name, weights, autocast, logit) in [
        ("bf16.sdpa", W::BFloat16, None, 0.016),
        ("f32w.bf16autocast.sdpa", W::Float32, Some(A::BFloat16), 0.016),
        ("f32w.f16autocast.sdpa", W::Float32, Some(A::Float16), 0.002),
        ("bf16w.bf16autocast.sdpa", W::BFloat16, Some(A::BFloat16), 0.016),
    ] {
        let model = numerics(weights, autocast, false);
        let logits = model.logits(&batch).unwrap();
        let apart = distance(&logits, &expected.to_f32(&format!("{name}.logits")).unwrap());
        // Another device rounds its products otherwise, and a near tie of the router falls the other way.
        let (logit, close) = if device() == Device::Cpu { (logit, 2e-4) } else { (0.5, 1e-2) };
        assert!(apart < logit, "{name}: logits differ by {apart:e}");
        let loss = mean_loss(&model.losses(std::slice::from_ref(&batch)).unwrap());
        let apart = (loss - losses[name].as_f64().unwrap()).abs();
        assert!(apart < close, "{name}: losses differ by {apart:e}");
    }
}

#[test]
fn every_tensor_of_the_base_is_needed_and_none_may_be_infinite() {
    let hub = checkpoint::HubModel::open(&vectors().join("model/base")).unwrap();
    let all: BTreeMap<String, _> =
        hub.specs().iter().map(|(name, spec)| (name.clone(), spec.clone())).collect();
    let copy = |change: &dyn Fn(&str, &mut Vec<f32>) -> bool| {
        let mut tensors = checkpoint::MemoryTensors::default();
        for (name, spec) in &all {
            let mut values = hub.to_f32(name).unwrap();
            if change(name, &mut values) {
                tensors.insert_f32(name, spec.shape.clone(), &values).unwrap();
            }
        }
        LanguageModel::load(
            hub.config(),
            &[&tensors],
            None,
            LoadOptions { device: device(), ..LoadOptions::default() },
        )
    };
    copy(&|_, _| true).unwrap();
    for left_out in ["lm_head.weight", "model.layers.2.mlp.experts.5.down_proj"] {
        let error = copy(&|name, _| name != left_out).unwrap_err();
        assert!(matches!(&error, ModelError::Missing { name } if name == left_out), "{error}");
    }
    let error = copy(&|name, values| {
        if name == "model.norm.weight" {
            values[3] = f32::NEG_INFINITY;
        }
        true
    })
    .unwrap_err();
    assert!(matches!(error, ModelError::NonFinite { .. }), "{error}");
}

#[test]
fn an_overlay_staged_on_another_thread_gives_the_same_bits_and_leaves_no_trace_in_the_base() {
    let (mut model, inputs) = (base(Some(&group(0)), 2), [inputs()]);
    let (digest, baseline) = (model.digest().unwrap(), model.losses(&inputs).unwrap());
    model.overlay(&open("model/miner0_g0.pt")).unwrap();
    let expected = model.losses(&inputs).unwrap();
    let stager = model.stager();
    let staging = std::thread::spawn(move || stager.stage(&open("model/miner0_g0.pt")).unwrap());
    // The model runs another one meanwhile.
    model.overlay(&open("model/miner1_g0.pt")).unwrap();
    assert_ne!(model.losses(&inputs).unwrap(), expected);
    model.overlay_staged(staging.join().unwrap()).unwrap();
    assert_eq!(model.losses(&inputs).unwrap(), expected);
    assert_eq!(model.digest().unwrap(), digest, "with the overlay in place");
    model.restore();
    assert_eq!(model.losses(&inputs).unwrap(), baseline);
    assert_eq!(model.digest().unwrap(), digest);
    assert_ne!(base(Some(&group(1)), 2).digest().unwrap(), digest, "other experts");
}

#[test]
fn what_was_staged_for_another_group_is_refused_and_the_base_stays_in_place() {
    let (mut model, inputs) = (base(Some(&group(0)), 2), [inputs()]);
    let baseline = model.losses(&inputs).unwrap();
    let staged = base(Some(&group(1)), 2).stager().stage(&open("model/miner0_g1.pt")).unwrap();
    let error = model.overlay_staged(staged).unwrap_err();
    assert!(matches!(error, ModelError::Staged), "{error}");
    assert_eq!(error.submission_reason(), None);
    assert_eq!(model.losses(&inputs).unwrap(), baseline);
}

#[test]
fn a_run_can_be_ended_with_what_it_has_or_without() {
    let (model, inputs) = (base(Some(&group(0)), 2), vec![inputs(); 5]);
    let all = model.losses(&inputs).unwrap();
    let mut seen = Vec::new();
    let mut until = |answer: Next| {
        seen.clear();
        model.losses_until(&inputs, &mut |losses: &[f64]| {
            seen.push(losses.to_vec());
            if losses.len() < 2 { Next::Go } else { answer }
        })
    };
    assert_eq!(until(Next::Enough).unwrap(), all[..2]);
    assert!(matches!(until(Next::Cancel), Err(ModelError::Stopped)));
    assert_eq!(until(Next::Go).unwrap(), all);
    assert_eq!(seen, (0..5).map(|n| all[..n].to_vec()).collect::<Vec<_>>());
}

/// A file may have its tensors at any byte: libtorch may only read them where they are aligned.
#[test]
fn a_file_whose_tensors_lie_at_odd_bytes_is_read_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.safetensors");
    let bytes = std::fs::read(vectors().join("model/miner0_g0.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let mut odd = (header + 1).to_le_bytes().to_vec();
    odd.extend_from_slice(&bytes[8..8 + header as usize]);
    odd.push(b' ');
    odd.extend_from_slice(&bytes[8 + header as usize..]);
    std::fs::write(&path, odd).unwrap();
    let (mut model, inputs) = (base(Some(&group(0)), 2), [inputs()]);
    model.overlay(&open("model/miner0_g0.safetensors")).unwrap();
    let expected = model.losses(&inputs).unwrap();
    model.overlay(&checkpoint::open(&path, Limits::default()).unwrap()).unwrap();
    assert_eq!(model.losses(&inputs).unwrap(), expected);
}

/// Our own vectors, by `group_limited.py` beside them.
#[test]
fn routing_limited_to_groups_computes_what_transformers_does() {
    single_threaded();
    let hub = checkpoint::HubModel::open(&vectors().join("model/base")).unwrap();
    let expected: Value = serde_json::from_str(include_str!("group_limited.json")).unwrap();
    let vocabulary = hub.specs()["lm_head.weight"].shape[0];
    for case in expected["cases"].as_array().unwrap() {
        let mut config = hub.config().clone();
        config["topk_method"] = "group_limited_greedy".into();
        for key in ["n_group", "topk_group", "num_experts_per_tok"] {
            config[key] = case[key].clone();
        }
        let model = LanguageModel::load(
            &config,
            &[&hub],
            None,
            LoadOptions { device: device(), ..LoadOptions::default() },
        )
        .unwrap();
        let inputs = inputs();
        let loss = mean_loss(&model.losses(std::slice::from_ref(&inputs)).unwrap());
        let apart = (loss - case["loss"].as_f64().unwrap()).abs();
        assert!(apart < LOSS, "{case}: loss {loss}, {apart:e} apart");
        let logits = model.logits(&inputs).unwrap();
        let found: Vec<f32> = logits
            .chunks(vocabulary)
            .take(inputs.length())
            .flat_map(|row| row[..8].to_vec())
            .collect();
        let logits: Vec<f32> = serde_json::from_value(case["logits"].clone()).unwrap();
        let apart = distance(&found, &logits);
        assert!(apart < LOGITS, "{case}: logits differ by {apart:e}");
    }
}
