//! Whether the plan of memory is true: a child process loads a model, overlays one submission, stages
//! another and runs, while it watches how much memory it holds.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use checkpoint::{HubModel, Limits, MemoryTensors, TensorSource as _};
use data::Batch;
use domain::{ExpertGroup, Seed};
use model::{
    BatchShape, GroupExperts, LanguageModel, LoadOptions, MemoryPlan, Place, WeightType,
    init::{self, GenerateOptions, Width},
    single_threaded,
};
use serde_json::Value;

const SHAPE: BatchShape = BatchShape { rows: 2, length: 1024 };

/// The small width with fewer layers and experts: large enough to be seen beside libtorch.
fn config() -> Value {
    let mut config = init::deepseek_config(Width::Small);
    config["num_hidden_layers"] = 24.into();
    config["n_routed_experts"] = 32.into();
    config
}

fn group() -> GroupExperts {
    init::demo_groups(&config(), 2).unwrap().0.remove(&ExpertGroup(0)).unwrap()
}

fn plan(weights: WeightType) -> MemoryPlan {
    let options = LoadOptions { weights, ..LoadOptions::default() };
    MemoryPlan::new(&config(), Some(&group()), options, SHAPE, 1).unwrap()
}

/// Memory of this process that is no file's.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
#[ignore = "the child of the next test"]
fn child() {
    let weights: WeightType =
        serde_json::from_value(std::env::var("CONNITO_TEST_WEIGHTS").unwrap().into()).unwrap();
    single_threaded();
    let dir = tempfile::tempdir().unwrap();
    let options = GenerateOptions { weights, shard_bytes: Some(10 << 20) };
    init::generate(dir.path(), &config(), &Seed([1; 32]), &options).unwrap();
    let ids: Vec<i64> = (0..SHAPE.rows * SHAPE.length).map(|n| (n * 31 % 12_800) as i64).collect();
    let batch = Batch::new(SHAPE.length, ids.clone(), ids).unwrap();
    let submission = dir.path().join("submission.safetensors");
    write_submission(&HubModel::open(dir.path()).unwrap(), &submission);
    let open = || checkpoint::open(&submission, Limits::default()).unwrap();

    let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watch = std::thread::spawn({
        let (peak, stop) = (peak.clone(), stop.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::yield_now();
            }
        }
    });
    let before = anonymous();
    let load = LoadOptions { weights, ..LoadOptions::default() };
    let mut model = LanguageModel::from_hub(dir.path(), Some(&group()), load).unwrap();
    model.overlay(&open()).unwrap();
    let staged = model.stager().stage(&open()).unwrap();
    assert_eq!(model.losses(&[batch]).unwrap().len(), 1);
    drop(staged);
    stop.store(true, Ordering::Relaxed);
    watch.join().unwrap();
    eprintln!("grown by {}", peak.load(Ordering::Relaxed) - before);
}

/// The base's own experts as a submission.
fn write_submission(hub: &HubModel, path: &Path) {
    let mut tensors = MemoryTensors::default();
    for (layer, experts) in group() {
        for (_, id) in experts {
            for part in ["gate_up_proj", "down_proj"] {
                let name = format!("model.layers.{layer}.mlp.experts.{id}.{part}");
                let bytes = hub.bytes(&name).unwrap().into_owned();
                tensors.insert(&name, hub.specs()[&name].clone(), bytes).unwrap();
            }
        }
    }
    checkpoint::write_safetensors(path, &tensors).unwrap();
}

#[test]
fn the_plan_is_no_less_than_what_is_used_and_no_more_than_twice_that() {
    for (weights, name) in [(WeightType::Float32, "float32"), (WeightType::BFloat16, "bfloat16")] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("CONNITO_TEST_WEIGHTS", name)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stderr);
        let grown = text.lines().find_map(|line| line.strip_prefix("grown by "));
        let used: u64 = grown.unwrap_or_else(|| panic!("{text}")).parse().unwrap();
        let plan = plan(weights);
        let planned = plan.needed(Place::Host);
        assert!((used..=2 * used).contains(&planned), "{name}: {used} bytes were used\n{plan}");
    }
}
