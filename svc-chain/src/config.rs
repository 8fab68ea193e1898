//! Configuration: `[chain]`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::{networks::Network, weights::Preference};

/// The chain service: all chain I/O, and the only holder of the hotkey.
#[derive(Debug, Clone, confique::Config)]
pub struct Config {
    /// Address of the gRPC server.
    #[config(default = "127.0.0.1:50051")]
    pub grpc_addr: SocketAddr,

    /// Address of /healthz and /metrics; none without it.
    pub admin_addr: Option<SocketAddr>,

    /// Network, for its endpoints and genesis hash:
    /// `finney` (wss://entrypoint-finney.opentensor.ai:443),
    /// `archive` (finney with all past states: wss://archive.chain.opentensor.ai:443),
    /// `test` (wss://test.finney.opentensor.ai:443) or
    /// `local` (ws://127.0.0.1:9944, any genesis).
    #[config(default = "local")]
    pub network: Network,

    /// WebSocket endpoints, best first, instead of the network's. The best one that is well is used;
    /// of several, those that fail, fall behind or are of another chain are left by themselves.
    #[config(default = [])]
    pub endpoints: Vec<String>,

    /// WebSocket endpoints of nodes that keep every past state, instead of the network's: asked only
    /// for a snapshot of commitments that was missed.
    #[config(default = [])]
    pub archive_endpoints: Vec<String>,

    /// Endpoints that must agree on what decides money: hashes of past blocks, and commitments.
    /// 2 where two or more endpoints are configured, else 1, if it is not set.
    pub quorum: Option<usize>,

    /// What to do when endpoints answer, and do not agree: `hold` answers nothing, `best` takes the
    /// word of the best-ranked one.
    #[config(default = "hold")]
    pub on_disagreement: OnDisagreement,

    /// An endpoint that is this many blocks behind the best of all is left for another one.
    #[config(default = 2)]
    pub max_lag: u64,

    /// How often every endpoint is asked how the chain stands.
    #[config(default = "4s", deserialize_with = humantime_serde::deserialize)]
    pub probe_interval: Duration,

    /// Snapshots of the commitments that are kept: four are taken in a cycle.
    #[config(default = 16)]
    pub keep_snapshots: usize,

    /// Hash of the chain's first block, `0x` and 64 hex digits, instead of the network's. An
    /// endpoint with another one is never used.
    pub genesis_hash: Option<String>,

    /// Subnet.
    #[config(default = 102)]
    pub netuid: u16,

    /// Public address of this validator's gateway, as `203.0.113.7:8091`: announced on the chain
    /// whenever the chain has another one. Nothing is announced without it.
    pub axon: Option<SocketAddr>,

    /// Mechanism of the subnet that weights are set for.
    #[config(default = 0)]
    pub mechanism: u8,

    /// Folder of wallets; `~` is the home folder.
    #[config(default = "~/.bittensor/wallets")]
    pub wallet_path: PathBuf,

    /// Name of the coldkey: the wallet's folder. Its private half is never read.
    #[config(default = "default")]
    pub coldkey: String,

    /// Name of the hotkey, which signs.
    #[config(default = "default")]
    pub hotkey: String,

    /// Password of an encrypted hotkey. Not for the file: set CONNITO_WALLET_PASSWORD.
    #[config(env = "CONNITO_WALLET_PASSWORD")]
    pub wallet_password: Option<SecretString>,

    /// File that holds the password of an encrypted hotkey; a line end is not part of it.
    pub wallet_password_file: Option<PathBuf>,

    /// Blocks that are followed: `best` is the node's newest, `finalized` some blocks later but
    /// never taken back.
    #[config(default = "best")]
    pub follow: Follow,

    /// Blocks that a signed extrinsic lives: a power of two from 4 to 2048.
    #[config(default = 32)]
    pub mortality: u64,

    /// Most extrinsics that are sent for one intent before it has failed.
    #[config(default = 6)]
    pub max_attempts: u32,

