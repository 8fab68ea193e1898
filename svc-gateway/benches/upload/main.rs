//! How fast a gateway takes and verifies a submission of 1 GiB, beside the hashes alone of the same bytes in the same
//! run; what memory it has while sixteen arrive at once; and how long one takes while a thousand slow connections
//! are open.
//!
//! `make bench-gateway` runs it; `--quick` takes 64 MiB, `BENCH_RUNS` other than three runs, `BENCH_GATEWAY` another
//! binary. All files lie in `TMPDIR`: a submission is on that disk before it is answered, so the rate of the disk
//! alone is told too.
//!
//! The gateway is a process of its own with its usual settings. The client is a thread here that has the kernel send
//! the file (`sendfile`). `model hash` is BLAKE2b and `sha256` SHA-256, each by one thread of this process over bytes in
//! its memory while nothing else runs. A submission needs both: `in turn` is one thread that does one after the other,
//! `side by side` two threads that do one each, which is the least that an upload takes. Rates and ratios are those of
//! the best runs.
//!
//! Where other programs take turns on the processors, elapsed time tells of them. So the second line has processor
//! time per GiB: of the two hashes alone, of the client, of the whole gateway, of its busiest thread, and of those that
//! have ended (the model hash). `ratio` there is that of the model hash alone over the busiest of them: what an upload
//! reaches when each thread has a processor.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark is for reading")]

mod client;
#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
#[path = "../../tests/it/common/mod.rs"]
mod common;
mod hashes;
mod submission;

use std::{collections::BTreeMap, fs, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use checkpoint::{Checkpoint, Dtype, Limits, Manifest, SliceId, model_hash};
use client::{connect_from, send};
use common::{Miner, NOW, World, hotkey_of, keypair};
use domain::{GlobalVersion, ModelHash};
use hashes::{Hashes, on_processor};
use proto::common::v1::ModelRef;
use submission::{Submission, write};
use testkit::{Process, Running, unused_addr};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

const WITHIN: Duration = Duration::from_secs(60);
const AT_ONCE: u8 = 16;
const SLOW: u16 = 1000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let bytes = if quick { 64 << 20 } else { 1 << 30 };
    let runs = std::env::var("BENCH_RUNS").map_or(Ok(3), |runs| runs.parse())?;
    let mut bench = Bench::new(runs).await?;
    for (dtype, version) in [(Dtype::F32, 101), (Dtype::BF16, 102)] {
        let file = bench.file(dtype, bytes, version).await?;
        bench.alone(&file).await?;
        // Before the process has had a thousand connections, whose memory the allocator keeps.
        if dtype == Dtype::F32 {
            bench.at_once(&file).await?;
        }
        bench.slow(&file).await?;
        fs::remove_file(&file.path)?;
    }
    bench.process.terminate()
}

struct Bench {
    world: World,
    process: Running,
    addr: SocketAddr,
    runs: usize,
    /// The round of the next run: each miner submits once in a round.
    round: u64,
}

impl Bench {
    async fn new(runs: usize) -> anyhow::Result<Self> {
        let world = World::new(&[]).await;
        let (addr, grpc) = (unused_addr()?, unused_addr()?);
        let artifacts = format!("file:{}", world.disk.path().join("artifacts").display());
        let program = std::env::var_os("BENCH_GATEWAY");
        let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_svc-gateway").into());
        let mut process = Process::new(program)
            .env("CONNITO_SCHEDULER_URL", &world.scheduler.url)
            .env("CONNITO_ARTIFACTS_URL", artifacts)
            .env("CONNITO_DATA_DIR", world.disk.path().join("bench"))
            .env("CONNITO_GATEWAY_HTTP_ADDR", addr.to_string())
            .env("CONNITO_GATEWAY_GRPC_ADDR", grpc.to_string())
            .spawn()?;
        process.listens(addr, WITHIN).await?;
        Ok(Self { world, process, addr, runs, round: common::ROUND })
    }

    /// Random finite values, and a model that they are a submission for.
    async fn file(&self, dtype: Dtype, bytes: usize, version: u64) -> anyhow::Result<Submission> {
        let path = self.world.disk.path().join("submission.safetensors");
        let specs = write(&path, dtype, bytes);
        let mut manifest: Manifest = self.world.manifest.clone();
        let hash = ModelHash([version as u8; 24]);
        let own = manifest.slices.get_mut(&SliceId::Group(manifest.expert_group));
        let own = own.context("the slice of the group")?;
        (own.tensors, own.model_hash) = (specs, hash);
        (manifest.model_hash, manifest.global_version) = (hash, GlobalVersion(version));
        let prefix = format!("models/{version}");
        let folder = self.world.disk.path().join("artifacts").join(&prefix);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(Manifest::FILE_NAME), manifest.to_json()?)?;
        let mut view = self.world.scheduler.view().context("a view")?;
        view.base = Some(ModelRef { global_version: version, model_hash: hash.to_hex(), prefix });
        self.world.scheduler.set(view);
        self.until_status(&format!("\"global_version\":{version}")).await?;

