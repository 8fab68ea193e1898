//! How fast validators on one machine reduce their pseudo-gradients to the same bits, over their real services on
//! loopback, beside copying as many bytes in memory and sending as many through one plain TCP connection in the same
//! run; and what memory a validator has meanwhile.
//!
//! `make bench-merge` runs it: 256 MiB of float32 parameters among 2, 4 and 8 validators; `--mib`, `--members 2,4` and
//! `--codecs float32,bfloat16,int8` for others. All files lie in `TMPDIR`: about four times the parameters, and eight
//! times for every validator.
//!
//! The exchange is from the first chunk that anybody gives away to the last validator's result: pieces of gradients to
//! the owners of slices, reduction, audits, reduced slices to everybody, every byte hashed at both ends and kept in a
//! file. Bytes are those that must come: of a gradient and of a result, what of it is not a validator's own slice. `sent`
//! is what was given away over that. The rate is that of all validators together, who share this machine's cores.
//! Memory is what the process had at most over what it had before, until the end of the merges, by validator; mapped
//! files are in it, and told apart.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark is for reading")]

#[path = "../tests/it/chain.rs"]
mod chain;
#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../tests/it/network.rs"]
mod network;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use checkpoint::{
    CHUNK, Codec, ExpertGroups, MemoryTensors, Publication, model_hash, publish_model,
    write_safetensors,
};
use domain::{ExpertGroup, GlobalVersion, Hotkey};
use merge::Data;
use network::{BASE_VERSION, Member, ROUND, hotkey, hotkeys, introduce, outcome};
use proto::{
    common::v1::{ModelRef, Submission},
    peer::v1::{Contribution, GetMergeRequest, MergeState, StartMergeRequest},
};
use svc_peer::Conduct;
use tokio::{
    sync::{OnceCell, watch},
    task::spawn_blocking,
    time::{Instant, sleep},
};

const GIB: f64 = (1_u64 << 30) as f64;
const MIB: f64 = (1_u64 << 20) as f64;
/// Far more than any merge takes: no step of one is ever late.
const DEADLINE_MS: u64 = 3_600_000;
const MINER: u8 = 200;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::read(std::env::args().skip(1))?;
    let dir = testkit::tempdir()?;
    let model = Model::make(dir.path(), options.mib)?;
    println!(
        "{} MiB of float32 parameters, {} threads; bytes that must come, by the time of the exchange",
        options.mib,
        std::thread::available_parallelism()?,
    );
    println!(
        "{:<9}{:>8}{:>14}{:>10}{:>13}{:>11}{:>9}{:>6}{:>24}",
        "codec",
        "members",
        "to each",
        "exchange",
        "rate",
        "of memcpy",
        "of TCP",
        "sent",
        "memory each (of files)",
    );
    for codec in &options.codecs {
        for size in &options.members {
            measure(&model, *codec, *size).await?;
        }
    }
    Ok(())
}

struct Options {
    mib: usize,
    members: Vec<u8>,
    codecs: Vec<Codec>,
}

impl Options {
    fn read(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut this =
            Self { mib: 256, members: vec![2, 4, 8], codecs: vec![Codec::Float32, Codec::Int8] };
        while let Some(arg) = args.next() {
            // cargo passes a flag of its own.
            if arg == "--bench" {
                continue;
            }
            let value = args.next().with_context(|| format!("{arg} needs a value"))?;
            match arg.as_str() {
                "--mib" => this.mib = value.parse()?,
                "--members" => {
                    this.members = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                "--codecs" => {
                    this.codecs = value.split(',').map(codec).collect::<Result<_, _>>()?
                }
                _ => bail!("no option {arg}"),
            }
        }
        ensure!(this.mib >= 4, "--mib must be at least 4");
        ensure!(this.members.iter().all(|size| (2..=16).contains(size)), "--members: 2 to 16");
        Ok(this)
    }
}

fn codec(name: &str) -> anyhow::Result<Codec> {
    let named = Codec::ALL.into_iter().find(|codec| codec.name() == name);
    named.with_context(|| format!("no codec {name}"))
}

/// A published model and miners' files, of which every validator has links.
struct Model {
    folder: PathBuf,
    base: ModelRef,
    elements: usize,
    miners: [String; 2],
}

impl Model {
    /// All parameters are in one expert group, in four tensors.
    fn make(folder: &Path, mib: usize) -> anyhow::Result<Self> {
        let elements = (mib << 20) / 16 * 4;
        let json = serde_json::json!({ "0": { "1": [[0, 0], [1, 1]] } });
        let groups: ExpertGroups = serde_json::from_value(json)?;
        let publication = Publication {
            global_version: GlobalVersion(BASE_VERSION),
            expert_group: ExpertGroup(0),
            parent: None,
            config: serde_json::json!({}),
            groups,
        };
        let mut whole = parameters(elements, None)?;
        whole.insert_f32("model.layers.0.self_attn.weight", vec![1024], &noise(9, 1024))?;
        let prefix = format!("models/{BASE_VERSION}");
        let manifest = publish_model(&folder.join(&prefix), &whole, publication)?;
        drop(whole);
        let base = ModelRef {
            global_version: BASE_VERSION,
            model_hash: manifest.model_hash.to_hex(),
            prefix,
        };
        let mut miners = [const { String::new() }; 2];
        for (n, hash) in miners.iter_mut().enumerate() {
            let tensors = parameters(elements, Some(n as u64))?;
            *hash = model_hash(&tensors)?.to_hex();
            write_safetensors(&folder.join(format!("{n}.safetensors")), &tensors)?;
        }
        Ok(Self { folder: folder.to_owned(), base, elements, miners })
    }

