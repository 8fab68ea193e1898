//! `connito miner`: one miner, on any chain, with a chain service of its own in this process.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use checkpoint::Format;
use domain::Seed;
use kit::Common;
use model::{Device, train::TrainOptions};
use sha2::{Digest as _, Sha256};

use super::{Behaviour, Chain, MinerConfig, Voice};

/// Arguments of `connito miner`.
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
    #[arg(long, default_value = "pt", value_parser = format)]
    format: Format,

    /// honest, or one of the cheats: idle, copy, nan, absent
    #[arg(long, default_value = "honest")]
    behaviour: Behaviour,

    /// How often it looks at the block, in seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    poll: u64,
}

fn format(text: &str) -> Result<Format, String> {
    [Format::Pt, Format::Safetensors]
        .into_iter()
        .find(|format| format.extension() == text)
        .ok_or_else(|| format!("`{text}` is neither pt nor safetensors"))
}

pub(crate) fn main(args: Args) -> anyhow::Result<()> {
    let common: Common = kit::config::load(args.config.as_deref(), "common")?;
    let chain: svc_chain::Config = kit::config::load(args.config.as_deref(), "chain")?;
    let key = Arc::new(wallet(&chain)?);
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

/// The miner signs its requests itself; its chain service holds the same key.
fn wallet(chain: &svc_chain::Config) -> anyhow::Result<svc_chain::SigningKey> {
    let home = std::env::home_dir();
    let path =
        svc_chain::hotkey_file(&chain.wallet_path, &chain.coldkey, &chain.hotkey, home.as_deref());
    svc_chain::load_wallet(&path, chain.wallet_password.as_ref()).context("open the miner's wallet")
}
