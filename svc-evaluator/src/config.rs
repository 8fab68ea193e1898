use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use data::{HubSettings, Limits, Settings};
use model::{Device, LoadOptions, WeightType};
use secrecy::SecretString;

use crate::{bench::Setup, round_data::DataSetup};

/// An evaluator: one process per device.
#[derive(Debug, Clone, confique::Config)]
pub struct Config {
    /// Address of the gRPC server.
    #[config(default = "127.0.0.1:50053")]
    pub grpc_addr: SocketAddr,

    /// Address of the admin server (/healthz, /metrics); none without it.
    pub admin_addr: Option<SocketAddr>,

    /// Name under which it leases jobs, unique among the running ones; if empty, made of the
    /// instance (or the host) and the process id.
    #[config(default = "")]
    pub worker: String,

    /// Where the model runs: `cpu` or `cuda:<n>`.
    #[config(default = "cpu")]
    pub device: Device,

    /// Type of the parameters: `float32`, `bfloat16` or `float16`.
    #[config(default = "float32")]
    pub weights: WeightType,

    /// Multiply the attention scale by mscale², as transformers does from 5.16 on; the deployed
    /// validators do not.
    #[config(default = false)]
    pub mscale_in_attention: bool,

    /// Threads of libtorch on the processor, for the whole process; 0 leaves its default, which
    /// spins and is slow where cores are shared.
    #[config(default = 1)]
    pub threads: u32,

    /// Bytes of its device's memory that the model may take, the host's for `cpu`; 0 for what is
    /// available when it is loaded. What a GPU has free is not known: without a limit nothing is
    /// refused there.
    #[config(default = 0)]
    pub memory_limit: u64,

    /// `tokenizer.json` of the model.
    #[config(default = "./connito-data/model/tokenizer.json")]
    pub tokenizer: PathBuf,

    /// Folder of texts (parquet, JSON lines, `.txt`) that a round's batches are drawn from, unless
    /// `data.group_config` names the sources.
    #[config(default = "./connito-data/corpus/train")]
    pub corpus: PathBuf,

    /// Folder of texts that progress is measured on, unless `data.held_out_config` names the sources.
    #[config(default = "./connito-data/corpus/held_out")]
    pub held_out: PathBuf,

    /// Held-out batches; their size and length are those of the round's.
    #[config(default = 8)]
    pub held_out_batches: u32,

    /// Texts of fewer bytes are left out.
    #[config(default = 16)]
    pub minimum_text_length: usize,

    /// How long to wait before asking again when there is nothing to do.
    #[config(default = "250ms", deserialize_with = humantime_serde::deserialize)]
    pub idle: Duration,

    /// Where texts come from, and what is kept of them.
    #[config(nested)]
    pub data: DataConfig,
}

/// Where texts come from, and what is kept of them.
#[derive(Debug, Clone, confique::Config)]
pub struct DataConfig {
    /// `config.yaml` of the expert group, whose `data_sources` the round's batches are drawn from;
    /// without it they are drawn from `evaluator.corpus`.
    pub group_config: Option<PathBuf>,

    /// The same for what progress is measured on, instead of `evaluator.held_out`.
    pub held_out_config: Option<PathBuf>,

    /// Folders of sources that are only named: `{ name = "folder" }`.
    #[config(default = {})]
    pub names: BTreeMap<String, PathBuf>,

    /// Shards that a round's draw chooses from, of each source.
    #[config(default = 4)]
    pub shards_per_round: u32,

    /// Folder of what is kept: shards of the hub and drawn batches; if empty, `data` in
    /// `common.data_dir`. Evaluators of one host may share it.
    #[config(default = "")]
    pub cache: String,

    /// Bytes of hub shards that are kept, beyond those in use.
    #[config(default = 107_374_182_400u64)]
    pub cache_bytes: u64,

    /// Address of the hub of data sets, without a slash at the end.
    #[config(default = "https://huggingface.co")]
    pub hub: String,

