//! How fast validators on one machine reduce their pseudo-gradients to the same bits, over their real services on
//! loopback, beside copying as many bytes in memory and sending as many through one plain TCP connection in the same
//! run; and what memory a validator has meanwhile.
//!
//! `make bench-merge` runs it: 256 MiB of float32 parameters among 2, 4 and 8 validators; `--mib`, `--members 2,4`,
//! `--codecs float32,bfloat16,int8` and `--audits 0` for others. All files lie in `TMPDIR`: six times the parameters,
//! and three times for every validator.
//!
//! The exchange is from the first chunk that anybody gives away to the last validator's result: pieces of gradients to
//! the owners of slices, reduction, audits, reduced slices to everybody, every byte hashed at both ends and kept in a
//! file. Bytes are those that must come: of a gradient and of a result, what of it is not a validator's own slice.
//! `sent` is what was given away over that: the rest is for audits. The rate is that of all validators together, who
//! share the cores of this machine. Memory is the most that the process had above what it had before, from the
//! aggregation to the results, by validator; mapped files are in it, and told apart.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark is for reading")]

#[path = "../../tests/it/chain.rs"]
mod chain;
mod gauges;
mod model;
#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/it/network.rs"]
mod network;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use checkpoint::{CHUNK, Codec};
use domain::Hotkey;
use merge::Data;
use proto::peer::v1::{GetMergeRequest, MergeState, StartMergeRequest};
use svc_peer::Conduct;
use tokio::{
    sync::OnceCell,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use crate::{
    gauges::{Memory, copied, through_tcp},
    model::Model,
    network::{Member, ROUND, hotkeys, introduce},
};

const GIB: f64 = (1_u64 << 30) as f64;
const MIB: f64 = (1_u64 << 20) as f64;
/// Far more than any merge takes: no step of one is ever late.
const DEADLINE_MS: u64 = 3_600_000;

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
            measure(&model, *codec, *size, options.audits).await?;
        }
    }
    Ok(())
}

struct Options {
    mib: usize,
    audits: u16,
    members: Vec<u8>,
    codecs: Vec<Codec>,
}

impl Options {
    fn read(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut this = Self {
            mib: 256,
            audits: 8,
            members: vec![2, 4, 8],
            codecs: vec![Codec::Float32, Codec::Int8],
        };
        while let Some(arg) = args.next() {
            // cargo passes a flag of its own.
            if arg == "--bench" {
                continue;
            }
            let value = args.next().with_context(|| format!("{arg} needs a value"))?;
            match arg.as_str() {
                "--mib" => this.mib = value.parse()?,
                "--audits" => this.audits = value.parse()?,
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

/// How a merge ends whose result is there, and whose step is not made.
const NO_STEP: &str = "scratch_failed";

/// Puts a file where the step would make its folder: it takes several times what the exchange does, of
/// time and of disk, and has a benchmark of its own (`publish`, of the crate `checkpoint`).
fn without_step(member: &Member) -> anyhow::Result<()> {
    let folder = member.common().data_dir.join("peer").join(member.hotkey.short());
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join("model"), "")?)
}

/// One merge, told in a line.
async fn measure(model: &Model, codec: Codec, size: u8, audits: u16) -> anyhow::Result<()> {
    let (mut all, mut contributions) = (Vec::new(), Vec::new());
    let counting = Arc::new(Counting::default());
    for seed in 1..=size {
        let (mut member, contribution) = model.member(seed).await?;
        (member.config.codec, member.config.audits) = (codec, audits);
        member.config.chunk_elements = CHUNK;
        member.config.call_timeout = Duration::from_secs(120);
        without_step(&member)?;
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
        let mut state = MergeState::Unspecified;
        while !matches!(state, MergeState::Writing | MergeState::Ended) {
            sleep(Duration::from_millis(5)).await;
            let status = merges.get_merge(GetMergeRequest { round_id: ROUND }).await?;
            state = status.into_inner().state();
        }
    }
    Ok(Instant::now())
}

/// Waits for the end: what was reduced must be the same for all, and whole.
async fn finish(all: &[Member]) -> anyhow::Result<()> {
    let mut digests = Vec::new();
    for member in all {
        let status = member.end(ROUND).await;
        ensure!(status.reason == NO_STEP && !status.digest.is_empty(), "{}", status.detail);
        ensure!(status.members.len() == all.len(), "{}", status.detail);
        digests.push(status.digest);
    }
    digests.dedup();
    ensure!(digests.len() == 1, "other bits: {digests:?}");
    Ok(())
}
