//! The other side of the format: Python's torch reads what we write, and we read what it writes.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use checkpoint::{
    Dtype, Limits, MemoryTensors, TensorSource, TensorSpec, encode_f32, model_hash, open, write_pt,
    write_safetensors,
};
use serde_json::{Value, json};

use crate::setup::{open_vector, publish_base};

fn python() -> PathBuf {
    if let Some(python) = env::var_os("CONNITO_PYTHON") {
        return python.into();
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/python");
    if own.exists() { own } else { "python3".into() }
}

/// Runs a script of `tests/python` and gives the JSON that it prints.
fn run(script: &str, arguments: &[&Path]) -> Value {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python");
    let python = python();
    let output = Command::new(&python)
        .args(["-W", "ignore"])
        .arg(scripts.join(script))
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("cannot start {}: {e}; run `make setup`", python.display()));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !errors.contains("No module named"),
        "{} lacks what this test needs; run `make setup`\n{errors}",
        python.display()
    );
    assert!(output.status.success(), "{script}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// As torch names them.
fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "torch.float64",
        Dtype::F32 => "torch.float32",
        Dtype::F16 => "torch.float16",
        Dtype::BF16 => "torch.bfloat16",
        Dtype::I64 => "torch.int64",
        Dtype::I32 => "torch.int32",
        Dtype::I16 => "torch.int16",
        Dtype::I8 => "torch.int8",
        Dtype::U8 => "torch.uint8",
        Dtype::Bool => "torch.bool",
    }
}

/// Dtype, shape and bytes of every tensor, as the scripts print them.
fn described(tensors: &dyn TensorSource) -> Value {
    let entry = |(name, spec): (&String, &TensorSpec)| {
        let bytes = hex::encode(tensors.bytes(name).unwrap());
        (
            name.clone(),
            json!({ "dtype": torch_name(spec.dtype), "shape": spec.shape, "bytes": bytes }),
        )
    };
    Value::Object(tensors.specs().iter().map(entry).collect())
}

fn all_types() -> MemoryTensors {
    let mut tensors = MemoryTensors::default();
    let types = [
        Dtype::F64,
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I64,
        Dtype::I32,
        Dtype::I16,
        Dtype::I8,
        Dtype::U8,
        Dtype::Bool,
    ];
    for (nth, dtype) in types.into_iter().enumerate() {
        let spec = TensorSpec { dtype, shape: vec![nth + 1, 3] };
        let values: Vec<f32> = (0..spec.elements()).map(|n| n as f32 * 0.25 - 2.0).collect();
        let bytes = encode_f32(dtype, &values).unwrap_or_else(|| vec![1; spec.bytes()]);
        tensors.insert(&format!("layer.{nth}.weight"), spec, bytes).unwrap();
    }
    tensors.insert_f32("scalar", vec![], &[1.5]).unwrap();
    tensors.insert_f32("empty", vec![0, 3], &[]).unwrap();
    tensors.insert_f32("größe", vec![70_000], &[0.5; 70_000]).unwrap();
    tensors
}

#[test]
fn torch_loads_what_we_write_with_weights_only() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = all_types();
    let expected = described(&tensors);
    let (pt, st) = (folder.path().join("model.pt"), folder.path().join("model.safetensors"));
    write_pt(&pt, &tensors).unwrap();
    write_safetensors(&st, &tensors).unwrap();
    assert_eq!(run("describe.py", &[&pt, &st]), json!([expected, expected]));
}

#[test]
fn torch_loads_a_published_slice_and_finds_its_tensors_aligned() {
    let folder = tempfile::tempdir().unwrap();
    publish_base(folder.path());
    let path = folder.path().join("model_expgroup_1.pt");
    let expected = described(&open_vector("miner0_g1.pt"));
    assert_eq!(run("describe.py", &[&path]), json!([expected]));
    let file = fs::read(&path).unwrap();
    let slice = open(&path, Limits::default()).unwrap();
    for name in slice.tensors().keys() {
        let bytes = slice.bytes(name).unwrap().into_owned();
        let at = file.windows(bytes.len()).position(|part| part == bytes).unwrap();
        assert!(at.is_multiple_of(64), "{name} at {at}");
    }
}

#[test]
fn what_torch_saves_is_read_however_it_lies_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.pt");
    let expected = run("save.py", &[&path]);
    let read = open(&path, Limits::default()).unwrap();
    assert_eq!(described(&read), expected);
    for (name, contiguous) in
        [("plain", true), ("transposed", false), ("strided", false), ("tail", true)]
    {
        assert_eq!(read.tensors()[name].contiguous(), contiguous, "{name}");
    }
    // Written again by us and read again by torch, it is the same.
    let again = folder.path().join("again.pt");
    write_pt(&again, &read).unwrap();
    assert_eq!(run("describe.py", &[&again]), json!([expected]));
    assert_eq!(model_hash(&open(&again, Limits::default()).unwrap()), model_hash(&read));
}
