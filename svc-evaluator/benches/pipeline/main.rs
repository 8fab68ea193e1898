//! Whole evaluations against bare forward passes over the same batches, and two processes against one.
//!
//! ```text
//! cargo bench --package svc-evaluator --bench pipeline -- --width small --submissions 10
//! ```
//!
//! The bare passes are run by this process, half of them before and half after the evaluation; the
//! evaluator is the binary, with the same threads, against a scheduler in this process. Loading and
//! drawing come before the clock starts, and are told apart. Nothing is asserted but that the losses
//! are those of the bare passes: figures belong to the machine.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]
#![expect(clippy::unwrap_used, reason = "a benchmark ends at what goes wrong")]

mod inputs;
#[expect(dead_code, reason = "the tests' scheduler can do more")]
#[path = "../../tests/worker/scheduler.rs"]
mod scheduler;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use domain::Seed;
use inputs::{Arguments, Inputs};
use kit::Shutdown;
use proto::scheduler::v1::{self as wire, finish_job_request::Result as Outcome};
use scheduler::{FakeScheduler, Results};
use testkit::{Process, Running};

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(bench(&Arguments::parse()));
}

async fn bench(arguments: &Arguments) {
    model::use_threads(arguments.threads);
    let inputs = Inputs::new(arguments).await;
    println!(
        "{} width on {}, {} per weight, group of {}; {} batches of {} x {} tokens; {} threads\n",
        arguments.width,
        arguments.device,
        arguments.weights_text(),
        inputs.readable_group(),
        arguments.batches,
        arguments.rows,
        arguments.length,
        arguments.threads
    );
    whole_against_bare(arguments, &inputs).await;
    if arguments.processes {
        two_against_one(arguments, &inputs).await;
    }
}

/// Ten evaluations are to take no more than 1.1 times eleven bare passes.
async fn whole_against_bare(arguments: &Arguments, inputs: &Inputs) {
    let count = arguments.submissions;
    let passes = count + 1;
    let (before, losses) = bare(inputs, passes / 2);
    let mut world = World::new().await;
    let evaluator = world.start(inputs, FIRST);
    world.warm_up(inputs, 1).await;
    let peak = Peak::watch(evaluator.id().unwrap());
    let (whole, measured) = world.evaluate(inputs, count).await;
    let peak = peak.stop();
    let steps = steps(world.admin);
    drop(evaluator);
    let (after, _) = bare(inputs, passes - passes / 2);
    for measured in &measured {
        assert_eq!(measured.baseline_losses, losses, "the same bits in another process");
    }

    let bare = before + after;
    let tokens = (arguments.batches * arguments.rows * arguments.length * passes) as f64;
    let line = |what: &str, time: Duration| {
        println!(
            "{what:<44} {:>8.2} s {:>8.0} tokens/s",
            time.as_secs_f64(),
            tokens / time.as_secs_f64()
        );
    };
    line(&format!("{passes} bare forward passes"), bare);
    line(&format!("whole evaluation of {count} submissions"), whole);
    println!("ratio {:.3} (to be at most 1.1)\n", whole.as_secs_f64() / bare.as_secs_f64());
    let (base, submission) = (inputs.base_bytes(), inputs.group_bytes());
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("base model on the device              {:>8.0} MiB", mib(base));
    println!("a submission on the device            {:>8.0} MiB", mib(submission));
    println!("base and two submissions              {:>8.0} MiB", mib(base + 2 * submission));
    println!("before the first submission, own      {:>8.0} MiB", mib(peak.first));
    println!("peak of own memory                    {:>8.0} MiB", mib(peak.anonymous));
    println!("peak with mapped files                {:>8.0} MiB\n", mib(peak.all));
    println!("steps of a submission, on average");
    for (step, seconds) in steps {
        println!("    {step:<40} {:>8.3} s", seconds / count as f64);
    }
    println!();
}

/// Seconds that the evaluator has spent with each step of all its jobs.
fn steps(admin: SocketAddr) -> Vec<(String, f64)> {
    let mut stream = TcpStream::connect(admin).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let sums = page.lines().filter_map(|line| {
        let (step, seconds) =
            line.strip_prefix("evaluator_step_seconds_sum{step=\"")?.split_once("\"} ")?;
        Some((step.to_owned(), seconds.parse().ok()?))
    });
    sums.collect()
}

