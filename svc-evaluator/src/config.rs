use std::{net::SocketAddr, path::PathBuf, time::Duration};

use model::{Device, WeightType};

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

    /// Type of the parameters: `float32` or `bfloat16`.
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

    /// `tokenizer.json` of the model.
    #[config(default = "./connito-data/model/tokenizer.json")]
    pub tokenizer: PathBuf,

    /// Folder of texts (`*.jsonl`, `*.txt`) that a round's batches are drawn from.
    #[config(default = "./connito-data/corpus/train")]
    pub corpus: PathBuf,

    /// Folder of texts that progress is measured on.
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
}

impl Config {
    /// Address of the admin server.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
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
            tokenizer: "./connito-data/model/tokenizer.json".into(),
            corpus: "./connito-data/corpus/train".into(),
            held_out: "./connito-data/corpus/held_out".into(),
            held_out_batches: 8,
            minimum_text_length: 16,
            idle: Duration::from_millis(250),
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
