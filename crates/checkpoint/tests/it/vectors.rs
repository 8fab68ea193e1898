//! The outputs of the deployed implementation.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use checkpoint::{Limits, OuterSgd, Refusal, SliceLayout, decode_f32, model_hash, open, verify};
use domain::{ExpertGroup, ModelHash};
use serde_json::Value;

use crate::setup::{open_vector, publish_base, vectors};

fn expected() -> BTreeMap<String, Value> {
    let json = fs::read(vectors().join("expected.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn layout(group: u32) -> SliceLayout {
    let folder = tempfile::tempdir().unwrap();
    publish_base(folder.path()).layout(ExpertGroup(group)).unwrap()
}

#[test]
fn every_miner_of_the_vectors_has_its_committed_hash_in_both_formats() {
    let mut checked = 0;
    for (name, entry) in expected() {
        let Some(hash) = entry.get("model_hash") else { continue };
        let hash: ModelHash = hash.as_str().unwrap().parse().unwrap();
        let group = name.rsplit("_g").next().unwrap().parse().unwrap();
        let layout = layout(group);
        for extension in ["pt", "safetensors"] {
            let file = open_vector(&format!("{name}.{extension}"));
            assert_eq!(file.format().extension(), extension);
            assert_eq!(model_hash(&file), Ok(hash), "{name}.{extension}");
            let verified = verify(&file, &layout, Some(&hash)).unwrap();
            assert_eq!(verified.tensors as u64, entry["tensors"].as_u64().unwrap());
            let dtype = match entry["dtype"].as_str().unwrap() {
                "torch.float32" => "F32",
                "torch.bfloat16" => "BF16",
                other => other.strip_prefix("torch.float").map(|_| "F16").unwrap(),
            };
            assert!(file.tensors().values().all(|tensor| tensor.dtype().name() == dtype));
            checked += 1;
        }
    }
    assert!(checked >= 12, "{checked} files");
}

#[test]
fn both_formats_of_the_vectors_hold_the_same_tensors() {
    for name in ["miner0_g0", "miner1_g1", "miner2_g0"] {
        let (pt, st) =
            (open_vector(&format!("{name}.pt")), open_vector(&format!("{name}.safetensors")));
        assert!(pt.tensors().keys().eq(st.tensors().keys()));
        for name in pt.tensors().keys() {
            assert_eq!(pt.bytes(name), st.bytes(name));
        }
    }
}

fn refusal(name: &str) -> Refusal {
    let opened = open(&vectors().join(name), Limits::default());
    let refused = opened.and_then(|file| verify(&file, &layout(0), None));
    refused.err().unwrap_or_else(|| panic!("{name} was accepted"))
}

#[test]
fn every_hostile_file_of_the_vectors_is_refused_for_its_own_reason() {
    let pwned = std::env::temp_dir().join("connito_pwned");
    assert!(!pwned.exists(), "left over from another run: {}", pwned.display());
    let cases = [
        ("hostile_nan.pt", "non_finite: ", "] is NaN"),
        ("hostile_inf.pt", "non_finite: ", "inf"),
        ("hostile_foreign_expert.pt", "foreign_tensor: ", ".experts."),
        ("hostile_shared_weights.pt", "shared_weights: ", "model."),
        ("hostile_wrong_shape.pt", "wrong_shape: ", " is ["),
        ("hostile_missing_tensor.pt", "missing_tensor: ", ".experts."),
        ("hostile_empty.pt", "malformed: no_tensors: ", ""),
        ("hostile_exec.pt", "forbidden_pickle: the global posix.system", ""),
        ("hostile_truncated.pt", "malformed: truncated: ", "directory"),
        ("hostile_garbage.pt", "malformed: not_a_checkpoint: ", ""),
        ("hostile_zero.pt", "malformed: empty_file: ", ""),
        ("hostile_header.safetensors", "malformed: header_too_large: ", ""),
    ];
    let mut seen = BTreeSet::new();
    for (name, start, part) in cases {
        let refusal = refusal(name);
        let text = refusal.to_string();
        assert!(text.starts_with(start) && text.contains(part), "{name}: {text}");
        assert!(start.starts_with(refusal.reason()) && refusal.is_miners_fault(), "{name}: {text}");
        assert!(seen.insert(text), "{name} has the reason of another");
    }
    let files = fs::read_dir(vectors()).unwrap().map(|e| e.unwrap().file_name());
    let hostile: Vec<_> =
        files.filter_map(|f| f.into_string().ok()).filter(|f| f.starts_with("hostile_")).collect();
    for file in &hostile {
        refusal(file);
    }
    assert!(hostile.len() >= cases.len());
    assert!(!pwned.exists(), "a pickle was executed");
}

#[test]
fn a_valid_file_of_the_vectors_with_another_hash_is_a_mismatch() {
    let refusal =
        verify(&open_vector("miner0_g0.pt"), &layout(0), Some(&ModelHash([0; 24]))).unwrap_err();
    assert_eq!(refusal.reason(), "hash_mismatch");
    let other = verify(&open_vector("miner0_g1.pt"), &layout(0), None).unwrap_err();
    assert_eq!(other.reason(), "foreign_tensor");
}

#[test]
fn the_untrained_miner_of_the_vectors_is_the_published_slice_of_its_group() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = publish_base(folder.path());
    let expected = &expected()["miner0_g0"]["model_hash"];
    assert_eq!(manifest.model_hash.to_hex(), expected.as_str().unwrap());
    let (slice, miner) = (folder.path().join("model_expgroup_0.pt"), open_vector("miner0_g0.pt"));
    let slice = open(&slice, Limits::default()).unwrap();
    assert!(slice.tensors().keys().eq(miner.tensors().keys()));
    assert!(slice.tensors().keys().all(|name| slice.bytes(name) == miner.bytes(name)));
}

#[test]
fn the_outer_steps_of_the_vectors_are_repeated_bit_for_bit() {
    let file = open_vector("outer_sgd.safetensors");
    let values = |name: &str| file.to_f32(name).unwrap();
    let mut param = values("param0");
    let mut velocity = vec![0.0; param.len()];
    let steps = file.tensors().keys().filter(|name| name.starts_with("grad")).count();
    assert!(steps > 0);
    for step in 0..steps {
        OuterSgd::default()
            .step(&mut param, &mut velocity, &values(&format!("grad{step}")))
            .unwrap();
        let expected = values(&format!("param{}", step + 1));
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&param), bits(&expected), "step {step}");
    }
}

#[test]
fn float_types_of_the_vectors_widen_to_float32_exactly() {
    let file = open_vector("miner2_g0.safetensors");
    for (name, tensor) in file.tensors() {
        let bytes = file.bytes(name).unwrap();
        let wide = decode_f32(tensor.dtype(), &bytes).unwrap();
        let narrow = checkpoint::encode_f32(tensor.dtype(), &wide).unwrap();
        assert_eq!(narrow, *bytes, "{name}");
    }
}
