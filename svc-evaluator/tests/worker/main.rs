//! The evaluator as a whole against a scheduler in the test: real artifacts, real model.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod faults;
mod fixture;
mod pipeline;
mod process;
mod scheduler;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::atomic::Ordering,
    time::Duration,
};

use fixture::Fixture;
use kit::Shutdown;
use proto::{
    evaluator::v1::{
        GetStatusRequest, GetStatusResponse, evaluator_service_client::EvaluatorServiceClient,
    },
    scheduler::v1::{self as wire, JobKind, Measured, finish_job_request::Result as Outcome},
};
use scheduler::{FakeScheduler, Results};
use tokio::task::JoinHandle;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A fixture, a scheduler and an evaluator that pulls from it.
struct World {
    fixture: Fixture,
    scheduler: FakeScheduler,
    results: Results,
    evaluator: SocketAddr,
    shutdown: Shutdown,
    running: JoinHandle<anyhow::Result<()>>,
}

impl World {
    async fn start() -> Self {
        let (scheduler, results) = FakeScheduler::new();
        let url = scheduler.serve(ANY, &Shutdown::default()).await;
        Self::with(scheduler, results, url).await
    }

    async fn with(scheduler: FakeScheduler, results: Results, url: String) -> Self {
        Self::with_config(scheduler, results, url, |_| {}).await
    }

    async fn with_config(
        scheduler: FakeScheduler,
        results: Results,
        url: String,
        change: impl FnOnce(&mut svc_evaluator::Config),
    ) -> Self {
        let fixture = Fixture::new().await;
        let shutdown = Shutdown::default();
        let evaluator = testkit::unused_addr().unwrap();
        let mut config = fixture.config(evaluator);
        change(&mut config);
        let run = svc_evaluator::run(config, fixture.common(url), shutdown.clone());
        let running = Shutdown::default().spawn(run);
        testkit::connects(evaluator, Duration::from_secs(10)).await.unwrap();
        Self { fixture, scheduler, results, evaluator, shutdown, running }
    }

    async fn measured(&mut self, job: &str) -> Measured {
        match self.results.next().await {
            (id, Outcome::Measured(measured)) if id == job => measured,
            other => panic!("{other:?}"),
        }
    }

    async fn failed(&mut self, job: &str) -> wire::WorkerFailure {
        match self.results.next().await {
            (id, Outcome::Failure(failure)) if id == job => failure,
            other => panic!("{other:?}"),
        }
    }

