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
//! its memory, one after the other while nothing else runs; `both` is the two by two threads side by side, which is
//! the least that an upload takes. Ratios are those of the best runs.
//!
//! Where other programs take turns on the processors, elapsed time tells of them. So the second line has processor
//! time per GiB: of the two hashes alone, of the whole gateway, of its busiest thread, and of those that have ended
//! (the model hash). `ratio` there is that of the model hash alone over the busiest of them: what an upload reaches
//! when each thread has a processor.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark is for reading")]

#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
#[path = "../tests/it/common/mod.rs"]
mod common;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use checkpoint::{
    Checkpoint, Dtype, Limits, Manifest, MemoryTensors, SliceId, TensorSource as _, TensorSpec,
    model_hash, write_safetensors,
};
use common::{Miner, NOW, World, hotkey_of, keypair};
use domain::{GlobalVersion, ModelHash};
use proto::common::v1::ModelRef;
use sha2::{Digest as _, Sha256};
use testkit::{Process, Running, unused_addr};
use tokio::{
    net::TcpSocket,
    task::spawn_blocking,
    time::{Instant, sleep},
};

const WITHIN: Duration = Duration::from_secs(60);
const GIB: f64 = (1u64 << 30) as f64;
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

/// A submission.
struct Submission {
    name: String,
    path: PathBuf,
    bytes: u64,
    hash: ModelHash,
}

impl Submission {
    fn gib(&self) -> f64 {
        self.bytes as f64 / GIB
    }
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

