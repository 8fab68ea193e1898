//! The `[gateway]` section of the configuration.

use std::{net::SocketAddr, time::Duration};

use confique::Config as _;
use secrecy::SecretString;

use crate::hub::HubConfig;

/// The gateway's own settings. Limits have safe defaults; sizes are bytes.
#[derive(Debug, Clone, confique::Config)]
pub struct Config {
    /// Address of the HTTP server that miners use: loopback unless told otherwise. The axon on chain
    /// must lead to it.
    #[config(default = "127.0.0.1:8091")]
    pub http_addr: SocketAddr,

    /// Address of the gRPC server, for operators.
    #[config(default = "127.0.0.1:50054")]
    pub grpc_addr: SocketAddr,

    /// Address of /healthz and /metrics; left out, there is none.
    pub admin_addr: Option<SocketAddr>,

    /// Bearer token that every HTTP request must carry; left out, none is asked for. Better given by
    /// the environment than by a file.
    #[config(env = "AUTH_TOKEN")]
    pub auth_token: Option<SecretString>,

    /// URL at which other validators reach this validator's svc-peer, told by `GET /`; empty: not told.
    #[config(default = "")]
    pub advertised_peer_url: String,

    /// URL at which miners reach this gateway, told by `GET /`; empty: not told. Where there are several
    /// gateways, each should have its own: they lead to the one on which an upload by `/files` lies.
    #[config(default = "")]
    pub advertised_http_url: String,

    /// What `GET /get_init_peer_id` lists; empty: the advertised peer URL, if there is one.
    #[config(default = [])]
    pub init_peer_ids: Vec<String>,

    /// Netuid told by `GET /`; left out, it is not told.
    pub netuid: Option<u16>,

    /// Oldest origin block of a signed download, in blocks before the newest; left out: one cycle.
    pub max_origin_age_blocks: Option<u64>,

    /// How far the origin block of a signed download may be ahead of the newest block known here.
    #[config(default = 5)]
    pub max_origin_ahead_blocks: u64,

    /// With a view of the round older than this, uploads are refused.
    #[config(default = "90s", deserialize_with = humantime_serde::deserialize)]
    pub max_view_age: Duration,

    /// Largest file that is taken, whatever the base model's size.
    #[config(default = 8_589_934_592u64)]
    pub max_upload_bytes: u64,

    /// How long the body of an upload may take.
    #[config(default = "300s", deserialize_with = humantime_serde::deserialize)]
    pub upload_timeout: Duration,

    /// How long an upload may be silent, and a download take nothing; and over how long the least rates are
    /// looked at.
    #[config(default = "30s", deserialize_with = humantime_serde::deserialize)]
    pub idle_timeout: Duration,

    /// Least rate of an upload, in bytes per second while the sender is waited for; 0: none. Slower ones are
    /// `too_slow`.
    #[config(default = 65_536u64)]
    pub min_upload_rate: u64,

    /// Least rate of a download, in bytes per second while the client is waited for; 0: none. The connection of
    /// a slower one is closed.
    #[config(default = 16_384u64)]
    pub min_download_rate: u64,

    /// How long the header of a request, a small body, or the fields before an upload's file may take; and how
    /// long a connection may be idle between requests.
    #[config(default = "15s", deserialize_with = humantime_serde::deserialize)]
    pub header_timeout: Duration,

    /// Largest header of a request: at least 8192.
    #[config(default = 16384)]
    pub max_header_bytes: usize,

    /// Uploads at a time, of senders that were verified.
    #[config(default = 32)]
    pub max_uploads: usize,

    /// How long an upload by `/files` that is not at its end may be silent before it is deleted. It may also
    /// last no longer than the Submission phase.
    #[config(default = "10m", deserialize_with = humantime_serde::deserialize)]
    pub tus_idle: Duration,

    /// Uploads by `/files` that are not at their end, one per hotkey: enough for a whole subnet.
    #[config(default = 256)]
    pub tus_max_unfinished: usize,

