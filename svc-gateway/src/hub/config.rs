use std::time::Duration;

use confique::Config as _;
use secrecy::SecretString;

/// Files that miners left on a model hub. Each gateway has these limits for itself.
#[derive(Debug, Clone, confique::Config)]
pub struct HubConfig {
    /// Whether files are fetched from the place on a hub that a miner's commitment names. A validator
    /// that must not reach out says no.
    #[config(default = true)]
    pub enabled: bool,

    /// Address of the hub, without a slash at the end.
    #[config(default = "https://huggingface.co")]
    pub url: String,

    /// Token for the hub, sent to that address alone, and only where it refuses without. Give it by
    /// CONNITO_GATEWAY_HUB_TOKEN.
    pub token: Option<SecretString>,

    /// Files that are fetched at a time.
    #[config(default = 4)]
    pub concurrency: usize,

    /// Bytes per second of all files together, on average over a second; 0: as fast as it goes.
    #[config(default = 104_857_600u64)]
    pub bytes_per_second: u64,

    /// Bytes per second of one miner's file; 0: as fast as it goes.
    #[config(default = 52_428_800u64)]
    pub bytes_per_second_per_miner: u64,

    /// Bytes per second below which a connection is given up, waits of ours not counted.
    #[config(default = 65_536u64)]
    pub least_bytes_per_second: u64,

    /// How long to wait for an answer to begin, and for each next piece of it.
    #[config(default = "30s", deserialize_with = humantime_serde::deserialize)]
    pub timeout: Duration,

    /// How long one file may take, with everything that is asked before it.
    #[config(default = "10m", deserialize_with = humantime_serde::deserialize)]
    pub file_timeout: Duration,

    /// Tries in a row that bring nothing new, after which an attempt is over.
    #[config(default = 6)]
    pub tries: u32,

    /// The wait after the first such try; it doubles with each next one, up to a minute.
    #[config(default = "1s", deserialize_with = humantime_serde::deserialize)]
    pub backoff: Duration,

    /// Attempts on one miner's file in a round, by all gateways together. They are some blocks apart.
    #[config(default = 12)]
    pub attempts: u32,

    /// How often to look which files are missing.
    #[config(default = "5s", deserialize_with = humantime_serde::deserialize)]
    pub interval: Duration,
}

impl Default for HubConfig {
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
    fn the_defaults_are_a_configuration_and_have_no_token() {
        let config = HubConfig::default();
        assert!(config.enabled && config.token.is_none());
        assert_eq!(config.file_timeout, Duration::from_secs(600));
    }

    #[test]
    fn the_token_does_not_show_in_logs() {
        let config = HubConfig { token: Some("hush".into()), ..HubConfig::default() };
        assert!(!format!("{config:?}").contains("hush"));
    }
}