    /// Version key sent with weights; the subnet refuses those smaller than its own.
    #[config(default = 10001000)]
    pub version_key: u64,

    /// How weights are set where the subnet has commit-reveal on: `timelock` (encrypted to a round
    /// of drand, opened by the chain), `hash_commit` (a hash now, the weights by a second extrinsic
    /// in the epoch that the chain says), or `auto`: the first where the chain offers it, else the
    /// second. Where it is off, weights are set as they are.
    #[config(default = "auto")]
    pub commit_reveal: Preference,

    /// Most signatures in a minute for model hashes, and as many for records: a round needs one of
    /// each.
    #[config(default = 60)]
    pub round_signatures_per_minute: u32,

    /// Most signatures in a minute for messages to other validators: a merge needs one for each part
    /// of the model and member.
    #[config(default = 30000)]
    pub peer_signatures_per_minute: u32,

    /// Finished intents that are kept.
    #[config(default = 256)]
    pub keep_intents: usize,

    /// How long the right to send extrinsics outlives a process that held it.
    #[config(default = "15s", deserialize_with = humantime_serde::deserialize)]
    pub lease_ttl: Duration,

    /// Most time that a node may take to answer a call.
    #[config(default = "5s", deserialize_with = humantime_serde::deserialize)]
    pub request_timeout: Duration,

    /// A connection that brings no block for this long is replaced.
    #[config(default = "60s", deserialize_with = humantime_serde::deserialize)]
    pub stall_timeout: Duration,
}

/// Which blocks are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Follow {
    /// The node's newest; may be taken back by a reorganisation.
    Best,
    /// Final ones only.
    Finalized,
}

impl Follow {
    /// Stable, snake_case.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Best => "best",
            Self::Finalized => "finalized",
        }
    }
}

/// What to do when endpoints do not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDisagreement {
    /// Answer nothing: who asked holds what depends on it.
    Hold,
    /// Take the word of the best-ranked one, and say so.
    Best,
}

/// A configuration that is well-formed and means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("`chain.genesis_hash` must be `0x` and 64 hex digits, not `{0}`")]
    GenesisHash(String),
    #[error("`chain.mortality` must be a power of two from 4 to 2048, not {0}")]
    Mortality(u64),
    #[error("`chain.endpoints`: `{0}` does not start with ws:// or wss://")]
    Endpoint(String),
    #[error("`chain.endpoints`: `{0}` is there twice, and would agree with itself")]
    SameEndpoint(String),
    #[error("`chain.quorum` is {quorum}, and there are {endpoints} endpoints")]
    Quorum { quorum: usize, endpoints: usize },
    #[error("`chain.max_lag` must be at least 1")]
    MaxLag,
    #[error("`chain.probe_interval` must be at least 10ms")]
    ProbeInterval,
    #[error("`chain.mechanism` must be 0 to 15, not {0}")]
    Mechanism(u8),
    #[error("`chain.netuid` must be 0 to 4095, not {0}")]
    NetUid(u16),
    #[error("`chain.max_attempts` must be at least 1")]
    MaxAttempts,
    #[error("`chain.{0}` must be at least 1: nothing could be signed")]
    NoSignatures(&'static str),
    #[error("`chain.lease_ttl` must be at least 100ms")]
    LeaseTtl,
}

impl Config {
    /// The defaults, for code that makes its configuration itself. Reads nothing.
    pub fn defaults() -> Self {
        Self {
            grpc_addr: SocketAddr::from(([127, 0, 0, 1], 50051)),
            admin_addr: None,
            network: Network::Local,
            endpoints: Vec::new(),
            archive_endpoints: Vec::new(),
            quorum: None,
            on_disagreement: OnDisagreement::Hold,
            max_lag: 2,
            probe_interval: Duration::from_secs(4),
            keep_snapshots: 16,
            genesis_hash: None,
            netuid: 102,
            axon: None,
            mechanism: 0,
            wallet_path: "~/.bittensor/wallets".into(),
            coldkey: "default".to_owned(),
            hotkey: "default".to_owned(),
            wallet_password: None,
            wallet_password_file: None,
            follow: Follow::Best,
            mortality: 32,
            max_attempts: 6,
            version_key: 10_001_000,
            commit_reveal: Preference::Auto,
            round_signatures_per_minute: 60,
            peer_signatures_per_minute: 30_000,
            keep_intents: 256,
            lease_ttl: Duration::from_secs(15),
            request_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(60),
        }
    }

