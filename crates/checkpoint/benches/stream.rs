//! How fast a submission is verified while it streams, beside the rates of its parts on the same bytes in the same run.
//!
//! `cargo bench -p checkpoint --bench stream [-- GiB]`. `model hash` and `sha256` are the two hashes alone, each on one
//! core; a stream runs both over the same bytes and looks at every value. Rates are bytes of the file per second, the
//! best of three rounds. `ratio` is the stream's rate over that of the model hash alone.
//!
//! Where other programs take turns on the cores, elapsed time tells of them. So the second line has the processor time
//! of each thread: `caller` pushes, `lane` runs the model hash. `ratio` there is that of the model hash alone over the
//! busier of the two: what the stream reaches when each has a core for itself.
#![expect(clippy::print_stdout, reason = "a benchmark tells its figures")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run says so by ending")]

use std::{collections::BTreeMap, fs, hint::black_box, path::Path, sync::Arc, time::Instant};

use checkpoint::{
    Checkpoint, Dtype, Limits, MemoryTensors, Outcome, SliceLayout, Stream, TensorSource,
    TensorSpec, model_hash, open, verify, write_pt, write_safetensors,
};
use sha2::{Digest as _, Sha256};

const ROUNDS: usize = 3;
const GIB: f64 = (1u64 << 30) as f64;

fn main() {
    // cargo passes flags of its own.
    let size = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1.0);
    let folder = tempfile::tempdir().unwrap();
    for dtype in [Dtype::BF16, Dtype::F32] {
        for format in ["safetensors", "pt"] {
            let path = folder.path().join("model");
            let specs = write(&path, format, dtype, (size * GIB) as usize);
            measure(&path, format, dtype, specs);
        }
    }
}

/// A checkpoint of 16 MiB tensors.
fn write(path: &Path, format: &str, dtype: Dtype, bytes: usize) -> BTreeMap<String, TensorSpec> {
    let columns = 4096;
    let rows = (16 << 20) / columns / dtype.size();
    let mut tensors = MemoryTensors::default();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for layer in 0..bytes.div_ceil(16 << 20) {
        let spec = TensorSpec { dtype, shape: vec![rows, columns] };
        let mut data = vec![0u8; spec.bytes()];
        for chunk in data.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Exponents below the largest, so that every value is finite in every type.
            chunk.copy_from_slice(&(state & 0xbfff_bfff_bfff_bfff).to_le_bytes());
        }
        tensors.insert(&format!("layers.{layer:04}.weight"), spec, data).unwrap();
    }
    match format {
        "pt" => write_pt(path, &tensors).unwrap(),
        _ => write_safetensors(path, &tensors).unwrap(),
    };
    tensors.specs().clone()
}

fn measure(path: &Path, format: &str, dtype: Dtype, specs: BTreeMap<String, TensorSpec>) {
    let file = fs::read(path).unwrap();
    let spool = open(path, Limits::trusted()).unwrap();
    let held = Checkpoint::from_bytes(file.clone(), Limits::trusted()).unwrap();
    let layout = Arc::new(SliceLayout { tensors: specs, ..SliceLayout::default() });
    let hash = model_hash(&held).unwrap();
    let verify_held = || {
        black_box(verify(&held, &layout, Some(&hash)).unwrap());
    };
    let stream = |piece: usize| {
        let mut stream =
            Stream::new(Arc::clone(&layout), Limits::trusted(), Some(hash), None).unwrap();
        file.chunks(piece).for_each(|piece| stream.push(piece).unwrap());
        match stream.finish().unwrap().outcome {
            Outcome::Verified(verified) => assert_eq!(verified.model_hash, hash),
            Outcome::NeedsReread(rest) => assert_eq!(rest.verify(&spool).unwrap().model_hash, hash),
        }
    };
    let mut best = [Time::MAX; 5];
    for _ in 0..ROUNDS {
        let round = [
            time(|| {
                black_box(model_hash(&held).unwrap());
            }),
            time(|| {
                black_box(Sha256::digest(&file));
            }),
            time(verify_held),
            time(|| stream(1 << 20)),
            time(|| stream(16 << 10)),
        ];
        for (best, taken) in best.iter_mut().zip(round) {
            *best = best.min(taken);
        }
    }
    let gib = file.len() as f64 / GIB;
    let [hash, sha, verify, large, small] = best.map(|taken| gib / taken.elapsed);
    println!(
        "{format:>11} {dtype:>4} {gib:.2} GiB: model hash {hash:.2} sha256 {sha:.2} verify {verify:.2} | stream by \
         1 MiB {large:.2} (ratio {:.2}) by 16 KiB {small:.2} (ratio {:.2}) GiB/s",
        large / hash,
        small / hash,
    );
    let [hash, sha, verify, large, small] = best;
    let stream = |time: Time| {
        let (caller, lane) = (time.caller / gib, time.others / gib);
        format!(
            "caller {caller:.2} lane {lane:.2} (ratio {:.2})",
            hash.caller / gib / caller.max(lane)
        )
    };
    println!(
        "{:>25}: model hash {:.2} sha256 {:.2} verify {:.2} | stream by 1 MiB {} by 16 KiB {} s/GiB",
        "processor time",
        hash.caller / gib,
        sha.caller / gib,
        verify.caller / gib,
        stream(large),
        stream(small),
    );
}

/// In seconds: what a clock shows, and the processor's time of the calling thread and of the others.
#[derive(Clone, Copy)]
struct Time {
    elapsed: f64,
    caller: f64,
    others: f64,
}

impl Time {
    const MAX: Self = Self { elapsed: f64::MAX, caller: f64::MAX, others: f64::MAX };

    fn min(self, other: Self) -> Self {
        Self {
            elapsed: self.elapsed.min(other.elapsed),
            caller: self.caller.min(other.caller),
            others: self.others.min(other.others),
        }
    }
}

fn time(run: impl FnOnce()) -> Time {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
    let start = Instant::now();
    let (caller, process) = (thread_time(), process_time());
    run();
    let caller = thread_time() - caller;
    let others = (process_time() - process - caller).max(0.0);
    Time { elapsed: start.elapsed().as_secs_f64(), caller, others }
}

/// Seconds that this thread was on a processor, as Linux counts them; 0 elsewhere.
fn thread_time() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// As [`thread_time`], of all threads of this process, ended ones included, in ticks of 10 ms.
fn process_time() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
    fields.skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / 100.0
}
