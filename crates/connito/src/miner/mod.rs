//! A miner: a real client of validators and of the chain, in six acts per cycle. It downloads the
//! global model, trains its group's experts, commits the signature of what came out, reveals the
//! hash, and submits the file.
//!
//! Beside the honest one there are miners that cheat ([`Behaviour`]): they are what a demonstration
//! and the end-to-end tests are about. They go the same ways as an honest miner and are told apart
//! by nobody but the validators.

mod bar;
mod command;
mod craft;
mod cycle;
mod errands;

use std::{path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use anyhow::Context as _;
pub(crate) use command::{Command, main};
pub use cycle::Miner;
use domain::{ExpertGroup, Seed};
use kit::{Channel, Shutdown};
use model::{Device, train::TrainOptions};
use proto::chain::v1::chain_service_client::ChainServiceClient;
use svc_chain::SigningKey;
use tokio::sync::mpsc;

/// What a miner does with the model it downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Behaviour {
    /// Trains and submits what came out.
    Honest,
    /// Submits the base model's experts unchanged.
    Idle,
    /// Takes another miner's file when its hash is revealed, and submits it as its own.
    Copy,
    /// Trains, and puts a NaN into what it submits.
    Nan,
    /// Commits like an honest miner, and never submits.
    Absent,
}

impl Behaviour {
    /// Whether such a miner has earned weights.
    pub fn is_honest(self) -> bool {
        self == Self::Honest
    }

    /// The stable, snake_case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Honest => "honest",
            Self::Idle => "idle",
            Self::Copy => "copy",
            Self::Nan => "nan",
            Self::Absent => "absent",
        }
    }
}

impl FromStr for Behaviour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Honest, Self::Idle, Self::Copy, Self::Nan, Self::Absent]
            .into_iter()
            .find(|behaviour| behaviour.as_str() == text)
            .ok_or_else(|| format!("`{text}` is none of honest, idle, copy, nan, absent"))
    }
}

/// Everything a miner needs.
#[derive(Clone)]
pub struct MinerConfig {
    /// What it does.
    pub behaviour: Behaviour,
    /// Its key.
    pub key: Arc<SigningKey>,
    /// Folder of its own.
    pub folder: PathBuf,
    /// Folder with the model's `config.json` and `tokenizer.json`.
    pub model: PathBuf,
    /// Folder of its expert group.
    pub group: PathBuf,
    /// Texts to train on.
    pub corpus: PathBuf,
    /// How it trains.
    pub options: TrainOptions,
    /// What its training is drawn from.
    pub seed: Seed,
    /// Where it trains.
    pub device: Device,
    /// Form of its submissions.
    pub format: checkpoint::Format,
    /// Folder where a copying miner finds the others' files once their hashes are revealed.
    pub loot: PathBuf,
    /// How often it looks at the block.
    pub poll: Duration,
}

impl std::fmt::Debug for MinerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MinerConfig")
            .field("behaviour", &self.behaviour)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// Something a miner tells whoever watches it.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its place in the list of miners.
    pub miner: usize,
    /// Index of the cycle.
    pub cycle: u64,
    /// What it did.
    pub what: String,
}

/// Tells what a miner does; words are dropped when nobody listens.
#[derive(Debug, Clone)]
pub struct Voice {
    /// Its place in the list of miners.
    pub miner: usize,
    /// Who listens.
    pub listener: Option<mpsc::Sender<Said>>,
}

impl Voice {
    fn say(&self, cycle: u64, what: impl Into<String>) {
        let what = what.into();
        tracing::info!(miner = self.miner, cycle, what, "miner");
        if let Some(listener) = &self.listener {
            // A full channel means that nobody reads: the log has it all the same.
            let _ = listener.try_send(Said { miner: self.miner, cycle, what });
        }
    }
}

/// The chain service that a miner runs for itself.
pub type Chain = ChainServiceClient<Channel>;

/// Runs a miner until `shutdown`. `chain` is its own chain service, which holds the same key.
pub async fn run(
    config: MinerConfig,
    chain: Chain,
    voice: Voice,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let group = model::expert_group::GroupFolder::read(&config.group)
        .with_context(|| format!("read the expert group {}", config.group.display()))?;
    let group_id: ExpertGroup = group.config.group_id;
    tokio::fs::create_dir_all(&config.folder).await.context("make the miner's folder")?;
    Miner::new(config, group.experts, group_id, chain, voice, shutdown).run().await
}
