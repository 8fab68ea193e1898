//! A scheduler among fakes, and what its clients do in a round.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use confique::Config as _;
use kit::{Channel, Common, Shutdown, Tls};
use proto::{
    common::v1::Submission,
    scheduler::v1::{
        self as wire, FinishJobRequest, GetRoundRequest, Job, JobKind, LeaseJobRequest, Measured,
        ReportSubmissionRequest, RoundStage, RoundView, finish_job_request::Result as JobResult,
        scheduler_service_client::SchedulerServiceClient,
    },
};
use svc_scheduler::{Config, WeightsKind};
use testkit::{TempDir, tempdir, unused_addr};
use tokio::{runtime::Runtime, task::JoinHandle, time::Instant};
use tonic::Status;

use crate::{
    chain::{FakeChain, Fault},
    merge::{Ending, FakeMerge},
    subnet::{BASE_VERSION, ME, hotkey},
};

/// First block of the Submission phase of cycle 0: the round of the tests.
pub(crate) const ROUND: u64 = 16;
/// Bound of every wait. Long: the machine may be busy.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) type Client = SchedulerServiceClient<Channel>;

/// Fakes, a disk, and what schedulers are started with.
pub(crate) struct World {
    pub(crate) chain: FakeChain,
    pub(crate) merge: FakeMerge,
    pub(crate) disk: TempDir,
    pub(crate) config: Config,
    pub(crate) common: Common,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Fault::Honest, Ending::Merges).await
    }

    /// A subnet in its Train phase, and an artifact store with a first model.
    pub(crate) async fn with(fault: Fault, ending: Ending) -> Self {
        static WORLDS: AtomicU64 = AtomicU64::new(0);
        let disk = tempdir().unwrap();
        let chain = FakeChain::start(ME, fault, 5).await;
        let merge = FakeMerge::start(ending).await;
        let mut config = Config::builder().load().unwrap();
        config.block_time = Duration::from_millis(40);
        config.leader_ttl = Duration::from_secs(120);
        config.initial_version = BASE_VERSION;
        config.evaluation.batches = 2;
        config.evaluation.lease_blocks = 3;
        config.policy.weights = WeightsKind::TopK;
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let common = Common {
            store_url: format!("memory://scheduler-test-{}-{number}", std::process::id()),
            artifacts_url: format!("file:{}", disk.path().join("artifacts").display()),
            phases: vec![4; 9],
            data_dir: disk.path().join("data"),
            chain_url: chain.url(),
            peer_url: merge.url(),
            ..Common::default()
        };
        let world = Self { chain, merge, disk, config, common };
        let manifest = format!(r#"{{"slices":{{"0":{{"model_hash":"{}"}}}}}}"#, base_hash());
        world.put(&format!("models/{BASE_VERSION}/manifest.json"), &manifest);
        world
    }

    /// Path of an artifact.
    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.disk.path().join("artifacts").join(key)
    }

    pub(crate) fn put(&self, key: &str, content: &str) {
        let path = self.path(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Starts a scheduler and waits until it answers, leading or not.
    pub(crate) async fn scheduler(&self) -> Scheduler {
        for _ in 0..5 {
            let scheduler = Scheduler::start(self.config.clone(), self.common.clone());
            let end = Instant::now() + LONG;
            while !scheduler.task.is_finished() {
                if testkit::connects(scheduler.addr, Duration::ZERO).await.is_ok() {
                    return scheduler;
                }
                assert!(Instant::now() < end, "nobody listens");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // Another process may have taken the port.
        }
        panic!("no scheduler comes up");
    }

    /// Starts a scheduler and waits until it leads and has seen the newest block.
    pub(crate) async fn leader(&self) -> Scheduler {
        let scheduler = self.scheduler().await;
        let head = self.chain.head();
        scheduler.until("it leads", |view| view.block == head).await;
        scheduler
    }

    /// Makes blocks up to `block` and waits until `scheduler` has seen them.
    pub(crate) async fn to(&self, scheduler: &Scheduler, block: u64) -> RoundView {
        self.chain.advance(block);
        scheduler.until("the block", |view| view.block >= block).await
    }

    /// Plays up to an open round whose seed is written.
    pub(crate) async fn opened(&self, scheduler: &Scheduler) -> RoundView {
        self.to(scheduler, 8).await;
        scheduler.until("the seed", |view| written(view, "seed")).await
    }

    /// Plays up to a frozen round.
    pub(crate) async fn frozen(&self, scheduler: &Scheduler) -> RoundView {
        self.opened(scheduler).await;
        self.to(scheduler, ROUND).await;
        scheduler.until_stage(RoundStage::Evaluating).await
    }

    /// Plays the whole of a round in which miner 10 is good and 11 is not, up to its record.
    pub(crate) async fn whole_round(&self, scheduler: &Scheduler) -> RoundView {
        self.frozen(scheduler).await;
        for miner in [10, 11] {
            scheduler.report(miner).await.unwrap();
        }
        scheduler.work().await;
        self.committed(scheduler).await;
        scheduler.work().await;
        self.closed(scheduler).await
    }

    /// Plays from an evaluated round up to the end of its merge.
    pub(crate) async fn committed(&self, scheduler: &Scheduler) -> RoundView {
        self.to(scheduler, 24).await;
        scheduler.until_stage(RoundStage::Committing).await
    }

    /// Plays from the end of the merge to the record.
    pub(crate) async fn closed(&self, scheduler: &Scheduler) -> RoundView {
        self.to(scheduler, 28).await;
        scheduler.until("the signed hash", |view| written(view, "signed_hash")).await;
        self.to(scheduler, 32).await;
        let view = scheduler.until_stage(RoundStage::Closed).await;
        scheduler.record(ROUND).await;
        view
    }
}

/// Hash of the first model.
pub(crate) fn base_hash() -> String {
    domain::ModelHash([5; 24]).to_hex()
}

pub(crate) fn round(view: &RoundView) -> &wire::Round {
    view.round.as_ref().expect("a round")
}

/// The miner with this seed.
pub(crate) fn miner(view: &RoundView, seed: u8) -> &wire::Miner {
    let hotkey = hotkey(seed).to_string();
    round(view).miners.iter().find(|miner| miner.hotkey == hotkey).expect("the miner")
}

/// Whether the write of this kind has landed.
pub(crate) fn written(view: &RoundView, kind: &str) -> bool {
    round(view).writes.iter().any(|write| write.kind == kind && write.state == "done")
}

/// Kinds of what did not go the normal way.
pub(crate) fn degraded(view: &RoundView) -> Vec<&str> {
    round(view).degradations.iter().map(|degradation| degradation.kind.as_str()).collect()
}

/// A scheduler on a runtime of its own, so that it can crash.
pub(crate) struct Scheduler {
    pub(crate) addr: SocketAddr,
    pub(crate) client: Client,
    task: JoinHandle<anyhow::Result<()>>,
    shutdown: Shutdown,
    runtime: Option<Runtime>,
}

impl Scheduler {
    fn start(mut config: Config, common: Common) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        config.grpc_addr = unused_addr().unwrap();
        let (addr, shutdown) = (config.grpc_addr, Shutdown::default());
        let task = runtime.spawn(svc_scheduler::run(config, common, shutdown.clone()));
        Self { addr, client: client(addr), task, shutdown, runtime: Some(runtime) }
    }

    /// Everything that it does ends where it is, and nothing is given back.
    pub(crate) fn crash(self) {
        drop(self);
    }

    /// Tells it to stop and waits until it has.
    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(LONG, &mut self.task).await.unwrap().unwrap().unwrap();
    }

    /// Stops everything that it does, as an overloaded host would, until the result is dropped.
    pub(crate) fn freeze(&self) -> mpsc::Sender<()> {
        let (thaw, frozen) = mpsc::channel();
        // There is one worker, and this never gives it back.
        self.runtime.as_ref().unwrap().spawn(async move { frozen.recv() });
        thaw
    }

    pub(crate) async fn view(&self) -> Result<RoundView, Status> {
        Ok(self.client.clone().get_round(GetRoundRequest {}).await?.into_inner())
    }

    /// Waits for a view; fails with the newest one.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&RoundView) -> bool) -> RoundView {
        until(&self.client, what, wanted).await
    }

    pub(crate) async fn until_stage(&self, stage: RoundStage) -> RoundView {
        let at = |view: &RoundView| view.round.as_ref().is_some_and(|r| r.stage() == stage);
        self.until(stage.as_str_name(), at).await
    }

    /// Reports the submission of a miner, as the gateway does.
    pub(crate) async fn report(&self, seed: u8) -> Result<bool, Status> {
        let submission = Some(submission(seed));
        let request = ReportSubmissionRequest { round_id: ROUND, submission };
        Ok(self.client.clone().report_submission(request).await?.into_inner().accepted)
    }

    pub(crate) async fn lease(&self, worker: &str) -> Option<Job> {
        let request = LeaseJobRequest { worker: worker.to_owned() };
        self.client.clone().lease_job(request).await.unwrap().into_inner().job
    }

    pub(crate) async fn finish(&self, job: &Job, result: JobResult) -> Result<(), Status> {
        let request = FinishJobRequest {
            worker: "worker".to_owned(),
            job_id: job.job_id.clone(),
            fence: job.fence,
            result: Some(result),
        };
        self.client.clone().finish_job(request).await.map(|_| ())
    }

    /// Does every job there is; returns how many there were.
    pub(crate) async fn work(&self) -> usize {
        let mut done = 0;
        while let Some(job) = self.lease("worker").await {
            self.finish(&job, measured(&job)).await.unwrap();
            done += 1;
        }
        done
    }

    /// Waits for the record of a round.
    pub(crate) async fn record(&self, round_id: u64) -> String {
        let end = Instant::now() + LONG;
        loop {
            let request = wire::GetRecordRequest { round_id };
            match self.client.clone().get_record(request).await {
                Ok(answer) => return answer.into_inner().json,
                Err(status) => assert!(Instant::now() < end, "no record: {status:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn client(addr: SocketAddr) -> Client {
    Client::new(kit::channel(&format!("http://{addr}"), &Tls::default()).unwrap())
}

/// Waits for a view; fails with the newest one.
pub(crate) async fn until(
    client: &Client,
    what: &str,
    wanted: impl Fn(&RoundView) -> bool,
) -> RoundView {
    let end = Instant::now() + LONG;
    loop {
        let view = client.clone().get_round(GetRoundRequest {}).await;
        match view.map(tonic::Response::into_inner) {
            Ok(view) if wanted(&view) => return view,
            last => assert!(Instant::now() < end, "waited for: {what}; there is {last:#?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The file of a miner.
pub(crate) fn submission(seed: u8) -> Submission {
    let hotkey = hotkey(seed);
    Submission {
        key: format!("submissions/{ROUND}/{hotkey}/model.pt"),
        hotkey: hotkey.to_string(),
        model_hash: domain::ModelHash([seed; 24]).to_hex(),
        sha256: "ab".repeat(32),
        bytes: 100,
        block: ROUND,
    }
}

/// What a worker finds: the submission of miner 10 is better than the base, the others are not.
pub(crate) fn measured(job: &Job) -> JobResult {
    let good = job.submission.as_ref().is_some_and(|s| s.hotkey == hotkey(10).to_string());
    let (baseline, losses, held_out) = match job.kind() {
        JobKind::Baseline => (vec![5.0; 2], vec![], vec![5.5; 2]),
        JobKind::Score => (vec![5.0; 2], vec![if good { 4.0 } else { 5.0 }; 2], vec![]),
        JobKind::HeldOut => (vec![], vec![], vec![4.5; 2]),
        JobKind::Unspecified => panic!("a job without a kind"),
    };
    JobResult::Measured(Measured {
        baseline_losses: baseline,
        losses,
        held_out_losses: held_out,
        batches_digest: "d".repeat(64),
        elapsed_ms: 1,
        ..Measured::default()
    })
}