    /// A validator that has them.
    async fn member(&self, seed: u8) -> anyhow::Result<(Member, Contribution)> {
        let dir = testkit::tempdir()?;
        let artifacts = dir.path().join("artifacts");
        fs::create_dir_all(artifacts.join(&self.base.prefix))?;
        for file in fs::read_dir(self.folder.join(&self.base.prefix))? {
            let file = file?;
            let to = artifacts.join(&self.base.prefix).join(file.file_name());
            fs::hard_link(file.path(), to)?;
        }
        let n = usize::from(seed % 2);
        let key = format!("submissions/{ROUND}/{}/{n}.safetensors", hotkey(MINER));
        let to = artifacts.join(&key);
        fs::create_dir_all(to.parent().context("a folder")?)?;
        fs::hard_link(self.folder.join(format!("{n}.safetensors")), to)?;
        let submission = Submission {
            hotkey: hotkey(MINER).to_string(),
            key,
            model_hash: self.miners[n].clone(),
            ..Submission::default()
        };
        let contribution = Contribution { submission: Some(submission), weight: 1.0 };
        Ok((Member::with_base(seed, dir, self.base.clone()).await, contribution))
    }

    /// Bytes of the whole vector, encoded.
    fn bytes(&self, codec: Codec) -> usize {
        let (whole, rest) = (self.elements / CHUNK, self.elements % CHUNK);
        whole * codec.encoded_len(CHUNK) + codec.encoded_len(rest)
    }
}

/// The group's tensors: the base's, or a miner's.
fn parameters(elements: usize, miner: Option<u64>) -> anyhow::Result<MemoryTensors> {
    let mut tensors = MemoryTensors::default();
    for n in 0..4_u64 {
        let (expert, of) = (n / 2, ["gate_up_proj", "down_proj"][n as usize % 2]);
        let mut values = noise(n, elements / 4);
        if let Some(miner) = miner {
            let moved = noise(100 + 10 * miner + n, values.len());
            values.iter_mut().zip(moved).for_each(|(value, moved)| *value += moved * 1e-3);
        }
        let name = format!("model.layers.1.mlp.experts.{expert}.{of}");
        tensors.insert_f32(&name, vec![values.len() / 1024, 1024], &values)?;
    }
    Ok(tensors)
}

/// Numbers from -0.5 to 0.5, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next()).collect()
}

/// Honest, and counts what it gives.
#[derive(Debug, Default)]
struct Counting {
    began: OnceCell<Instant>,
    bytes: AtomicU64,
}

#[tonic::async_trait]
impl Conduct for Counting {
    async fn give(&self, _: &Hotkey, _: &Data, _: u32, bytes: Bytes) -> Option<Bytes> {
        let _ = self.began.set(Instant::now());
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Some(bytes)
    }
}

