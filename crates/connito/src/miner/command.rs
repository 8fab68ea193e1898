//! `connito miner`: what a miner does by hand, and one that does it all by itself, on any chain, with a chain
//! service of its own in this process.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use checkpoint::Format;
use domain::Seed;
use kit::Common;
use model::{Device, train::TrainOptions};
use sha2::{Digest as _, Sha256};

use super::{Behaviour, Chain, MinerConfig, Voice, errands};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Train, commit and submit in every cycle, until told to stop
    Run(Box<Args>),
    /// Show where a validator stands, as its gateway tells miners
    Status(errands::StatusArgs),
    /// Download a slice of the global model; one that broke off goes on
    Download(errands::DownloadArgs),
    /// Submit a checkpoint whose hash is committed on chain; an upload that broke off goes on
    Submit(errands::SubmitArgs),
    /// Ask what became of this miner's submission
    Submission(errands::SubmissionArgs),
}

pub(crate) fn main(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(args) => run(*args),
        Command::Status(args) => errands::status(args),
        Command::Download(args) => errands::download(args),
        Command::Submit(args) => errands::submit(args),
        Command::Submission(args) => errands::submission(args),
    }
}

/// Arguments of `connito miner run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file: `[common]` and `[chain]`, with the miner's wallet
    #[arg(long, env = "CONNITO_CONFIG")]
    config: Option<PathBuf>,

    /// Folder with the model's config.json and tokenizer.json
    #[arg(long)]
    model: PathBuf,

    /// Folder of the miner's expert group
    #[arg(long)]
    group: PathBuf,

    /// Folder of texts to train on: *.jsonl and *.txt
    #[arg(long)]
    corpus: PathBuf,

    /// Steps of training per cycle, at most
    #[arg(long, default_value_t = TrainOptions::default().steps)]
    steps: usize,

    /// Sequences per step
    #[arg(long, default_value_t = TrainOptions::default().batch_size)]
    batch_size: usize,

    /// Tokens per sequence
    #[arg(long, default_value_t = TrainOptions::default().sequence_length)]
    sequence_length: usize,

    /// Step size
    #[arg(long, default_value_t = TrainOptions::default().learning_rate)]
    learning_rate: f64,

    /// Where it trains: cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    device: Device,

    /// Form of what it submits: pt or safetensors
    #[arg(long, default_value = "pt")]
    format: Format,

    /// honest, or one of the cheats: idle, copy, nan, absent
    #[arg(long, default_value = "honest")]
    behaviour: Behaviour,

    /// How often it looks at the block, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    poll: u64,
}

fn run(args: Args) -> anyhow::Result<()> {
    let common: Common = kit::config::load(args.config.as_deref(), "common")?;
    let chain: svc_chain::Config = kit::config::load(args.config.as_deref(), "chain")?;
    // The miner signs its requests itself; its chain service holds the same key.
    let key = Arc::new(svc_chain::open_wallet(&chain).context("open the miner's wallet")?);
    let config = MinerConfig {
        behaviour: args.behaviour,
        // Every miner draws its own batches, and the same ones after a restart.
        seed: Seed(Sha256::digest(key.hotkey().public_key()).into()),
        key,
        folder: common.data_dir.join("miner"),
        model: args.model,
        group: args.group,
        corpus: args.corpus,
        options: TrainOptions {
            steps: args.steps,
            batch_size: args.batch_size,
            sequence_length: args.sequence_length,
            learning_rate: args.learning_rate,
        },
        device: args.device,
        format: args.format,
        loot: common.data_dir.join("published"),
        poll: Duration::from_secs(args.poll),
    };
    kit::run("connito-miner", &common.clone(), None, async move |shutdown| {
        let client = Chain::new(kit::auth::channel(&common.chain_url, &common)?);
        let own = svc_chain::run(chain, common, shutdown.child());
        let voice = Voice { miner: 0, listener: None };
        let work = super::run(config, client, voice, shutdown.child());
        let (chain, miner) = tokio::join!(
            async {
                let result = own.await;
                shutdown.cancel();
                result
            },
            async {
                let result = work.await;
                shutdown.cancel();
                result
            }
        );
        chain.and(miner)
    })
}