    /// Endpoints to use, best first.
    pub(crate) fn urls(&self) -> Result<Vec<String>, ConfigError> {
        urls(&self.endpoints, self.network.endpoints())
    }

    /// Endpoints that keep every past state, best first. Own endpoints come without the network's.
    pub(crate) fn archive_urls(&self) -> Result<Vec<String>, ConfigError> {
        let known = self.network.archive_endpoints();
        urls(&self.archive_endpoints, if self.endpoints.is_empty() { known } else { &[] })
    }

    /// Endpoints that must agree on what decides money.
    pub(crate) fn quorum(&self) -> Result<usize, ConfigError> {
        let endpoints = self.urls()?.len();
        let quorum = self.quorum.unwrap_or(endpoints.min(2));
        if (1..=endpoints).contains(&quorum) {
            Ok(quorum)
        } else {
            Err(ConfigError::Quorum { quorum, endpoints })
        }
    }

    /// The genesis hash to insist on. Own endpoints without an own hash may be of any chain: the
    /// first one that answers settles it for as long as the process lives.
    pub(crate) fn genesis(&self) -> Result<Option<[u8; 32]>, ConfigError> {
        let text = match &self.genesis_hash {
            Some(text) => text.as_str(),
            None if !self.endpoints.is_empty() && self.network == Network::Local => {
                return Ok(None);
            }
            None => match self.network.genesis_hash() {
                Some(text) => text,
                None => return Ok(None),
            },
        };
        let mut hash = [0; 32];
        hex::decode_to_slice(text.trim_start_matches("0x"), &mut hash)
            .map(|()| Some(hash))
            .map_err(|_| ConfigError::GenesisHash(text.to_owned()))
    }

    /// Refuses what no field says alone.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if !self.mortality.is_power_of_two() || !(4..=2048).contains(&self.mortality) {
            return Err(ConfigError::Mortality(self.mortality));
        }
        if self.mechanism > 15 {
            return Err(ConfigError::Mechanism(self.mechanism));
        }
        if self.netuid > 4095 {
            return Err(ConfigError::NetUid(self.netuid));
        }
        if self.lease_ttl < Duration::from_millis(100) {
            return Err(ConfigError::LeaseTtl);
        }
        if self.max_attempts == 0 {
            return Err(ConfigError::MaxAttempts);
        }
        if self.round_signatures_per_minute == 0 {
            return Err(ConfigError::NoSignatures("round_signatures_per_minute"));
        }
        if self.peer_signatures_per_minute == 0 {
            return Err(ConfigError::NoSignatures("peer_signatures_per_minute"));
        }
        if self.max_lag == 0 {
            return Err(ConfigError::MaxLag);
        }
        if self.probe_interval < Duration::from_millis(10) {
            return Err(ConfigError::ProbeInterval);
        }
        self.quorum()?;
        self.archive_urls()?;
        self.genesis()?;
        Ok(())
    }
}

/// The configured endpoints, or those that are known.
fn urls(configured: &[String], known: &[&str]) -> Result<Vec<String>, ConfigError> {
    if configured.is_empty() {
        return Ok(known.iter().map(|url| (*url).to_owned()).collect());
    }
    for (place, url) in configured.iter().enumerate() {
        if !url.starts_with("ws://") && !url.starts_with("wss://") {
            return Err(ConfigError::Endpoint(url.clone()));
        }
        if configured[..place].contains(url) {
            return Err(ConfigError::SameEndpoint(url.clone()));
        }
    }
    Ok(configured.to_vec())
}

#[cfg(test)]
mod tests;
