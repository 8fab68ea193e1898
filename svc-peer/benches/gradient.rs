//! How fast a validator's own gradient is made: miners' files opened, verified and added up, the sum encoded,
//! hashed and written, beside copying as many float32 in the same run.
//!
//! `cargo bench -p svc-peer --bench gradient [-- million elements]`. Rates are bytes of float32 of the gradient per
//! second; `ratio` is over copying them. `peak` is memory on the heap beyond what was there before: files are
//! mapped. Best of several rounds.
#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run says so by ending")]

use std::{hint::black_box, path::Path, time::Instant};

use checkpoint::{
    Codec, Contribution, ExpertGroups, MemoryTensors, Publication, publish_model, write_safetensors,
};
use domain::{ExpertGroup, GlobalVersion, Hotkey};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const ROUNDS: usize = 3;
const MINERS: u8 = 4;
const WIDTH: usize = 1000;

fn main() {
    // cargo passes flags of its own.
    let size: f64 = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(32.0);
    let rows = (size * 1e6 / WIDTH as f64 / 4.0) as usize * 2;
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    publish(&base, rows);
    let miners: Vec<_> = (1..=MINERS).map(|n| miner(folder.path(), n, rows)).collect();
    let len = 2 * rows * WIDTH;
    let gib = 4.0 * len as f64 / f64::from(1 << 30);
    let (from, mut to) = (vec![1.0f32; len], vec![0.0f32; len]);
    let copy = best(|| to.copy_from_slice(black_box(&from)));
    drop((from, to));
    println!("{MINERS} miners, {gib:.2} GiB of float32: copy {:.2} GiB/s", gib / copy);
    for codec in Codec::ALL {
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        let taken = best(|| {
            svc_peer::bench::encode(&base, miners.clone(), codec, folder.path()).unwrap();
        });
        let peak = HEAP.peak_usage().saturating_sub(before) >> 20;
        println!(
            "{codec:>10}: {:.2} GiB/s (ratio {:.2}), peak {peak} MiB",
            gib / taken,
            copy / taken
        );
    }
}

fn tensors(seed: u64, rows: usize) -> MemoryTensors {
    let mut tensors = MemoryTensors::default();
    for (name, shape) in [("down_proj", vec![WIDTH, rows]), ("gate_up_proj", vec![rows, WIDTH])] {
        let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ seed;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let values: Vec<f32> = (0..rows * WIDTH).map(|_| next()).collect();
        let name = format!("model.layers.1.mlp.experts.0.{name}");
        tensors.insert_f32(&name, shape, &values).unwrap();
    }
    tensors
}

fn publish(folder: &Path, rows: usize) {
    let mut model = tensors(0, rows);
    model.insert_f32("model.embed_tokens.weight", vec![1], &[0.0]).unwrap();
    let layers = [(1, vec![(0, 0)])].into();
    let publication = Publication {
        global_version: GlobalVersion(1),
        expert_group: ExpertGroup(0),
        parent: None,
        config: serde_json::json!({}),
        groups: ExpertGroups([(ExpertGroup(0), layers)].into()),
    };
    publish_model(folder, &model, publication).unwrap();
}

fn miner(folder: &Path, n: u8, rows: usize) -> Contribution {
    let path = folder.join(format!("miner-{n}"));
    write_safetensors(&path, &tensors(n.into(), rows)).unwrap();
    let hotkey = Hotkey::from_public_key([n; 32]);
    Contribution { hotkey, weight: f64::from(n), path, model_hash: None }
}

fn best(mut run: impl FnMut()) -> f64 {
    let time = |run: &mut dyn FnMut()| {
        #[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(|_| time(&mut run)).fold(f64::MAX, f64::min)
}