        let held = Checkpoint::from_bytes(fs::read(&path)?, Limits::trusted())?;
        let hash = model_hash(&held)?;
        Ok(Submission { name: dtype.to_string(), bytes: held.len(), path, hash })
    }

    /// Miners of a new round, all with this file. What they stored before is deleted.
    async fn miners(&mut self, file: &Submission, miners: u8) -> anyhow::Result<Vec<Miner>> {
        let stored = self.world.disk.path().join("artifacts/submissions");
        if stored.exists() {
            fs::remove_dir_all(stored)?;
        }
        let miners: Vec<Miner> = (1..=miners)
            .map(|number| {
                let keys = keypair(number);
                Miner { hotkey: hotkey_of(&keys), keys, hash: file.hash, file: file.path.clone() }
            })
            .collect();
        let mut view = self.world.scheduler.view().context("a view")?;
        let cycle = view.schedule.as_ref().context("a schedule")?.lengths.iter().sum::<u64>();
        self.round += cycle;
        view.block = self.round + NOW - common::ROUND;
        let round = view.round.as_mut().context("a round")?;
        round.round_id = self.round;
        round.miners = miners.iter().zip(1..).map(|(miner, uid)| miner.on_roster(uid)).collect();
        self.world.scheduler.set(view);
        self.until_status(&format!("\"round\":{}", self.round)).await?;
        Ok(miners)
    }

    async fn until_status(&self, text: &str) -> anyhow::Result<()> {
        let known = async {
            loop {
                let status = reqwest::get(format!("http://{}/status", self.addr)).await;
                if let Ok(status) = status
                    && status.text().await.is_ok_and(|status| status.contains(text))
                {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(WITHIN, known).await.with_context(|| text.to_owned())
    }

    /// Uploads of these miners at once.
    async fn upload(&self, miners: &[Miner]) -> anyhow::Result<Took> {
        let block = self.round + NOW - common::ROUND;
        let begin = Instant::now();
        let uploads: Vec<_> = miners
            .iter()
            .map(|miner| {
                let fields = self.world.fields_at(miner, block);
                let (form, boundary) = self.world.raw_form(&fields, b"");
                let (addr, path) = (self.addr, miner.file.clone());
                spawn_blocking(move || send(addr, &form, &boundary, &path))
            })
            .collect();
        let mut client = 0.0;
        for upload in uploads {
            client += upload.await??;
        }
        Ok(Took { elapsed: begin.elapsed().as_secs_f64(), client })
    }

    /// One upload, beside the hashes.
    async fn alone(&mut self, file: &Submission) -> anyhow::Result<()> {
        let (mut hashes, mut best) = (Hashes::slowest(), f64::MAX);
        let mut used = Used { all: f64::MAX, busiest: f64::MAX, ended: f64::MAX, client: f64::MAX };
        for run in 0..self.runs {
            hashes.measure(file).await?;
            let miners = self.miners(file, 1).await?;
            let (before, threads) = (self.processor()?, self.threads()?);
            let Took { elapsed: taken, client } = self.upload(&miners).await?;
            let all = self.processor()? - before;
            println!(
                "  {} run {run}: upload {:.2} GiB/s, the gateway's processor time {:.2} s/GiB",
                file.name,
                file.gib() / taken,
                all / file.gib()
            );
            let since = |(id, time): (&u64, &f64)| time - threads.get(id).unwrap_or(&0.0);
            let living: Vec<f64> = self.threads()?.iter().map(since).collect();
            used = used.least(Used {
                all,
                busiest: living.iter().copied().fold(0.0, f64::max),
                ended: (all - living.iter().sum::<f64>()).max(0.0),
                client,
            });
            best = best.min(taken);
        }
        let rate = |seconds: f64| file.gib() / seconds;
        println!(
            "{} {:.2} GiB: upload {:.2}, model hash {:.2}, sha256 {:.2}, both in turn {:.2}, side by side {:.2}, disk \
             {:.2} GiB/s | ratio to model hash {:.2}, to both in turn {:.2}, side by side {:.2}",
            file.name,
            file.gib(),
            rate(best),
            rate(hashes.model),
            rate(hashes.sha256),
            rate(hashes.in_turn),
            rate(hashes.side_by_side),
            rate(hashes.disk),
            hashes.model / best,
            hashes.in_turn / best,
            hashes.side_by_side / best,
        );
        println!(
            "{} processor time: model hash {:.2}, sha256 {:.2} | client {:.2}, gateway {:.2}, busiest thread {:.2}, \
             ended {:.2} s/GiB | ratio {:.2}",
            file.name,
            hashes.processor.0 / file.gib(),
            hashes.processor.1 / file.gib(),
            used.client / file.gib(),
            used.all / file.gib(),
            used.busiest / file.gib(),
            used.ended / file.gib(),
            hashes.processor.0 / used.busiest.max(used.ended),
        );
        Ok(())
    }

    /// Many uploads at once: what memory they took.
    async fn at_once(&mut self, file: &Submission) -> anyhow::Result<()> {
        let miners = self.miners(file, AT_ONCE).await?;
        let quiet = self.memory("VmRSS")?;
        let taken = self.upload(&miners).await?.elapsed;
        println!(
            "{} {AT_ONCE} uploads at once: {:.2} GiB/s together, resident {quiet} MiB before, at most {} MiB",
            file.name,
            f64::from(AT_ONCE) * file.gib() / taken,
            self.memory("VmHWM")?
        );
        Ok(())
    }

    /// One upload while slow connections are open: connections that say nothing, half a header, half a form.
    async fn slow(&mut self, file: &Submission) -> anyhow::Result<()> {
        let (mut quiet, mut crowded) = (f64::MAX, f64::MAX);
        let head = "POST /submit HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1000000\r\n\
                    Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; name=\"";
        let mut open = 0;
        for _ in 0..self.runs {
            let miners = self.miners(file, 1).await?;
            quiet = quiet.min(self.upload(&miners).await?.elapsed);
            let miners = self.miners(file, 1).await?;
            let mut slow = Vec::new();
            for number in 0..SLOW {
                let connection = connect_from(number, self.addr).await?;
                let beginning = match number % 3 {
                    0 => "",
                    1 => &head[..40],
                    _ => head,
                };
                connection.writable().await?;
                connection.try_write(beginning.as_bytes())?;
                slow.push(connection);
            }
            let drip = async {
                loop {
                    sleep(Duration::from_secs(1)).await;
                    // Some are closed by now: a stranger is not waited for.
                    open = slow.iter().filter(|slow| slow.try_write(b"x").is_ok()).count();
                }
            };
            let taken = tokio::select! {
                taken = self.upload(&miners) => taken?.elapsed,
                () = drip => unreachable!("it never ends"),
            };
            crowded = crowded.min(taken);
        }
        println!(
            "{} beside {SLOW} slow connections ({open} open in the end): {crowded:.2} s, alone {quiet:.2} s, ratio {:.2}; \
             resident at most {} MiB",
            file.name,
            crowded / quiet,
            self.memory("VmHWM")?
        );
        Ok(())
    }

    /// A line of the gateway's status, in MiB.
    fn memory(&self, line: &str) -> anyhow::Result<u64> {
        let id = self.process.id().context("it runs")?;
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let value = status.lines().find_map(|found| found.strip_prefix(line)).context("a line")?;
        let value = value.trim_start_matches(':').trim().trim_end_matches(" kB");
        Ok(value.parse::<u64>()? >> 10)
    }

    /// Processor time of each thread of the gateway so far, in seconds.
    fn threads(&self) -> anyhow::Result<BTreeMap<u64, f64>> {
        let id = self.process.id().context("it runs")?;
        let tasks = fs::read_dir(format!("/proc/{id}/task"))?;
        tasks
            .map(|task| {
                let task = task?;
                let id = task.file_name().to_string_lossy().parse()?;
                Ok((id, on_processor(&task.path().join("schedstat"))))
            })
            .collect()
    }

    /// Processor time of the gateway and all its threads so far, in seconds.
    fn processor(&self) -> anyhow::Result<f64> {
        let id = self.process.id().context("it runs")?;
        let text = fs::read_to_string(format!("/proc/{id}/stat"))?;
        let fields = text.rsplit(") ").next().context("fields")?.split(' ');
        let ticks = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
        Ok(ticks.sum::<f64>() / 100.0)
    }
}

/// Processor time of an upload, in seconds.
#[derive(Clone, Copy)]
struct Used {
    all: f64,
    busiest: f64,
    ended: f64,
    /// Of the client's thread.
    client: f64,
}

/// What uploads took, in seconds.
struct Took {
    elapsed: f64,
    /// Processor time of all clients.
    client: f64,
}

impl Used {
    fn least(self, other: Self) -> Self {
        if other.all < self.all { other } else { self }
    }
}