    async fn invalid(&mut self, job: &str) -> wire::Invalid {
        match self.results.next().await {
            (id, Outcome::Invalid(invalid)) if id == job => invalid,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the evaluator's status is as `wanted` says.
    async fn status(&self, wanted: impl Fn(&GetStatusResponse) -> bool) -> GetStatusResponse {
        let url = format!("http://{}", self.evaluator);
        let mut client = EvaluatorServiceClient::connect(url).await.unwrap();
        let asking = async {
            loop {
                let status = client.get_status(GetStatusRequest {}).await.unwrap().into_inner();
                if wanted(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), asking).await.expect("a status in time")
    }

    async fn serving(&self) -> i32 {
        let url = format!("http://{}", self.evaluator);
        let mut health = HealthClient::new(kit::channel(&url, &kit::Tls::default()).unwrap());
        let service = "connito.evaluator.v1.EvaluatorService".to_owned();
        health.check(HealthCheckRequest { service }).await.unwrap().into_inner().status
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_submission_is_measured_on_the_same_batches_as_the_base() {
    let mut world = World::start().await;
    let fixture = &world.fixture;
    let trained = fixture.trained();
    let submission = fixture.submit("honest.safetensors", &trained).await;
    let copy = fixture.submit("honest.pt", &trained).await;
    world.scheduler.enqueue(fixture.job("baseline", JobKind::Baseline));
    world.scheduler.enqueue(fixture.score("score", submission));
    world.scheduler.enqueue(fixture.score("copy", copy));
    world.scheduler.enqueue(fixture.job("held-out", JobKind::HeldOut));

    let (round, held_out) = (fixture.round_batches(4, 3).await, fixture.held_out_batches().await);
    let (mut model, sketch) = (fixture.load(), fixture.sketch(&trained));
    let digest = model.digest().unwrap();
    let base_losses = model.losses(&round.batches).unwrap();
    let held_out_losses = model.losses(&held_out.batches).unwrap();
    model.overlay(&trained).unwrap();
    let losses = model.losses(&round.batches).unwrap();
    assert!(model::mean_loss(&losses) < model::mean_loss(&base_losses), "training helps");

    let baseline = world.measured("baseline").await;
    assert_eq!(baseline.baseline_losses, base_losses);
    assert_eq!(baseline.held_out_losses, held_out_losses);
    assert_eq!(baseline.batches_digest, round.digest);
    assert_eq!(baseline.sources_digest, round.sources_digest);
    assert!(baseline.losses.is_empty() && baseline.sketch.is_empty());
    for job in ["score", "copy"] {
        let score = world.measured(job).await;
        assert_eq!((&score.baseline_losses, &score.losses), (&base_losses, &losses), "{job}");
        assert_eq!(score.batches_digest, round.digest);
        assert_eq!(domain::Sketch::from_bytes(&score.sketch).unwrap(), sketch, "{job}");
        assert!(!score.out_of_reach && score.own_losses.is_empty());
    }
    let after = world.measured("held-out").await;
    assert_eq!(after.held_out_losses, held_out_losses, "nothing of the submission is left");

    let status = world.status(|status| status.finished == 4).await;
    assert_eq!(
        (status.worker.as_str(), status.device),
        ("under-test", fixture::device().to_string())
    );
    assert_eq!((status.base_hash, status.failed), (world.fixture.base_hash(), 0));
    let parts: Vec<_> = status.memory.iter().map(|memory| memory.part.as_str()).collect();
    assert!(parts.contains(&"experts of the base"), "{parts:?}");
    assert!(status.memory.iter().all(|memory| memory.bytes > 0));
    let places: BTreeSet<_> = status.memory.iter().map(|memory| memory.place.as_str()).collect();
    let on_gpu = fixture::device() != model::Device::Cpu;
    assert_eq!(places, if on_gpu { ["device", "host"].into() } else { ["host"].into() });
    assert_eq!((status.base_digest, status.batches_digest), (digest, held_out.digest.clone()));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_submission_is_the_miners_fault_by_its_reason() {
    let mut world = World::start().await;
    let fixture = &world.fixture;
    let base = fixture.altered(|_, _| {});
    let nan = fixture.altered(|name, values| {
        if name.contains("layers.2") {
            values[5] = f32::NAN;
        }
    });
    let overflowing = fixture.altered(|_, values| {
        for value in values {
            *value *= 1e20;
        }
    });
    let mut foreign = base.clone();
    foreign.insert_f32("model.layers.1.mlp.experts.99.down_proj", vec![1], &[0.5]).unwrap();
    let mut shared = base.clone();
    shared.insert_f32("model.norm.weight", vec![64], &[1.0; 64]).unwrap();
    let mut wrong_hash = fixture.submit("hash.pt", &base).await;
    wrong_hash.model_hash = "00".repeat(24);
    let cases = [
        (fixture.submit("nan.pt", &nan).await, "non_finite"),
        (fixture.submit("overflow.safetensors", &overflowing).await, "non_finite"),
        (fixture.submit("foreign.pt", &foreign).await, "foreign_tensor"),
        (fixture.submit("shared.safetensors", &shared).await, "shared_weights"),
        (wrong_hash, "hash_mismatch"),
    ];
    let mut reasons: BTreeMap<String, &str> = BTreeMap::new();
    for (submission, reason) in cases {
        let id = submission.key.clone();
        world.scheduler.enqueue(fixture.score(&id, submission));
        reasons.insert(id, reason);
    }
    let honest = fixture.submit("unchanged.pt", &base).await;
    // Some are told before the one that was on the device.
    for _ in 0..reasons.len() {
        match world.results.next().await {
            (id, Outcome::Invalid(invalid)) => assert_eq!(invalid.reason, reasons[&id], "{id}"),
            other => panic!("{other:?}"),
        }
    }
    world.scheduler.enqueue(world.fixture.score("unchanged", honest));
    let unchanged = world.measured("unchanged").await;
    assert_eq!(unchanged.losses, unchanged.baseline_losses, "the base is what it was");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_or_the_scheduler_got_wrong_is_not_the_miners_fault() {
    let mut world = World::start().await;
    let fixture = &world.fixture;
    let base = fixture.altered(|_, _| {});
    let mut altered = fixture.submit("altered.pt", &base).await;
    altered.sha256 = "00".repeat(32);
    let mut gone = fixture.submit("gone.pt", &base).await;
    gone.key = "submissions/20/miner/nothing.pt".to_owned();
    let mut other_model = fixture.job("other model", JobKind::Baseline);
    other_model.model.as_mut().unwrap().model_hash = "00".repeat(24);
    let mut no_group = fixture.job("no group", JobKind::Baseline);
    no_group.expert_group = 9;
    let mut malformed = fixture.job("malformed", JobKind::Baseline);
    malformed.seed = "short".to_owned();
    let mut too_many = fixture.job("too many", JobKind::Baseline);
    too_many.batches = 1_000_000;
    let jobs = [
        fixture.score("altered", altered),
        fixture.score("gone", gone),
        other_model,
        no_group,
        malformed,
        too_many,
    ];
    let ids: Vec<_> = jobs.iter().map(|job| job.job_id.clone()).collect();
    for job in jobs {
        world.scheduler.enqueue(job);
    }
    for id in ids {
        match world.results.next().await {
            (job, Outcome::Failure(failure)) => {
                let expected = match id.as_str() {
                    "too many" => "data_unavailable",
                    _ => "evaluator_error",
                };
                assert_eq!((&job, failure.reason.as_str()), (&id, expected));
                assert!(!failure.detail.is_empty());
            }
            other => panic!("{id}: {other:?}"),
        }
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_stops_the_job_and_nothing_is_told_of_it() {
    let mut world = World::start().await;
    let long = wire::Job { lease_ms: 600, ..world.fixture.long("lost") };
    world.scheduler.enqueue(long);
    // Kept alive at first, and then given to another worker.
    world.scheduler.renewed(3).await;
    world.scheduler.leases_are_lost.store(true, Ordering::SeqCst);
    world.scheduler.enqueue(world.fixture.job("next", JobKind::HeldOut));
    let next = world.measured("next").await;
    assert_eq!(next.held_out_losses.len(), world.fixture.held_out_batches().await.batches.len());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_job_gives_it_back() {
    let mut world = World::start().await;
    let long = wire::Job { lease_ms: 600, ..world.fixture.long("long") };
    world.scheduler.enqueue(long);
    world.scheduler.renewed(1).await;
    world.shutdown.cancel();
    match world.results.next().await {
        (job, Outcome::Failure(failure)) => {
            assert_eq!((job.as_str(), failure.reason.as_str()), ("long", "worker_lost"));
        }
        other => panic!("{other:?}"),
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_scheduler_makes_it_not_ready_until_it_is_there_and_results_are_retried() {
    let addr = testkit::unused_addr().unwrap();
    let (scheduler, results) = FakeScheduler::new();
    let mut world = World::with(scheduler, results, format!("http://{addr}")).await;
    let (serving, not_serving) = (1, 2);
    assert_eq!(world.serving().await, not_serving);

    world.scheduler.refuse_results.store(2, Ordering::SeqCst);
    world.scheduler.enqueue(world.fixture.job("held-out", JobKind::HeldOut));
    world.scheduler.serve(addr, &Shutdown::default()).await;
    let held_out = world.measured("held-out").await;
    assert_eq!(held_out.batches_digest, world.fixture.held_out_batches().await.digest);
    assert_eq!(world.serving().await, serving);
    world.stop().await;
}
