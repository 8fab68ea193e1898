//! What a miner does by hand: asks a validator's gateway, downloads from it, submits to it.
//!
//! Standard output is the result, as text or as data; how it goes is told on standard error. The exit code is 0
//! only when it is done.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use checkpoint::{Format, SliceId};
use client::{ClientError, Gateway, MinerClient, Patience, Status, advice};
use domain::{ModelHash, RoundId};
use serde_json::{Value, json};

use super::bar;
use crate::{config::write_out, operator::plain};

/// The gateway that is asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Door {
    /// Address of the validator's gateway: http://host:port, https://host or host:port
    #[arg(long, env = "CONNITO_GATEWAY", value_name = "URL")]
    gateway: String,

    /// Bearer token, where the gateway asks for one; by the environment nobody else sees it
    #[arg(long, env = "AUTH_TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// The result as JSON, for programs
    #[arg(long)]
    json: bool,
}

/// The miner who asks.
#[derive(Debug, clap::Args)]
pub(crate) struct Wallet {
    /// Configuration file whose section `chain` names the wallet
    #[arg(long, env = "CONNITO_CONFIG", value_name = "PATH")]
    config: Option<PathBuf>,

    /// Folder of wallets
    #[arg(long, value_name = "PATH")]
    wallet_path: Option<PathBuf>,

    /// Name of the coldkey: the wallet's folder
    #[arg(long)]
    coldkey: Option<String>,

    /// Name of the hotkey, which signs
    #[arg(long)]
    hotkey: Option<String>,
}

/// How long it is tried.
#[derive(Debug, clap::Args)]
pub(crate) struct Limits {
    /// Tries in a row that bring nothing, at most
    #[arg(long, default_value_t = Patience::default().tries)]
    tries: u32,

    /// How long it may take in all, such as 10m
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    within: Option<Duration>,

