//! How fast the local pseudo-gradient is computed, beside copying the same bytes in the same run.
//!
//! `cargo bench -p checkpoint --bench aggregate [-- GiB]`, `GiB` being the size of one miner's file. Bytes are those that are
//! read: of the base and of every miner. `copy` is the rate of copying them to memory that is there, on as many threads;
//! `ratio` is the gradient's rate over that. Best of several rounds, files in the page cache.
#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run says so by ending")]

use std::{collections::BTreeMap, path::Path, time::Instant};

use checkpoint::{
    CHUNK, Checkpoint, Contribution, Dtype, Limits, MemoryTensors, PseudoGradient, SliceLayout,
    TensorSpec, open, write_safetensors,
};
use domain::Hotkey;
use rayon::prelude::*;

const ROUNDS: usize = 5;
const GIB: f64 = (1u64 << 30) as f64;

fn main() {
    // cargo passes flags of its own.
    let size = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(0.25);
    let folder = tempfile::tempdir().unwrap();
    for dtype in [Dtype::F32, Dtype::BF16] {
        let file = |n: usize| folder.path().join(format!("{n}.safetensors"));
        let specs = specs(dtype, (size * GIB) as usize);
        (0..=8).for_each(|n| write(&file(n), &specs, n as u64));
        let base = open(&file(0), Limits::trusted()).unwrap();
        for miners in [1, 3, 8] {
            let of = (1..=miners).map(|n| Contribution {
                hotkey: Hotkey::from_public_key([n as u8; 32]),
                weight: n as f64,
                path: file(n),
                model_hash: None,
            });
            let files: Vec<_> = (0..=miners).map(file).collect();
            measure(&base, &specs, of.collect(), &files.iter().map(|f| &**f).collect::<Vec<_>>());
        }
    }
}

/// Tensors of 16 MiB.
fn specs(dtype: Dtype, bytes: usize) -> BTreeMap<String, TensorSpec> {
    let rows = (16 << 20) / 4096 / dtype.size();
    let spec = TensorSpec { dtype, shape: vec![rows, 4096] };
    (0..bytes.div_ceil(16 << 20)).map(|n| (format!("layers.{n:04}.weight"), spec.clone())).collect()
}

fn write(path: &Path, specs: &BTreeMap<String, TensorSpec>, seed: u64) {
    let mut tensors = MemoryTensors::default();
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ seed;
    for (name, spec) in specs {
        let mut data = vec![0u8; spec.bytes()];
        for chunk in data.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Exponents of ordinary numbers.
            let bits = state & 0xbfff_bfff_bfff_bfff | 0x3000_3000_3000_3000;
            chunk.copy_from_slice(&(bits & 0xbeff_beff_beff_beff).to_le_bytes());
        }
        tensors.insert(name, spec.clone(), data).unwrap();
    }
    write_safetensors(path, &tensors).unwrap();
}

fn measure(
    base: &Checkpoint,
    specs: &BTreeMap<String, TensorSpec>,
    of: Vec<Contribution>,
    files: &[&Path],
) {
    let miners = of.len();
    let layout = SliceLayout { tensors: specs.clone(), ..SliceLayout::default() };
    let mut gradient = None;
    let verify = time(|| {
        gradient = Some(PseudoGradient::new(base, &layout, of, Limits::trusted()).unwrap());
    });
    let gradient = gradient.unwrap();
    assert!(gradient.skipped().is_empty(), "{gradient:?}");
    let dtype = specs.values().next().unwrap().dtype;
    let each: usize = specs.values().map(TensorSpec::bytes).sum();
    let gib = (each * (miners + 1)) as f64 / GIB;
    let len = gradient.layout().len();
    let opened: Vec<Checkpoint> =
        files.iter().map(|path| open(path, Limits::trusted()).unwrap()).collect();
    let mut copies = vec![1u8; each];
    // Parts as they are sent: one buffer, used again and again.
    let mut part = vec![1.0f32; 4 * CHUNK];
    let threads = rayon::current_num_threads();
    for threads in if threads > 1 { vec![1, threads] } else { vec![1] } {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (mut copy, mut sum) = (f64::MAX, f64::MAX);
        for _ in 0..ROUNDS {
            copy = copy.min(time(|| {
                pool.install(|| {
                    for file in &opened {
                        let mut rest = &mut copies[..];
                        for name in specs.keys() {
                            let bytes = file.bytes(name).unwrap();
                            let (to, after) = rest.split_at_mut(bytes.len());
                            rest = after;
                            to.par_chunks_mut(1 << 18)
                                .zip(bytes.par_chunks(1 << 18))
                                .for_each(|(to, from)| to.copy_from_slice(from));
                        }
                    }
                })
            }));
            sum = sum.min(time(|| {
                pool.install(|| {
                    for start in (0..len).step_by(part.len()) {
                        let count = part.len().min(len - start);
                        gradient.fill(start, &mut part[..count]).unwrap();
                    }
                })
            }));
        }
        println!(
            "{dtype:>4} {miners} miners {threads} threads: copy {:.2} gradient {:.2} GiB/s, ratio {:.2}",
            gib / copy,
            gib / sum,
            copy / sum,
        );
    }
    println!("{:>26} verification {:.2} GiB/s", "", gib / verify);
}

fn time(run: impl FnOnce()) -> f64 {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}