    /// Token for the hub, sent to that address alone, and only where it refuses without. Give it by
    /// CONNITO_EVALUATOR_DATA_TOKEN.
    pub token: Option<SecretString>,
}

impl Default for DataConfig {
    /// The documented defaults.
    fn default() -> Self {
        Self {
            group_config: None,
            held_out_config: None,
            names: BTreeMap::new(),
            shards_per_round: 4,
            cache: String::new(),
            cache_bytes: 100 << 30,
            hub: HubSettings::default().url,
            token: None,
        }
    }
}

impl Config {
    /// Address of the admin server.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// How models are loaded.
    pub(crate) fn bench(&self) -> Setup {
        Setup {
            options: LoadOptions {
                device: self.device,
                weights: self.weights,
                autocast: None,
                mscale_in_attention: self.mscale_in_attention,
            },
            memory_limit: (self.memory_limit > 0).then_some(self.memory_limit),
        }
    }

    /// Where texts come from.
    pub(crate) fn data(&self, data_dir: &Path) -> DataSetup {
        let DataConfig { cache, cache_bytes, hub, token, names, .. } = &self.data;
        let cache = if cache.is_empty() { data_dir.join("data") } else { cache.into() };
        DataSetup {
            tokenizer: self.tokenizer.clone(),
            group_config: self.data.group_config.clone(),
            corpus: self.corpus.clone(),
            held_out_config: self.data.held_out_config.clone(),
            held_out: self.held_out.clone(),
            held_out_batches: self.held_out_batches as usize,
            settings: Settings {
                names: names.clone(),
                minimum_text_length: self.minimum_text_length,
                shards_per_round: self.data.shards_per_round as usize,
                hub: HubSettings {
                    url: hub.clone(),
                    token: token.clone(),
                    ..HubSettings::default()
                },
                limits: Limits { cache_bytes: *cache_bytes, ..Limits::default() },
                ..Settings::new(cache)
            },
        }
    }

    /// The configured name, or one that no other process on any host has.
    pub(crate) fn worker_name(&self, instance: &str) -> String {
        if !self.worker.is_empty() {
            return self.worker.clone();
        }
        let host = || {
            let name = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
            let name = name.trim();
            if name.is_empty() { "evaluator".to_owned() } else { name.to_owned() }
        };
        let place = if instance.is_empty() { host() } else { instance.to_owned() };
        format!("{place}-{}", std::process::id())
    }
}

impl Default for Config {
    /// The documented defaults.
    fn default() -> Self {
        Self {
            grpc_addr: SocketAddr::from(([127, 0, 0, 1], 50053)),
            admin_addr: None,
            worker: String::new(),
            device: Device::Cpu,
            weights: WeightType::Float32,
            mscale_in_attention: false,
            threads: 1,
            memory_limit: 0,
            tokenizer: "./connito-data/model/tokenizer.json".into(),
            corpus: "./connito-data/corpus/train".into(),
            held_out: "./connito-data/corpus/held_out".into(),
            held_out_batches: 8,
            minimum_text_length: 16,
            idle: Duration::from_millis(250),
            data: DataConfig::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_in_code_are_the_documented_ones() {
        let loaded: Config = kit::config::load_with(None, "evaluator", |_| None).unwrap();
        assert_eq!(format!("{loaded:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn a_device_that_is_none_is_refused_by_key() {
        let env = |name: &str| (name == "CONNITO_EVALUATOR_DEVICE").then(|| "gpu".to_owned());
        let error = kit::config::load_with::<Config>(None, "evaluator", env).unwrap_err();
        assert!(format!("{error:#}").contains("DEVICE"), "{error:#}");
    }

    #[test]
    fn a_worker_is_named_by_its_configuration_its_instance_or_its_host() {
        let mut config = Config::default();
        let pid = std::process::id();
        assert_eq!(config.worker_name("gpu-box"), format!("gpu-box-{pid}"));
        assert!(config.worker_name("").ends_with(&format!("-{pid}")));
        config.worker = "first".to_owned();
        assert_eq!(config.worker_name("gpu-box"), "first");
    }
}