    /// Downloads at a time.
    #[config(default = 128)]
    pub max_downloads: usize,

    /// Downloads at a time to one address, or behind a proxy to one client: more are 429 `too_many_connections`.
    #[config(default = 32)]
    pub max_downloads_per_address: usize,

    /// How downloads are served where the artifact store is not on this disk: `stream` reads them from it
    /// as they are sent; `copy` copies each file to this disk first, and then sends that as fast as a file of
    /// its own; `redirect` sends the client to a signed URL of the store, where that has such (a client that
    /// goes on with a part, or says `redirect=no`, is streamed to).
    #[config(default = "stream")]
    pub remote_downloads: RemoteDownloads,

    /// How long a signed URL that downloads are redirected to is good for.
    #[config(default = "15m", deserialize_with = humantime_serde::deserialize)]
    pub redirect_lifetime: Duration,

    /// Verifications at a time; each keeps one processor busy.
    #[config(default = 2)]
    pub max_verifications: usize,

    /// Bytes of uploads at a time. What one announces is set aside before its first byte; without a length, as
    /// much as the largest file has. More are `no_room`.
    #[config(default = 137_438_953_472u64)]
    pub spool_bytes: u64,

    /// Bytes that uploads leave free on the spool's disk. With less, they are `no_room`.
    #[config(default = 1_073_741_824u64)]
    pub min_free_bytes: u64,

    /// Connections at a time: more than uploads and downloads. When all places are taken, a newcomer gets that of
    /// one who neither uploads nor downloads.
    #[config(default = 2048)]
    pub max_connections: usize,

    /// Connections at a time from one address (of IPv6, one /64); behind a reverse proxy, requests at a time of one
    /// client.
    #[config(default = 128)]
    pub max_connections_per_address: usize,

    /// Requests per second from one address, on average.
    #[config(default = 100)]
    pub requests_per_address: u32,

    /// Requests from one address at once.
    #[config(default = 1000)]
    pub burst_per_address: u32,

    /// Signed requests per minute from one hotkey, on average.
    #[config(default = 60)]
    pub requests_per_hotkey: u32,

    /// Signed requests from one hotkey at once.
    #[config(default = 60)]
    pub burst_per_hotkey: u32,

    /// Header that holds the client's address behind a reverse proxy, for example `x-real-ip`; empty: the
    /// connection's own. Its last entry counts.
    #[config(default = "")]
    pub client_address_header: String,

    /// How long one gateway's claim on an upload outlives it.
    #[config(default = "15s", deserialize_with = humantime_serde::deserialize)]
    pub upload_lease: Duration,

    /// How long the marks of submissions and of used signatures are kept: longer than a cycle.
    #[config(default = "1day", deserialize_with = humantime_serde::deserialize)]
    pub mark_ttl: Duration,

    /// How often submissions that the scheduler has not taken note of are reported again.
    #[config(default = "5s", deserialize_with = humantime_serde::deserialize)]
    pub report_interval: Duration,

    /// Files that miners left on a model hub.
    #[config(nested)]
    pub hub: HubConfig,
}

/// How files are served that are not on this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemoteDownloads {
    /// Read from the artifact store as they are sent.
    Stream,
    /// Copied to this disk first.
    Copy,
    /// Given out by the artifact store itself.
    Redirect,
}

impl Default for Config {
    fn default() -> Self {
        #[expect(
            clippy::expect_used,
            reason = "every default is in this file, and a test loads them"
        )]
        Self::builder().load().expect("every key has a default")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_a_configuration() {
        let config = Config::default();
        assert_eq!(config.upload_timeout, Duration::from_secs(300));
        assert_eq!(config.max_upload_bytes, 8 << 30);
        assert!(config.auth_token.is_none());
    }

    #[test]
    fn the_token_does_not_show_in_logs() {
        let config = Config { auth_token: Some("hush".into()), ..Config::default() };
        assert!(!format!("{config:?}").contains("hush"));
    }
}
