//! How fast slices are encoded, decoded, hashed and reduced, beside copying the same float32 in the same run.
//!
//! `cargo bench -p checkpoint --bench slices [-- million elements]`. Rates are bytes of float32 per second, for a reduction those
//! of all members; `ratio` is over copying, on as many threads. Best of several rounds.
#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run says so by ending")]

use std::{hint::black_box, time::Instant};

use checkpoint::{ChunkDigests, Codec, Member, OuterSgd, Reduction, Rule};
use domain::Hotkey;
use rayon::prelude::*;

const ROUNDS: usize = 5;

fn main() {
    // cargo passes flags of its own.
    let size: f64 = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(32.0);
    let len = (size * 1e6) as usize;
    let threads = rayon::current_num_threads();
    for threads in if threads > 1 { vec![1, threads] } else { vec![1] } {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| measure(threads, len));
    }
}

fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next()).collect()
}

fn measure(threads: usize, len: usize) {
    let values = noise(1, len);
    let mut to = vec![1.0f32; len];
    let gb = 4.0 * len as f64 / 1e9;
    let copy = best(|| {
        to.par_chunks_mut(1 << 16)
            .zip(values.par_chunks(1 << 16))
            .for_each(|(to, from)| to.copy_from_slice(from));
    });
    println!("{threads} threads: copy {:.2} GB/s", gb / copy);
    for codec in Codec::ALL {
        let mut bytes = vec![1; codec.encoded_len(len)];
        let encode = best(|| codec.encode(&values, &mut bytes).unwrap());
        let decode = best(|| codec.decode(&bytes, &mut to).unwrap());
        let digest = best(|| drop(black_box(ChunkDigests::of(1 << 20, &bytes).unwrap())));
        println!(
            "{codec:>10}: encode {:.2} (ratio {:.2}) decode {:.2} (ratio {:.2}) digests {:.2} GB/s",
            gb / encode,
            copy / encode,
            gb / decode,
            copy / decode,
            bytes.len() as f64 / 1e9 / digest,
        );
    }
    let mut velocity = vec![0.0; len];
    let step = best(|| {
        to.par_chunks_mut(1 << 14)
            .zip(velocity.par_chunks_mut(1 << 14))
            .zip(values.par_chunks(1 << 14))
            .for_each(|((p, v), g)| OuterSgd::default().step(p, v, g).unwrap());
    });
    println!("{:>10}: {:.2} GB/s of parameters (ratio {:.2})", "step", gb / step, copy / step);
    let count = 8;
    let rows: Vec<Vec<f32>> = (0..count as u64).map(|n| noise(n, len / 8)).collect();
    let keys: Vec<Hotkey> =
        (0..count).map(|n| Hotkey::from_public_key([n as u8 + 1; 32])).collect();
    for (name, rule, weight) in [
        ("mean", Rule::Mean, 0.0),
        ("trimmed", Rule::TrimmedMean { per_side: 0.25 }, 0.0),
        ("median", Rule::CoordinateMedian, 0.0),
        ("trimmed by stake", Rule::TrimmedMean { per_side: 0.25 }, 0.1),
        ("clipping", Rule::CenteredClipping { radius: 100.0, iterations: 3 }, 0.0),
    ] {
        let of = |(n, (hotkey, values))| {
            let values: &Vec<f32> = values;
            Member { hotkey, weight: 1.0 + weight * f64::from(n), values }
        };
        let members: Vec<Member<'_>> = (0u8..).zip(keys.iter().zip(&rows)).map(of).collect();
        let reduction = Reduction { rule, max_norm: None, vector_len: len };
        let taken = best(|| {
            reduction
                .reduce(&members, |chunk| {
                    black_box(chunk);
                })
                .unwrap();
        });
        println!("{name:>20} of {count}: {:.2} GB/s (ratio {:.2})", gb / taken, copy / taken);
    }
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