/// One merge, told in a line.
async fn measure(model: &Model, codec: Codec, size: u8) -> anyhow::Result<()> {
    let (mut all, mut contributions) = (Vec::new(), Vec::new());
    let counting = Arc::new(Counting::default());
    for seed in 1..=size {
        let (mut member, contribution) = model.member(seed).await?;
        member.config.codec = codec;
        member.config.chunk_elements = CHUNK;
        member.config.call_timeout = Duration::from_secs(120);
        member.conduct = Arc::clone(&counting) as Arc<dyn Conduct>;
        all.push(member);
        contributions.push(contribution);
    }
    introduce(&mut all);
    for member in &mut all {
        member.start().await;
    }
    let memory = Memory::watch()?;
    let validators = hotkeys(&all);
    for (member, contribution) in all.iter().zip(contributions) {
        let request = member.request(&validators, &[]);
        let request = StartMergeRequest {
            contributions: vec![contribution],
            deadline_ms: DEADLINE_MS,
            ..request
        };
        member.begin(request).await;
    }
    let ended = result(&all).await?;
    let began = *counting.began.get().context("nothing was given")?;
    let taken = (ended - began).as_secs_f64();
    finish(&all).await?;
    let memory = memory.stop().await?;
    for member in &mut all {
        member.kill().await;
    }

    let result_codec = match codec {
        Codec::Float32 => Codec::Float32,
        Codec::Bfloat16 | Codec::Int8 => Codec::Bfloat16,
    };
    let others = f64::from(size - 1);
    let needed = (model.bytes(codec) + model.bytes(result_codec)) as f64 * others;
    let sent = counting.bytes.load(Ordering::Relaxed) as f64;
    let (memcpy, tcp) = spawn_blocking(move || {
        Ok::<_, anyhow::Error>((copied(needed as u64), through_tcp(needed as u64)?))
    })
    .await??;
    println!(
        "{:<9}{size:>8}{:>10.0} MiB{:>8.2} s{:>7.2} GiB/s{:>11.3}{:>9.3}{:>6.2}{:>12.0} MiB ({:.0})",
        codec.name(),
        needed / f64::from(size) / MIB,
        taken,
        needed / GIB / taken,
        memcpy / taken,
        tcp / taken,
        sent / needed,
        memory.all / f64::from(size) / MIB,
        memory.files / f64::from(size) / MIB,
    );
    Ok(())
}

/// When the last validator has its result.
async fn result(all: &[Member]) -> anyhow::Result<Instant> {
    for member in all {
        let mut merges = member.merges();
        loop {
            let status = merges.get_merge(GetMergeRequest { round_id: ROUND }).await?.into_inner();
            match status.state() {
                MergeState::Writing | MergeState::Ended => break,
                _ => sleep(Duration::from_millis(5)).await,
            }
        }
    }
    Ok(Instant::now())
}

/// Waits for the end, which must be the same for all.
async fn finish(all: &[Member]) -> anyhow::Result<()> {
    let mut digests = Vec::new();
    for member in all {
        let status = member.end(ROUND).await;
        ensure!(outcome(&status) == "merged", "{}", status.detail);
        ensure!(status.members.len() == all.len(), "{}", status.detail);
        digests.push(status.digest);
    }
    digests.dedup();
    ensure!(digests.len() == 1, "other bits: {digests:?}");
    Ok(())
}

/// Memory of this process, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Resident {
    all: f64,
    files: f64,
}

impl Resident {
    fn now() -> anyhow::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| -> anyhow::Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().split(' ').next()).context("a field")?;
            Ok(kib.parse::<f64>()? * 1024.0)
        };
        Ok(Self { all: field("VmRSS:")?, files: field("RssFile:")? })
    }

    /// Where there was most.
    fn max(self, other: Self) -> Self {
        if other.all > self.all { other } else { self }
    }
}

/// Watches the memory of this process.
struct Memory {
    before: Resident,
    stop: watch::Sender<bool>,
    watching: tokio::task::JoinHandle<anyhow::Result<Resident>>,
}

impl Memory {
    fn watch() -> anyhow::Result<Self> {
        let before = Resident::now()?;
        let (stop, stopped) = watch::channel(false);
        let watching = kit::Shutdown::default().spawn(async move {
            let mut most = before;
            while !*stopped.borrow() {
                most = most.max(Resident::now()?);
                sleep(Duration::from_millis(10)).await;
            }
            Ok(most)
        });
        Ok(Self { before, stop, watching })
    }

    /// What there was at most above what was there before.
    async fn stop(self) -> anyhow::Result<Resident> {
        self.stop.send_replace(true);
        let most = self.watching.await??;
        Ok(Resident { all: most.all - self.before.all, files: most.files - self.before.files })
    }
}

/// Seconds to copy as many bytes in memory with one thread.
fn copied(bytes: u64) -> f64 {
    let from = vec![7_u8; 64 << 20];
    let mut to = vec![1_u8; from.len()];
    let begin = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let some = left.min(from.len() as u64);
        to[..some as usize].copy_from_slice(&from[..some as usize]);
        std::hint::black_box(&mut to);
        left -= some;
    }
    begin.elapsed().as_secs_f64()
}

/// Seconds to send as many bytes over one connection on loopback.
fn through_tcp(bytes: u64) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let block = vec![7_u8; 1 << 20];
            let mut left = bytes;
            while left > 0 {
                let some = left.min(block.len() as u64);
                near.write_all(&block[..some as usize]).unwrap();
                left -= some;
            }
        });
        let mut block = vec![0_u8; 1 << 20];
        let mut came = 0;
        while let some @ 1.. = far.read(&mut block)? {
            came += some as u64;
        }
        ensure!(came == bytes, "{came} of {bytes} bytes came");
        Ok(begin.elapsed().as_secs_f64())
    })
}
