//! Tokens per second of the forward pass, against the same model in Python `transformers` on the same
//! version of libtorch, the same threads and the same batches: both run in turn, never at once.
//!
//! ```text
//! scripts/setup-bench.sh
//! cargo bench --package model --bench forward -- --length 512,2048 --runs 3
//! ```
//!
//! Fails only when the peer's losses are others. Without the peer it measures this side alone.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(clippy::unwrap_used, reason = "a benchmark ends at what goes wrong")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    time::Duration,
};

use data::Batch;
use domain::Seed;
use model::{
    LanguageModel, LoadOptions, WeightType,
    init::{self, GenerateOptions, Width},
    use_threads,
};
use serde_json::{Value, json};

/// How losses may differ: other kernels, other orders of summation. In half precision one unit in the
/// last place of a router's input may send a token elsewhere.
fn tolerance(weights: WeightType) -> f64 {
    match weights {
        WeightType::Float32 => 1e-4,
        WeightType::BFloat16 | WeightType::Float16 => 2e-2,
    }
}

struct Arguments {
    width: Width,
    weights: WeightType,
    lengths: Vec<usize>,
    rows: usize,
    batches: usize,
    runs: usize,
    threads: u32,
    experts: Vec<String>,
}

impl Arguments {
    fn parse() -> Self {
        let mut this = Self {
            width: Width::Small,
            weights: WeightType::Float32,
            lengths: vec![512, 2048],
            rows: 1,
            batches: 2,
            runs: 3,
            threads: 1,
            experts: vec!["eager".to_owned(), "grouped_mm".to_owned()],
        };
        // Cargo adds `--bench`.
        let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
        while let Some(key) = words.next() {
            let value = words.next().unwrap_or_default();
            match key.as_str() {
                "--width" => this.width = value.parse().unwrap(),
                "--weights" => this.weights = serde_json::from_value(value.into()).unwrap(),
                "--length" => {
                    this.lengths = value.split(',').map(|n| n.parse().unwrap()).collect();
                }
                "--rows" => this.rows = value.parse().unwrap(),
                "--batches" => this.batches = value.parse().unwrap(),
                "--runs" => this.runs = value.parse().unwrap(),
                "--threads" => this.threads = value.parse().unwrap(),
                "--experts" => this.experts = value.split(',').map(str::to_owned).collect(),
                other => panic!("`{other}` is not an option"),
            }
        }
        this
    }

    fn dtype(&self) -> &'static str {
        match self.weights {
            WeightType::Float32 => "float32",
            WeightType::BFloat16 => "bfloat16",
            WeightType::Float16 => "float16",
        }
    }
}

/// One side's runs of the same batches.
struct Side {
    name: String,
    /// Seconds by the clock, and of the processor: where others use the machine too, the latter tell
    /// more.
    seconds: Vec<[f64; 2]>,
    losses: Vec<f64>,
    peak: u64,
}

impl Side {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), seconds: Vec::new(), losses: Vec::new(), peak: 0 }
    }

    /// The least of each.
    fn best(&self) -> [f64; 2] {
        [0, 1].map(|n| self.seconds.iter().map(|both| both[n]).fold(f64::INFINITY, f64::min))
    }
}

struct Peer {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    side: Side,
}

impl Peer {
    fn start(
        python: &Path,
        folder: &Path,
        batches: &Path,
        arguments: &Arguments,
        experts: &str,
    ) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peer.py");
        let mut child = Command::new(python)
            .arg(script)
            .args([folder, batches])
            .args([&arguments.threads.to_string(), arguments.dtype(), experts])
            .env("OMP_NUM_THREADS", arguments.threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let asks = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let side = Side::new(format!("transformers, {experts} experts"));
        let mut this = Self { child, asks, answers, side };
        let _ = this.answer();
        this
    }

    fn answer(&mut self) -> ([f64; 2], Vec<f64>) {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).expect("the peer has ended");
        self.side.peak = answer["peak_bytes"].as_u64().unwrap();
        let losses = answer["losses"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
        (serde_json::from_value(answer["seconds"].clone()).unwrap(), losses.collect())
    }

    fn run(&mut self) {
        writeln!(self.asks, "run").unwrap();
        let (seconds, losses) = self.answer();
        self.side.seconds.push(seconds);
        self.side.losses = losses;
    }