    /// Time between two blocks of the chain: tells when a phase is over
    #[arg(long, default_value = "12s", value_parser = humantime::parse_duration, value_name = "TIME")]
    block_time: Duration,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    door: Door,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DownloadArgs {
    #[command(flatten)]
    door: Door,
    #[command(flatten)]
    wallet: Wallet,
    #[command(flatten)]
    limits: Limits,

    /// What of the model: shared, full, or the number of an expert group
    #[arg(long, default_value = "full")]
    slice: SliceId,

    /// Form of the file: safetensors or pt
    #[arg(long, default_value = "safetensors")]
    format: Format,

    /// Where it is to lie; left out: the validator's name for it, in this folder
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    door: Door,
    #[command(flatten)]
    wallet: Wallet,
    #[command(flatten)]
    limits: Limits,

    /// The checkpoint: .safetensors or .pt
    file: PathBuf,

    /// The model hash that was committed; with any other, nothing is sent
    #[arg(long)]
    hash: Option<ModelHash>,

    /// Wait until the gateway takes submissions
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SubmissionArgs {
    #[command(flatten)]
    door: Door,
    #[command(flatten)]
    wallet: Wallet,

    /// The round: first block of its Submission phase; the latest when left out
    #[arg(long)]
    round: Option<u64>,
}

/// A result, for a person and for a program.
struct Outcome {
    text: String,
    data: Value,
}

pub(crate) fn status(args: StatusArgs) -> anyhow::Result<()> {
    let Door { gateway, token, json } = args.door;
    let work = async {
        let status = Gateway::new(&gateway, token)?.status().await?;
        let data = json!({
            "hotkey": status.hotkey,
            "block": status.block,
            "phase": status.phase,
            "blocks_remaining_in_phase": status.blocks_remaining_in_phase,
            "round": status.round,
            "uploads_open": status.uploads_open,
            "expert_group": status.expert_group,
            "global_version": status.global_version,
            "model_hash": status.model_hash,
            "slices": status.slices,
        });
        Ok(Outcome { text: told(&status), data })
    };
    finish(json, run(work)?)
}

pub(crate) fn download(args: DownloadArgs) -> anyhow::Result<()> {
    let json = args.door.json;
    let client = miner(args.door, args.wallet, Some(args.limits))?;
    let (slice, format) = (args.slice, args.format);
    let out = args.out.unwrap_or_else(|| slice.file_name(format).into());
    let work = async {
        let done = client.download(slice, format, &out).await?;
        drop(client);
        let resumed = match done.resumed_from {
            0 => String::new(),
            from => format!(", {from} of them from before"),
        };
        let text = format!(
            "{}: {} bytes{resumed}\nslice {slice} of model {}, hash {}\nsha256 {}\n",
            done.path.display(),
            done.bytes,
            done.global_version,
            done.model_hash,
            done.sha256,
        );
        let data = json!({
            "result": "downloaded",
            "path": done.path,
            "slice": slice,
            "format": format,
            "bytes": done.bytes,
            "resumed_from": done.resumed_from,
            "tries": done.tries,
            "sha256": done.sha256,
            "global_version": done.global_version,
            "model_hash": done.model_hash,
        });
        Ok(Outcome { text, data })
    };
    finish(json, run(work)?)
}

pub(crate) fn submit(args: SubmitArgs) -> anyhow::Result<()> {
    let json = args.door.json;
    // What is wrong with the file needs no wallet and no gateway to be told.
    let checked = match client::check(&args.file, args.hash.as_ref()) {
        Ok(checked) => checked,
        Err(flaw) => return finish(json, Err(flaw.into())),
    };
    eprintln!("model hash {}, {} tensors", checked.model_hash, checked.tensors);
    let client = miner(args.door, args.wallet, Some(args.limits))?;
    let work = async {
        if args.wait {
            client.until_open().await?;
        }
        let done = client.submit(&args.file, checked.model_hash).await?;
        drop(client);
        let how = match done.transport {
            client::Transport::Earlier => "stored already",
            client::Transport::Tus | client::Transport::Multipart => "stored",
        };
        let place = done.key.as_ref().map(|key| format!(" as {key}")).unwrap_or_default();
        let text = format!("{how}{place}: {} bytes, hash {}\n", done.bytes, checked.model_hash);
        let data = json!({
            "result": "stored",
            "transport": done.transport.as_str(),
            "round": done.round,
            "bytes": done.bytes,
            "resumed_from": done.resumed_from,
            "tries": done.tries,
            "key": done.key,
            "sha256": done.sha256,
            "model_hash": checked.model_hash,
        });
        Ok(Outcome { text, data })
    };
    finish(json, run(work)?)
}

pub(crate) fn submission(args: SubmissionArgs) -> anyhow::Result<()> {
    let json = args.door.json;
    let client = miner(args.door, args.wallet, None)?;
    let work = async {
        let round = match args.round {
            Some(round) => RoundId(round),
            None => client.gateway().latest_round().await?,
        };
        let receipt = client.receipt(round).await?;
        let mut text = format!("round {round}: {}", receipt.state);
        for part in [&receipt.reason, &receipt.detail] {
            if !part.is_empty() {
                text = format!("{text}, {part}");
            }
        }
        text.push('\n');
        for field in ["receiving", "key", "bytes", "sha256", "model_hash", "loss", "score"] {
            if let Some(value) = receipt.find(field) {
                let value = value.as_str().map_or_else(|| value.to_string(), plain);
                text = format!("{text}  {field}: {value}\n");
            }
        }
        match advice(&receipt.reason) {
            "" => {}
            advice => text = format!("{text}  what to do: {advice}\n"),
        }
        Ok(Outcome { text, data: receipt.whole })
    };
    finish(json, run(work)?)
}

/// The client of the miner whose wallet is named.
fn miner(door: Door, wallet: Wallet, limits: Option<Limits>) -> anyhow::Result<MinerClient> {
    let mut chain: svc_chain::Config = kit::config::load(wallet.config.as_deref(), "chain")?;
    let Wallet { wallet_path, coldkey, hotkey, .. } = wallet;
    chain.wallet_path = wallet_path.unwrap_or(chain.wallet_path);
    chain.coldkey = coldkey.unwrap_or(chain.coldkey);
    chain.hotkey = hotkey.unwrap_or(chain.hotkey);
    let key = Arc::new(svc_chain::open_wallet(&chain).context("open the miner's wallet")?);
    let hotkey = key.hotkey().clone();
    let sign = Arc::new(move |message: &[u8]| key.sign(message));
    let client = MinerClient::new(&door.gateway, hotkey, sign, door.token)?;
    let Some(limits) = limits else { return Ok(client) };
    let Limits { tries, within, block_time } = limits;
    let patience =
        Patience { tries: tries.max(1), in_all: within, block_time, ..Patience::default() };
    Ok(client.with_patience(patience).with_progress(bar::shown()))
}

fn run<T>(
    work: impl Future<Output = Result<T, ClientError>>,
) -> anyhow::Result<Result<T, ClientError>> {
    let runtime = tokio::runtime::Runtime::new().context("build the runtime")?;
    Ok(runtime.block_on(work))
}

/// Prints what came out. A failure says why and what to do about it.
fn finish(json: bool, result: Result<Outcome, ClientError>) -> anyhow::Result<()> {
    let error = match result {
        Ok(Outcome { text, data }) => {
            write_out(&if json { format!("{data:#}\n") } else { text });
            return Ok(());
        }
        Err(error) => error,
    };
    let (reason, advice) = (error.reason(), error.advice());
    if json {
        let data = json!({
            "result": "failed", "reason": reason, "detail": error.to_string(), "advice": advice,
        });
        write_out(&format!("{data:#}\n"));
    }
    let advice =
        if advice.is_empty() { String::new() } else { format!("\n  what to do: {advice}") };
    anyhow::bail!("{error}\n  reason: {reason}{advice}")
}

fn told(status: &Status) -> String {
    let left = status.blocks_remaining_in_phase;
    let left = left.map(|blocks| format!(", {blocks} blocks of it left")).unwrap_or_default();
    let round =
        status.round.map_or("no round is open".to_owned(), |round| format!("round {round}"));
    let taken = if status.uploads_open { "submissions are taken" } else { "no submissions now" };
    let model = match (status.global_version, status.model_hash) {
        (Some(version), Some(hash)) => format!("model {version}, hash {hash}"),
        _ => "no model yet".to_owned(),
    };
    let slices = status.slices.as_deref().unwrap_or_default();
    let slices: Vec<String> = slices.iter().map(|slice| plain(slice)).collect();
    let slices =
        if slices.is_empty() { String::new() } else { format!(" ({})", slices.join(", ")) };
    format!(
        "validator {}, expert group {}\nblock {}: {}{left}\n{round}, {taken}\n{model}{slices}\n",
        status.hotkey, status.expert_group, status.block, status.phase,
    )
}
