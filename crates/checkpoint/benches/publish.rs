//! How fast a stepped model is published, beside writing as many bytes plainly in the same run.
//!
//! `cargo bench -p checkpoint --bench publish [-- GiB]`, `GiB` being the size of the model. A model of two groups that hold
//! nine tenths of it; every byte of it goes to four files, and is hashed for each. `plain` writes as many bytes with one
//! thread and waits until the disk has them; `ratio` is over that. Rates are bytes written per second.
#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run says so by ending")]

use std::{fs::File, io::Write as _, path::Path, time::Instant};

use checkpoint::{
    Dtype, ExpertGroups, Manifest, MemoryTensors, OptimizerState, OuterSgd, OuterStep, Publication,
    PublishedModel, TensorSpec, VectorLayout, publish_model,
};
use domain::{ExpertGroup, GlobalVersion};

const GIB: f64 = (1u64 << 30) as f64;

fn main() {
    // cargo passes flags of its own.
    let size: f64 = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(0.25);
    for dtype in [Dtype::BF16, Dtype::F32] {
        let folder = tempfile::tempdir().unwrap();
        measure(dtype, (size * GIB) as usize, folder.path());
    }
}

/// A model in the subnet's form: matrices of 4 MiB.
fn model(dtype: Dtype, bytes: usize) -> (MemoryTensors, ExpertGroups) {
    let mut tensors = MemoryTensors::default();
    let spec = TensorSpec { dtype, shape: vec![(4 << 20) / 1024 / dtype.size(), 1024] };
    let data: Vec<u8> = (0..spec.bytes()).map(|n| (n % 60) as u8).collect();
    let mut add = |name: String| tensors.insert(&name, spec.clone(), data.clone()).unwrap();
    let experts = (bytes / (8 << 20)).max(4) as u32;
    for expert in 0..experts {
        add(format!("model.layers.1.mlp.experts.{expert}.gate_up_proj"));
        add(format!("model.layers.1.mlp.experts.{expert}.down_proj"));
    }
    for shared in 0..experts / 5 {
        add(format!("model.layers.{shared}.self_attn.weight"));
    }
    let members = |of: std::ops::Range<u32>| -> Vec<[u32; 2]> { of.map(|n| [n, n]).collect() };
    let json = serde_json::json!({
        "0": { "1": members(0..experts / 2) },
        "1": { "1": members(experts / 2..experts) },
    });
    (tensors, serde_json::from_value(json).unwrap())
}

fn measure(dtype: Dtype, bytes: usize, folder: &Path) {
    let (tensors, groups) = model(dtype, bytes);
    let publication = |version| Publication {
        global_version: GlobalVersion(version),
        expert_group: ExpertGroup(0),
        parent: None,
        config: serde_json::json!({}),
        groups: groups.clone(),
    };
    let at = |name: &str| folder.join(name);
    let mut manifest = None;
    let published = time(|| {
        manifest = Some(publish_model(&at("base"), &tensors, publication(1)).unwrap());
    });
    let manifest: Manifest = manifest.unwrap();
    let size = |manifest: &Manifest| -> u64 {
        manifest.slices.values().flat_map(|slice| slice.files.values()).map(|file| file.bytes).sum()
    };
    let plain = |bytes: u64| {
        let data = vec![7; 1 << 20];
        time(|| {
            let mut file = File::create(at("plain")).unwrap();
            (0..bytes >> 20).for_each(|_| file.write_all(&data).unwrap());
            file.sync_all().unwrap();
        })
    };
    report(dtype, "publish", size(&manifest), published, plain(size(&manifest)));
    let base = PublishedModel::open(&at("base")).unwrap();
    let layout = manifest.layout(ExpertGroup(0)).unwrap();
    let gradient = vec![1e-3f32; VectorLayout::new(&layout.tensors).len()];
    let fresh = OptimizerState::fresh();
    let step = OuterStep {
        base: &base,
        tensors: &layout.tensors,
        state: &fresh,
        optimizer: OuterSgd::default(),
        gradient: &gradient,
    };
    let stepped = time(|| {
        step.publish(&at("next"), "optimizer", publication(2)).unwrap();
    });
    let all = size(&manifest) + std::fs::metadata(at("next/optimizer")).unwrap().len();
    report(dtype, "step and publish", all, stepped, plain(all));
}

fn report(dtype: Dtype, what: &str, bytes: u64, taken: f64, plain: f64) {
    let gib = bytes as f64 / GIB;
    println!(
        "{dtype:>4} {what:>16} {gib:.2} GiB on {} threads: plain {:.2} this {:.2} GiB/s (ratio {:.2})",
        rayon::current_num_threads(),
        gib / plain,
        gib / taken,
        plain / taken,
    );
}

fn time(run: impl FnOnce()) -> f64 {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}
