use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use secrecy::SecretString;

/// What an evaluator says about its data, beside the expert group's `config.yaml`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of what is kept: shards of the hub, drawn batches, and texts while they are read.
    pub cache: PathBuf,
    /// Where relative folders start: the folder of `config.yaml`.
    pub base: PathBuf,
    /// Folders of the sources that are only named.
    pub names: BTreeMap<String, PathBuf>,
    /// Texts of fewer bytes are left out; empty ones always. Part of the draw.
    pub minimum_text_length: usize,
    /// Shards that one draw chooses from of each source, at least one. Part of the draw.
    pub shards_per_round: usize,
    /// Where hub data sets are fetched from.
    pub hub: HubSettings,
    /// What is refused for its size; none of it changes what is drawn.
    pub limits: Limits,
}

impl Settings {
    /// The defaults, with a cache folder.
    pub fn new(cache: PathBuf) -> Self {
        Self {
            cache,
            base: PathBuf::from("."),
            names: BTreeMap::new(),
            minimum_text_length: 16,
            shards_per_round: 4,
            hub: HubSettings::default(),
            limits: Limits::default(),
        }
    }
}

/// The hub of data sets.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// Its address, without a slash at the end.
    pub url: String,
    /// Sent to that address alone, and only after it has refused a request without it.
    pub token: Option<SecretString>,
    /// How long to wait for an answer to begin, and for each next piece of it.
    pub timeout: Duration,
    /// Tries in a row without progress, after which a fetch is given up.
    pub tries: usize,
    /// The wait after the first failure; it doubles with each next one, with jitter, up to a
    /// minute.
    pub backoff: Duration,
}

impl Default for HubSettings {
    fn default() -> Self {
        Self {
            url: "https://huggingface.co".to_owned(),
            token: None,
            timeout: Duration::from_secs(30),
            tries: 6,
            backoff: Duration::from_secs(1),
        }
    }
}

/// Bounds on what is read and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files of one source.
    pub shards: usize,
    /// Bytes of a shard as it is stored.
    pub shard_bytes: u64,
    /// Bytes of a shard's lines or text column, unpacked. They pass through a temporary file in the
    /// cache folder.
    pub unpacked_bytes: u64,
    /// Bytes of one line, text, page or dictionary: the memory that reading takes.
    pub piece_bytes: u64,
    /// Texts of a shard; 16 bytes of memory each.
    pub rows: u64,
    /// Token positions of one draw.
    pub tokens: u64,
    /// Bytes of hub shards kept on disk, beyond those in use.
    pub cache_bytes: u64,
    /// Shards kept ready to draw from, beyond those in use.
    pub open_shards: usize,
    /// Draws kept in memory.
    pub draws: usize,
    /// Draws kept on disk.
    pub saved_draws: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            shards: 100_000,
            shard_bytes: 8 << 30,
            unpacked_bytes: 32 << 30,
            piece_bytes: 256 << 20,
            rows: 20_000_000,
            tokens: 1 << 28,
            cache_bytes: 100 << 30,
            open_shards: 32,
            draws: 64,
            saved_draws: 256,
        }
    }
}