    fn end(self) -> Side {
        let Self { mut child, asks, side, .. } = self;
        drop(asks);
        child.wait().unwrap();
        side
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    use_threads(arguments.threads);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    let config = init::deepseek_config(arguments.width);
    let options = GenerateOptions { weights: arguments.weights, shard_bytes: Some(1 << 30) };
    let (generated, ()) =
        timed(|| init::generate(&folder, &config, &Seed([1; 32]), &options).unwrap());
    let load = LoadOptions { weights: arguments.weights, ..LoadOptions::default() };
    let (loaded, model) = timed(|| LanguageModel::from_hub(&folder, None, load).unwrap());
    let (digested, _) = timed(|| model.digest().unwrap());
    println!(
        "width {}, {}, {} threads: generated in {generated:.1?}, loaded in {loaded:.1?}, digest in {digested:.1?}",
        arguments.width,
        arguments.dtype(),
        arguments.threads,
    );
    let python = python();
    if python.is_none() {
        println!("no peer: scripts/setup-bench.sh makes one");
    }

    let mut agreed = true;
    for length in &arguments.lengths {
        let batches = batches(&arguments, *length, model.config().vocab_size);
        let path = dir.path().join("batches.json");
        std::fs::write(&path, to_json(&batches).to_string()).unwrap();
        let start = |python: &PathBuf| {
            let each = arguments.experts.iter();
            each.map(|experts| Peer::start(python, &folder, &path, &arguments, experts)).collect()
        };
        let mut peers: Vec<Peer> = python.as_ref().map(start).unwrap_or_default();
        let mut ours = Side::new("connito");
        // The first run of each warms it up.
        for run in 0..=arguments.runs {
            let before = processor_seconds();
            let (took, losses) = timed(|| model.losses(&batches).unwrap());
            ours.seconds.push([took.as_secs_f64(), processor_seconds() - before]);
            ours.losses = losses;
            peers.iter_mut().for_each(Peer::run);
            if run == 0 {
                ours.seconds.clear();
                peers.iter_mut().for_each(|peer| peer.side.seconds.clear());
            }
        }
        ours.peak = peak_bytes();
        let peers: Vec<Side> = peers.into_iter().map(Peer::end).collect();
        agreed &= report(&arguments, *length, &ours, &peers);
    }
    if agreed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints the table of one length; whether all losses agree.
fn report(arguments: &Arguments, length: usize, ours: &Side, peers: &[Side]) -> bool {
    let tokens = (arguments.batches * arguments.rows * length) as f64;
    println!("\n{} batches of {} x {length} tokens", arguments.batches, arguments.rows);
    println!(
        "{:<34} {:>9} {:>9} {:>7} {:>9} {:>7} {:>9}",
        "", "best s", "tokens/s", "ratio", "CPU s", "ratio", "peak MiB"
    );
    let mut agreed = true;
    let [our_seconds, our_cpu] = ours.best();
    for side in std::iter::once(ours).chain(peers) {
        let [seconds, cpu] = side.best();
        println!(
            "{:<34} {seconds:>9.3} {:>9.0} {:>7.2} {cpu:>9.3} {:>7.2} {:>9}",
            side.name,
            tokens / seconds,
            seconds / our_seconds,
            cpu / our_cpu,
            side.peak >> 20,
        );
        let apart = side.losses.iter().zip(&ours.losses).map(|(a, b)| (a - b).abs());
        let apart = apart.fold(0.0, f64::max);
        if apart > tolerance(arguments.weights) {
            println!("its losses are {apart:e} apart: {:?} and {:?}", side.losses, ours.losses);
            agreed = false;
        }
    }
    agreed
}

/// Batches of ids without pattern, unpadded.
fn batches(arguments: &Arguments, length: usize, vocabulary: i64) -> Vec<Batch> {
    let mut state = 1u64;
    let mut id = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as i64 % vocabulary
    };
    (0..arguments.batches)
        .map(|_| {
            let ids: Vec<i64> = (0..arguments.rows * length).map(|_| id()).collect();
            Batch::new(length, ids.clone(), ids).unwrap()
        })
        .collect()
}

fn to_json(batches: &[Batch]) -> Value {
    let rows = |batch: &Batch| json!(batch.ids().chunks(batch.length()).collect::<Vec<_>>());
    batches.iter().map(rows).collect()
}

fn python() -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.venv-bench/bin/python");
    let path = std::env::var_os("CONNITO_BENCH_PYTHON").map_or(default.into(), PathBuf::from);
    path.exists().then_some(path)
}

/// The most memory that this process has ever held.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// What this process has used of the processor: user and system time of all threads, in hundredths of
/// a second as the kernel counts.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name before may have spaces in it.
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks = fields.split_whitespace().skip(11).take(2).map(|n| n.parse::<f64>().unwrap());
    ticks.sum::<f64>() / 100.0
}

fn timed<T>(run: impl FnOnce() -> T) -> (Duration, T) {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
    let began = std::time::Instant::now();
    let result = run();
    (began.elapsed(), result)
}
