//! The `[peer]` section of the configuration.

mod reduction;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use checkpoint::{Codec, OuterSgd};
use domain::Hotkey;

pub use self::reduction::{Reduction, Rule};

/// The merger's own settings.
#[derive(Debug, Clone, confique::Config)]
pub struct Config {
    /// Address of the gRPC server for this validator's own services.
    #[config(default = "127.0.0.1:50055")]
    pub grpc_addr: SocketAddr,

    /// Address of the gRPC server for other validators; left out, they share `grpc_addr`. Set it
    /// where others come from outside, so that they cannot reach what is for this validator only.
    /// How others find it is told by the gateway's `advertised_peer_url`.
    pub peer_addr: Option<SocketAddr>,

    /// Whether the server at `peer_addr` speaks TLS. Turn it off where a proxy before it does; whoever
    /// comes for `https` has to see the certificate of `peer_tls_cert` there.
    #[config(default = true)]
    pub peer_tls: bool,

    /// PEM file with the certificate that other validators see at `peer_addr`. Left out, one is made
    /// at every start: the hotkey vouches for it, and no authority is needed.
    pub peer_tls_cert: Option<PathBuf>,

    /// PEM file with the key of `peer_tls_cert`; left out where a proxy has it.
    pub peer_tls_key: Option<PathBuf>,

    /// Whether other validators can call this one. One that only dials out, from behind a NAT or a
    /// firewall, takes part without `peer_addr`, and reduces nothing for others.
    #[config(default = true)]
    pub callable: bool,

    /// Address of /healthz and /metrics; left out, there is none.
    pub admin_addr: Option<SocketAddr>,

    /// Where other validators' peer services are, by hotkey: `"5F3s…" = "http://host:port"`. Those
    /// that are not named here are asked at the axon that they have announced on chain.
    #[config(default = {})]
    pub peer_urls: BTreeMap<Hotkey, String>,

    /// Fewer validators do not merge, and fewer signatures do not end a merge; all must have the same.
    /// More than half of the subnet's validators rules out that two parts of a divided network make
    /// two models.
    #[config(default = 2, validate(*min_group >= 1, "must be at least 1"))]
    pub min_group: u32,

    /// More validators do not merge at once: those with the most stake do. All must have the same.
    #[config(default = 16, validate((2..=256).contains(target_group), "must be 2 to 256"))]
    pub target_group: u32,

    /// Dead or lying members that the deadlines of a merge have room for; all must have the same. Every
    /// one more makes all steps shorter.
    #[config(default = 1, validate(*max_faults <= 8, "must be at most 8"))]
    pub max_faults: u8,

    /// Chunks of every slice that are made again from what their contributors have committed to.
    #[config(default = 8)]
    pub audits: u16,

    /// Values in a chunk: what is hashed, sent and checked at once. All must have the same.
    #[config(default = 262_144, validate((256..=262_144).contains(chunk_elements) && chunk_elements % 256 == 0, "must be a multiple of 256, at most 262144"))]
    pub chunk_elements: usize,

    /// How long a request that comes early waits for what it asks; then the asker tries again.
    #[config(default = "10s", deserialize_with = humantime_serde::deserialize)]
    pub answer_wait: Duration,

    /// How long an answer of another validator, or the next chunk of a stream, may take.
    #[config(default = "20s", deserialize_with = humantime_serde::deserialize, validate(!call_timeout.is_zero(), "must not be zero"))]
    pub call_timeout: Duration,

    /// How long another validator's axon may take to say where its peer service is.
    #[config(default = "5s", deserialize_with = humantime_serde::deserialize)]
    pub discovery_timeout: Duration,

    /// Requests that one validator may make in one round.
    #[config(default = 20_000)]
    pub max_requests: u32,

    /// Streams of chunks that one validator may have open here at once.
    #[config(default = 8, validate(*max_transfers > 0, "must not be zero"))]
    pub max_transfers: usize,

    /// What gradients travel as: `float32`; `bfloat16`, half of that; or `int8`, a quarter, in blocks with
    /// a scale each. What the small ones lose is added to the next gradient. The result travels as
    /// `float32` where gradients do, else as `bfloat16`. All validators must have the same.
    #[config(default = "float32")]
    pub codec: Codec,

    /// How the gradients of a merge's members become one. All validators must have the same, or they
    /// are left out as having another reduction.
    #[config(nested)]
    pub reduction: Reduction,

    #[config(nested)]
    pub optimizer: Optimizer,

    #[config(nested)]
    pub resync: Resync,
}

/// Bringing models from other validators, and giving them what is here.
#[derive(Debug, Clone, confique::Config)]
pub struct Resync {
    /// Streams of chunks at once from each validator that has the model.
    #[config(default = 2, validate((1..=16).contains(streams_per_holder), "must be 1 to 16"))]
    pub streams_per_holder: usize,

    /// Streams of chunks at once to each validator that asks for a model.
    #[config(default = 4, validate((1..=64).contains(max_streams), "must be 1 to 64"))]
    pub max_streams: usize,

    /// Largest model that is brought, in bytes of its files: the whole model and the optimizer's state. On
    /// the disk it takes about six times as much while it is put together.
    #[config(default = 274_877_906_944u64)]
    pub max_model_bytes: u64,
}

/// The outer optimizer: SGD over the reduced pseudo-gradient. All validators must have the same, or
/// they are left out as having another layout.
#[derive(Debug, Clone, confique::Config)]
pub struct Optimizer {
    /// Learning rate.
    #[config(default = 0.7, validate(lr.is_finite() && *lr > 0.0, "must be above zero"))]
    pub lr: f32,

    /// Momentum.
    #[config(default = 0.9, validate((0.0..1.0).contains(momentum), "must be 0 to below 1"))]
    pub momentum: f32,

    /// Whether the momentum looks ahead.
    #[config(default = true)]
    pub nesterov: bool,
}

impl From<&Optimizer> for OuterSgd {
    fn from(optimizer: &Optimizer) -> Self {
        Self { lr: optimizer.lr, momentum: optimizer.momentum, nesterov: optimizer.nesterov }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn load(text: &str) -> anyhow::Result<Config> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        kit::config::load_with(Some(file.path()), "peer", |_| None)
    }

    #[test]
    fn the_template_holds_the_defaults() {
        let template = kit::config::template::<Config>("peer");
        let config = load(&template).unwrap();
        assert_eq!(config.grpc_addr, "127.0.0.1:50055".parse().unwrap());
        assert!(config.peer_urls.is_empty());
        let sgd = OuterSgd::from(&config.optimizer);
        assert_eq!((sgd.lr, sgd.momentum, sgd.nesterov), (0.7, 0.9, true));
    }

    #[test]
    fn peers_are_named_by_hotkey() {
        let alice = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
        let text = format!("[peer.peer_urls]\n{alice} = \"http://10.0.0.1:50056\"");
        let config = load(&text).unwrap();
        assert_eq!(config.peer_urls[&alice.parse().unwrap()], "http://10.0.0.1:50056");
        assert!(load("[peer.peer_urls]\nalice = \"http://10.0.0.1:50056\"").is_err());
    }

    #[test]
    fn a_chunk_larger_than_the_protocol_allows_is_refused() {
        let error = load("[peer]\nchunk_elements = 262400").unwrap_err();
        assert!(format!("{error:#}").contains("chunk_elements"), "{error:#}");
    }
}