    /// Uploads of these miners at once: seconds.
    async fn upload(&self, miners: &[Miner]) -> anyhow::Result<f64> {
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
        for upload in uploads {
            upload.await??;
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    /// One upload, beside the hashes.
    async fn alone(&mut self, file: &Submission) -> anyhow::Result<()> {
        let (mut hashes, mut best) = (Hashes::slowest(), f64::MAX);
        let mut used = Used { all: f64::MAX, busiest: f64::MAX, ended: f64::MAX };
        for run in 0..self.runs {
            hashes.measure(file).await?;
            let miners = self.miners(file, 1).await?;
            let (before, threads) = (self.processor()?, self.threads()?);
            let taken = self.upload(&miners).await?;
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
            });
            best = best.min(taken);
        }
        let rate = |seconds: f64| file.gib() / seconds;
        println!(
            "{} {:.2} GiB: upload {:.2}, model hash {:.2}, sha256 {:.2}, both {:.2}, disk {:.2} GiB/s | ratio to model \
             hash {:.2}, to both {:.2}",
            file.name,
            file.gib(),
            rate(best),
            rate(hashes.model),
            rate(hashes.sha256),
            rate(hashes.both),
            rate(hashes.disk),
            hashes.model / best,
            hashes.both / best,
        );
        println!(
            "{} processor time: model hash {:.2}, sha256 {:.2} | gateway {:.2}, busiest thread {:.2}, ended {:.2} s/GiB | \
             ratio {:.2}",
            file.name,
            hashes.processor.0 / file.gib(),
            hashes.processor.1 / file.gib(),
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
        let taken = self.upload(&miners).await?;
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
            quiet = quiet.min(self.upload(&miners).await?);
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
                taken = self.upload(&miners) => taken?,
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

/// Processor time of the gateway, in seconds.
#[derive(Clone, Copy)]
struct Used {
    all: f64,
    busiest: f64,
    ended: f64,
}

impl Used {
    fn least(self, other: Self) -> Self {
        if other.all < self.all { other } else { self }
    }
}

/// Seconds of what an upload cannot do without.
struct Hashes {
    /// Processor time of the model hash and of SHA-256.
    processor: (f64, f64),
    model: f64,
    sha256: f64,
    both: f64,
    disk: f64,
}

impl Hashes {
    fn slowest() -> Self {
        Self {
            processor: (f64::MAX, f64::MAX),
            model: f64::MAX,
            sha256: f64::MAX,
            both: f64::MAX,
            disk: f64::MAX,
        }
    }

    async fn measure(&mut self, file: &Submission) -> anyhow::Result<()> {
        let bytes = fs::read(&file.path)?;
        let begin = Instant::now();
        let copy = file.path.with_extension("copy");
        let mut written = File::create(&copy)?;
        written.write_all(&bytes)?;
        written.sync_all()?;
        self.disk = self.disk.min(begin.elapsed().as_secs_f64());
        fs::remove_file(copy)?;

        let held = Arc::new(Checkpoint::from_bytes(bytes.clone(), Limits::trusted())?);
        let bytes = Arc::new(bytes);
        let (begin, processor) = (Instant::now(), own_time());
        ensure!(model_hash(&*held)? == file.hash);
        self.model = self.model.min(begin.elapsed().as_secs_f64());
        self.processor.0 = self.processor.0.min(own_time() - processor);
        let (begin, processor) = (Instant::now(), own_time());
        std::hint::black_box(Sha256::digest(&*bytes));
        self.sha256 = self.sha256.min(begin.elapsed().as_secs_f64());
        self.processor.1 = self.processor.1.min(own_time() - processor);
        let begin = Instant::now();
        let model = spawn_blocking(move || model_hash(&*held));
        let sha256 = spawn_blocking(move || Sha256::digest(&*bytes));
        ensure!(model.await?? == file.hash);
        std::hint::black_box(sha256.await?);
        self.both = self.both.min(begin.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Processor time of this thread so far, in seconds.
fn own_time() -> f64 {
    on_processor(Path::new("/proc/thread-self/schedstat"))
}

fn on_processor(schedstat: &Path) -> f64 {
    let text = fs::read_to_string(schedstat).unwrap_or_default();
    text.split(' ').next().and_then(|time| time.parse::<f64>().ok()).unwrap_or_default() / 1e9
}

/// Sends a form whose file is empty with this file in its place, and reads the answer.
fn send(addr: SocketAddr, form: &[u8], boundary: &str, path: &Path) -> anyhow::Result<()> {
    let end = format!("\r\n--{boundary}--\r\n");
    let before = form.len().checked_sub(end.len()).context("a form")?;
    let (before, end) = form.split_at(before);
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut stream = TcpStream::connect(addr)?;
    let head = format!(
        "POST /submit-checkpoint HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\
         Content-Type: multipart/form-data; boundary={boundary}\r\nContent-Length: {}\r\n\r\n",
        length + form.len() as u64
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(before)?;
    let mut sent = 0;
    while sent < length {
        let some = rustix::fs::sendfile(&stream, &file, Some(&mut sent), 1 << 20)?;
        ensure!(some > 0, "the file became shorter");
    }
    stream.write_all(end)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

/// Connects from an address of one's own: all of 127.0.0.0/8 is this machine.
async fn connect_from(number: u16, to: SocketAddr) -> anyhow::Result<tokio::net::TcpStream> {
    let [high, low] = number.to_be_bytes();
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 1, high, low.max(1)), 0).into())?;
    Ok(socket.connect(to).await?)
}

/// A checkpoint of tensors of 16 MiB.
fn write(path: &Path, dtype: Dtype, bytes: usize) -> BTreeMap<String, TensorSpec> {
    let columns = 4096;
    let rows = (16 << 20) / columns / dtype.size();
    let mut tensors = MemoryTensors::default();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for layer in 0..bytes.div_ceil(16 << 20) {
        let spec = TensorSpec { dtype, shape: vec![rows, columns] };
        let mut data = vec![0; spec.bytes()];
        for chunk in data.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Exponents below the largest, so that every value is finite in every type.
            chunk.copy_from_slice(&(state & 0xbfff_bfff_bfff_bfff).to_le_bytes());
        }
        tensors.insert(&format!("layers.{layer:04}.weight"), spec, data).unwrap();
    }
    write_safetensors(path, &tensors).unwrap();
    tensors.specs().clone()
}