/// Two processes are to take at most 0.6 of the time of one, where cores allow.
async fn two_against_one(arguments: &Arguments, inputs: &Inputs) {
    let count = 2 * arguments.submissions;
    let mut took = Vec::new();
    for workers in [1, 2] {
        let mut world = World::new().await;
        let names: Vec<_> = (0..workers).map(|n| format!("worker-{n}")).collect();
        let _evaluators: Vec<_> = names.iter().map(|name| world.start(inputs, name)).collect();
        world.warm_up(inputs, workers).await;
        let (time, _) = world.evaluate(inputs, count).await;
        println!("{workers} process(es), {count} submissions {:>27.2} s", time.as_secs_f64());
        took.push(time.as_secs_f64());
    }
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    println!(
        "ratio {:.3} on {cores} cores (to be at most 0.6 where they allow)",
        took[1] / took[0]
    );
}

/// Bare forward passes of the base, and their losses.
fn bare(inputs: &Inputs, passes: usize) -> (Duration, Vec<f64>) {
    let model = inputs.load();
    let began = now();
    let mut losses = Vec::new();
    for _ in 0..passes {
        losses = model.losses(&inputs.drawn.batches).unwrap();
    }
    (began.elapsed(), losses)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark is about time")]
fn now() -> Instant {
    Instant::now()
}

/// A scheduler and what it is told.
struct World {
    scheduler: FakeScheduler,
    results: Results,
    url: String,
    /// Of the process that was started first.
    admin: SocketAddr,
}

impl World {
    async fn new() -> Self {
        let (scheduler, results) = FakeScheduler::new();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let url = scheduler.serve(any, &Shutdown::default()).await;
        Self { scheduler, results, url, admin: testkit::unused_addr().unwrap() }
    }

    fn start(&self, inputs: &Inputs, worker: &str) -> Running {
        let mut process = Process::new(env!("CARGO_BIN_EXE_svc-evaluator"));
        if worker == FIRST {
            process = process.env("CONNITO_EVALUATOR_ADMIN_ADDR", self.admin.to_string());
        }
        let environment = inputs.environment(worker, &self.url).into_iter();
        environment
            .fold(process, |process, (name, value)| process.env(name, value))
            .spawn()
            .unwrap()
    }

    /// Until every worker has the model on its device and the batches drawn. The jobs last long
    /// enough for nobody to get two.
    async fn warm_up(&mut self, inputs: &Inputs, workers: usize) {
        let began = now();
        let mut warm = std::collections::BTreeSet::new();
        while warm.len() < workers {
            for n in 0..workers {
                self.scheduler.enqueue(inputs.warm_up(n));
            }
            for _ in 0..workers {
                let told = self.results.next_of_any().await;
                assert!(matches!(told.result, Some(Outcome::Measured(_))), "{told:?}");
                warm.insert(told.worker);
            }
        }
        println!("start, load and draw {:>33.2} s", began.elapsed().as_secs_f64());
    }

    /// A round of scores, from the first lease to the last result.
    async fn evaluate(&mut self, inputs: &Inputs, count: usize) -> (Duration, Vec<wire::Measured>) {
        let began = now();
        for n in 0..count {
            self.scheduler.enqueue(inputs.score(n));
        }
        let mut measured = Vec::new();
        for _ in 0..count {
            let told = self.results.next_of_any().await;
            match told.result {
                Some(Outcome::Measured(one)) => measured.push(one),
                other => panic!("{}: {other:?}", told.job_id),
            }
        }
        (began.elapsed(), measured)
    }
}

/// Largest memory of a process while it was watched, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Memory {
    first: u64,
    anonymous: u64,
    all: u64,
}

struct Peak {
    stop: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<Memory>,
}

impl Peak {
    fn watch(id: u32) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut peak = Memory::default();
            loop {
                let text = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
                let of = |key: &str| {
                    let line = text.lines().find_map(|line| line.strip_prefix(key));
                    let kib = line.and_then(|line| line.trim_end_matches("kB").trim().parse().ok());
                    1024 * kib.unwrap_or(0u64)
                };
                let own = of("RssAnon:");
                if peak.first == 0 {
                    peak.first = own;
                }
                peak.anonymous = peak.anonymous.max(own);
                peak.all = peak.all.max(of("VmHWM:"));
                if stopped.recv_timeout(Duration::from_millis(20)).is_ok() {
                    return peak;
                }
            }
        });
        Self { stop, thread }
    }

    fn stop(self) -> Memory {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap()
    }
}

/// The worker whose steps are looked at.
const FIRST: &str = "first";

/// The seed of everything here.
const SEED: Seed = Seed([11; 32]);
