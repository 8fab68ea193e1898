//! The binary: it finds libtorch without help, stops when told, and may be killed at any moment.

use testkit::{Process, Running};

use super::*;

const START: Duration = Duration::from_secs(30);

/// A fixture, a scheduler, and evaluators as processes.
struct Processes {
    fixture: Fixture,
    scheduler: FakeScheduler,
    results: Results,
    url: String,
}

impl Processes {
    async fn new() -> Self {
        let (scheduler, results) = FakeScheduler::new();
        let url = scheduler.serve(ANY, &Shutdown::default()).await;
        Self { fixture: Fixture::new().await, scheduler, results, url }
    }

    fn environment(&self, worker: &str) -> Vec<(&'static str, String)> {
        self.fixture.environment(worker, testkit::unused_addr().unwrap(), &self.url)
    }

    fn start(&self, worker: &str) -> Running {
        let process = Process::new(env!("CARGO_BIN_EXE_svc-evaluator"));
        let environment = self.environment(worker).into_iter();
        environment
            .fold(process, |process, (name, value)| process.env(name, value))
            .spawn()
            .unwrap()
    }

    /// A round of `count` scores, all of the same file.
    async fn enqueue(&self, count: usize) {
        let base = self.fixture.altered(|_, _| {});
        let submission = self.fixture.submit("one.safetensors", &base).await;
        for n in 0..count {
            let job = self.fixture.score(&format!("score/{n}"), submission.clone());
            self.scheduler.enqueue(wire::Job { lease_ms: 2_000, batches: 12, ..job });
        }
    }
}

#[tokio::test]
async fn the_binary_starts_without_an_environment_and_stops_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let addr = testkit::unused_addr().unwrap();
    let mut running = Process::new(env!("CARGO_BIN_EXE_svc-evaluator"))
        .env("CONNITO_EVALUATOR_GRPC_ADDR", addr.to_string())
        .env("CONNITO_ARTIFACTS_URL", format!("file:{}", dir.path().display()))
        .env("CONNITO_DATA_DIR", dir.path())
        .env("CONNITO_SCHEDULER_URL", "http://127.0.0.1:1")
        .spawn()
        .unwrap();
    running.listens(addr, Duration::from_secs(20)).await.unwrap();
    running.stops_cleanly(Duration::from_secs(20)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_mid_job_gives_it_back_and_the_process_ends_well() {
    let mut world = Processes::new().await;
    let mut running = world.start("first");
    world.scheduler.enqueue(world.fixture.long("long"));
    while world.scheduler.held_by("first").is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.says("the base model is on the device", START).await.unwrap();
    running.terminate().unwrap();
    let told = world.results.next_of_any().await;
    let Some(Outcome::Failure(failure)) = told.result else { panic!("{told:?}") };
    assert_eq!((told.job_id.as_str(), failure.reason.as_str()), ("long", "worker_lost"));
    running.stops_cleanly(Duration::from_secs(20)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_evaluators_one_is_killed_in_mid_job_and_the_other_does_all_of_it_once() {
    const JOBS: usize = 20;
    let mut world = Processes::new().await;
    world.enqueue(JOBS).await;
    let (first, _second) = (world.start("first"), world.start("second"));
    let mut told: BTreeMap<String, wire::FinishJobRequest> = BTreeMap::new();
    // Both have come to work, and the first one has jobs.
    let mut workers = std::collections::BTreeSet::new();
    let mut killed = Vec::new();
    while told.len() < JOBS {
        let request = world.results.next_of_any().await;
        workers.insert(request.worker.clone());
        assert!(told.insert(request.job_id.clone(), request).is_none(), "no job is told twice");
        let held = world.scheduler.held_by("first");
        if killed.is_empty() && workers.len() == 2 && !held.is_empty() {
            first.kill().unwrap();
            killed = held;
        }
    }
    assert!(!killed.is_empty(), "the first one was killed with jobs in its hands");
    for job in &killed {
        let request = &told[job];
        let told_before = request.worker == "first";
        assert!(told_before || world.scheduler.given(job) == 2, "{job} was given out again");
    }
    let mut results = told.into_values().map(|request| match request.result {
        Some(Outcome::Measured(measured)) => measured,
        other => panic!("{}: {other:?}", request.job_id),
    });
    // Whoever measured: the same bits.
    let one = results.next().unwrap();
    for other in results {
        assert_eq!(
            (&one.losses, &one.baseline_losses, &one.batches_digest, &one.sketch),
            (&other.losses, &other.baseline_losses, &other.batches_digest, &other.sketch)
        );
    }
    assert!(world.results.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_does_not_suffice_twice_in_a_row_ends_the_process() {
    if fixture::device() != model::Device::Cpu {
        eprintln!("skipped: a CUDA libtorch alone has more address space than the limit here");
        return;
    }
    let mut world = Processes::new().await;
    // Enough for libtorch and the model, not for rows of a quarter of a million tokens.
    let limited = Process::new("sh").args([
        "-c",
        "ulimit -v 3000000; exec \"$0\"",
        env!("CARGO_BIN_EXE_svc-evaluator"),
    ]);
    let environment = world.environment("limited").into_iter();
    // What the plan would refuse is to be tried.
    let mut running = environment
        .fold(limited, |process, (name, value)| process.env(name, value))
        .env("CONNITO_EVALUATOR_MEMORY_LIMIT", "1000000000000000")
        .spawn()
        .unwrap();
    let huge = |id: &str| wire::Job {
        batch_size: 8,
        sequence_length: 1 << 18,
        ..world.fixture.job(id, JobKind::HeldOut)
    };
    world.scheduler.enqueue(huge("first"));
    world.scheduler.enqueue(world.fixture.job("between", JobKind::HeldOut));
    world.scheduler.enqueue(huge("second"));
    world.scheduler.enqueue(huge("third"));
    for (job, fails) in [("first", true), ("between", false), ("second", true), ("third", true)] {
        let told = world.results.next_of_any().await;
        assert_eq!(told.job_id, job);
        match told.result {
            Some(Outcome::Failure(failure)) if fails => {
                assert_eq!(failure.reason, "out_of_memory", "{}", failure.detail);
            }
            Some(Outcome::Measured(_)) if !fails => {}
            other => panic!("{job}: {other:?}"),
        }
    }
    let status = running.ends(Duration::from_secs(30)).await.unwrap();
    let output = running.output();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("two jobs in a row"), "{output}");
}
