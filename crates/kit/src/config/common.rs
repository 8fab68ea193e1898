//! `[common]`: what all services of a host agree on.

use std::{path::PathBuf, time::Duration};

/// What all services of a host agree on.
#[derive(Debug, Clone, confique::Config)]
pub struct Common {
    /// Where leases, nonces and state live: `memory://` (one process), or `redis://host:port/db`.
    #[config(default = "memory://")]
    pub store_url: String,

    /// Prefix of everything in the store: one per validator.
    #[config(default = "connito")]
    pub namespace: String,

    /// Where models, submissions and records live: `file:PATH` or `s3://bucket/prefix`.
    #[config(default = "file:./connito-data/artifacts")]
    pub artifacts_url: String,

    /// Lengths of the nine phases of a cycle, in blocks and in their order: Distribute, Train,
    /// MinerCommit1, MinerCommit2, Submission, Validate, Merge, ValidatorCommit1, ValidatorCommit2.
    #[config(default = [20, 300, 8, 8, 20, 50, 50, 8, 8])]
    pub phases: Vec<u64>,

    /// Folder for what this host keeps to itself: caches and temporary files.
    #[config(default = "./connito-data")]
    pub data_dir: PathBuf,

    /// Address of svc-chain.
    #[config(default = "http://127.0.0.1:50051")]
    pub chain_url: String,

    /// Address of svc-scheduler.
    #[config(default = "http://127.0.0.1:50052")]
    pub scheduler_url: String,

    /// Address of svc-peer.
    #[config(default = "http://127.0.0.1:50055")]
    pub peer_url: String,

    /// OTLP (gRPC) collector that spans go to, as `http://host:4317`; none are sent without it.
    pub otlp_endpoint: Option<String>,

    /// How log lines look: `json`, `human`, or `auto` (human on a terminal).
    #[config(default = "auto")]
    pub log_format: LogFormat,

    /// Which log lines are written: a level, or `target=level` separated by commas.
    #[config(default = "info")]
    pub log_filter: String,

    /// File that log lines are appended to; standard error without it.
    pub log_file: Option<PathBuf>,

    /// Name of this process among those of its service, in traces; its process id if empty.
    #[config(default = "")]
    pub instance: String,

    /// How long work in flight may take to finish after a stop signal.
    #[config(default = "10s", deserialize_with = humantime_serde::deserialize)]
    pub shutdown_grace: Duration,

    /// Mutual TLS between the services of a validator. All three files, or none.
    #[config(nested)]
    pub tls: Tls,
}

/// Files of mutual TLS, in PEM. The default is no TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, confique::Config)]
pub struct Tls {
    /// Certificate of this host, valid as server and as client.
    pub cert: Option<PathBuf>,

    /// Private key of the certificate.
    pub key: Option<PathBuf>,

    /// Certificate of the authority that both sides' certificates are checked against.
    pub ca: Option<PathBuf>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Human on a terminal, else JSON.
    Auto,
    /// One JSON object per line.
    Json,
    /// For reading.
    Human,
}

impl Default for Common {
    /// The documented defaults: one process, in memory, on loopback.
    fn default() -> Self {
        Self {
            store_url: "memory://".to_owned(),
            namespace: "connito".to_owned(),
            artifacts_url: "file:./connito-data/artifacts".to_owned(),
            phases: vec![20, 300, 8, 8, 20, 50, 50, 8, 8],
            data_dir: PathBuf::from("./connito-data"),
            chain_url: "http://127.0.0.1:50051".to_owned(),
            scheduler_url: "http://127.0.0.1:50052".to_owned(),
            peer_url: "http://127.0.0.1:50055".to_owned(),
            otlp_endpoint: None,
            log_format: LogFormat::Auto,
            log_filter: "info".to_owned(),
            log_file: None,
            instance: String::new(),
            shutdown_grace: Duration::from_secs(10),
            tls: Tls::default(),
        }
    }
}
