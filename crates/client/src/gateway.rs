//! One validator's gateway, as one miner: where it is, how requests to it are signed and sent.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use domain::{
    BlockNumber, ExpertGroup, GlobalVersion, Hotkey, ModelHash, Phase, PhaseRecord, RoundId,
    block_message,
};
use reqwest::{RequestBuilder, Response, Url, redirect::Policy};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::{sleep, timeout};

use crate::{
    answer,
    error::ClientError,
    progress::Progress,
    retry::{Patience, Tries},
};

/// Signs bytes with the miner's hotkey: sr25519, context `substrate`.
pub type Signer = Arc<dyn Fn(&[u8]) -> [u8; 64] + Send + Sync>;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// One validator's gateway, as anybody may ask it. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
    pub(crate) patience: Patience,
}

/// Talks to one validator's gateway as one miner. Cheap to clone.
#[derive(Clone)]
pub struct MinerClient {
    pub(crate) gateway: Gateway,
    hotkey: Hotkey,
    sign: Signer,
    pub(crate) progress: Arc<dyn Progress>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl fmt::Debug for MinerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MinerClient")
            .field("gateway", &self.gateway)
            .field("hotkey", &self.hotkey)
            .finish_non_exhaustive()
    }
}

/// `GET /status`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Newest block.
    pub block: BlockNumber,
    /// Its phase.
    pub phase: Phase,
    /// Blocks of the phase after the newest one, where the gateway tells.
    #[serde(default)]
    pub blocks_remaining_in_phase: Option<u64>,
    /// The open round.
    pub round: Option<RoundId>,
    /// Whether a submission would be taken now.
    pub uploads_open: bool,
    /// Group that the validator evaluates.
    pub expert_group: ExpertGroup,
    /// Version of the model that is served.
    pub global_version: Option<GlobalVersion>,
    /// Its hash, as committed on chain.
    pub model_hash: Option<ModelHash>,
    /// The slices that are served.
    #[serde(default)]
    pub slices: Option<Vec<String>>,
    /// The validator's hotkey.
    pub hotkey: Hotkey,
}

impl Gateway {
    /// The gateway at `address`: `http://host:port`, `https://host`, or `host:port`.
    ///
    /// # Errors
    ///
    /// When the address is none, or the HTTP client can't be set up.
    pub fn new(address: &str, token: Option<String>) -> Result<Self, ClientError> {
        // Two TLS providers may meet in a process: the first choice stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let base = base(address)?;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            // Redirects are followed by whoever knows what may go there.
            .redirect(Policy::none())
            .build()?;
        Ok(Self { http, base, token, patience: Patience::default() })
    }

    /// Where the validator stands.
    ///
    /// # Errors
    ///
    /// When the gateway can't be reached, refuses or answers strangely; it is not tried again.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/status").await
    }

    /// Where the newest block stands in the cycle.
    ///
    /// # Errors
    ///
    /// As [`Self::status`].
    pub async fn phase(&self) -> Result<PhaseRecord, ClientError> {
        self.get("/get_phase").await
    }

    /// First block of the latest Submission phase that has begun: the round that a question without one means.
    ///
    /// # Errors
    ///
    /// As [`Self::status`].
    pub async fn latest_round(&self) -> Result<RoundId, ClientError> {
        if let Some(round) = self.status().await?.round {
            return Ok(round);
        }
        let phases: BTreeMap<String, (u64, u64)> = self.get("/previous_phase_blocks").await?;
        let start = phases.get(&Phase::Submission.to_string()).map(|(start, _)| RoundId(*start));
        start.ok_or_else(|| ClientError::Strange("it names no Submission phase".to_owned()))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(self.http.get(self.url(path))).await?;
        let silence = self.patience.silence;
        answer::json(answer::accepted(response, silence).await?, silence).await
    }

    /// Sends a request with a small body, and waits for the head of its answer.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        self.send_plainly(self.with_token(request)).await
    }

    /// The same to somebody who has no business with the token.
    pub(crate) async fn send_plainly(
        &self,
        request: RequestBuilder,
    ) -> Result<Response, ClientError> {
        let silence = self.patience.silence;
        let response = timeout(silence, request.send()).await;
        Ok(response.map_err(|_| ClientError::Silent(silence))??)
    }

    pub(crate) fn with_token(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// The URL of a route. The gateway may lie under a path of its own.
    pub(crate) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }
}

impl MinerClient {
    /// A client of the gateway at `address`, as [`Gateway::new`] takes it, for `hotkey`, whose key `sign` holds.
    ///
    /// # Errors
    ///
    /// As [`Gateway::new`].
    pub fn new(
        address: &str,
        hotkey: Hotkey,
        sign: Signer,
        token: Option<String>,
    ) -> Result<Self, ClientError> {
        let gateway = Gateway::new(address, token)?;
        Ok(Self { gateway, hotkey, sign, progress: Arc::new(()) })
    }

    /// The same with other limits of trying again.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.gateway.patience = patience;
        self
    }

    /// The same with somebody who is told how transfers go.
    #[must_use]
    pub fn with_progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// The miner whose requests these are.
    #[must_use]
    pub fn hotkey(&self) -> &Hotkey {
        &self.hotkey
    }

    /// The gateway, for what needs no signature.
    #[must_use]
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// As [`Gateway::status`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.gateway.status().await
    }

    /// As [`Gateway::phase`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn phase(&self) -> Result<PhaseRecord, ClientError> {
        self.gateway.phase().await
    }

    /// Waits until the gateway takes uploads: it opens a block or two into the Submission phase.
    ///
    /// # Errors
    ///
    /// When the gateway can't be asked for long enough.
    pub async fn until_open(&self) -> Result<Status, ClientError> {
        let mut tries = self.tries();
        loop {
            match self.status().await {
                Ok(status) if status.uploads_open => return Ok(status),
                Ok(_) => {
                    tries.progressed();
                    sleep(self.gateway.patience.block_time / 4).await;
                }
                Err(error) => tries.pause(error, self.progress.as_ref()).await?,
            }
        }
    }

    pub(crate) fn tries(&self) -> Tries {
        Tries::new(self.gateway.patience)
    }

    pub(crate) fn signature(&self, message: &[u8]) -> String {
        BASE64_URL_SAFE_NO_PAD.encode((self.sign)(message))
    }

    /// The fields of a request that is signed over the block message.
    pub(crate) fn signed(&self, status: &Status) -> Vec<(&'static str, String)> {
        vec![
            ("target_hotkey_ss58", status.hotkey.to_string()),
            ("origin_hotkey_ss58", self.hotkey.to_string()),
            ("origin_block", status.block.to_string()),
            ("signature", self.signature(&block_message(&status.hotkey, status.block))),
        ]
    }
}

/// The address as a URL: with a scheme that is spoken, a host, and nothing that does not belong there.
fn base(address: &str) -> Result<Url, ClientError> {
    let wrong =
        |why: &str| ClientError::Address { address: address.to_owned(), why: why.to_owned() };
    let given = address.trim();
    let url = if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
    let url: Url = url.parse().map_err(|_| wrong("it is no URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("only http and https are spoken"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(wrong("it has more than scheme, host, port and path"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_url_with_or_without_its_scheme() {
        for (given, route) in [
            ("127.0.0.1:8091", "http://127.0.0.1:8091/status"),
            ("http://host:1/", "http://host:1/status"),
            ("https://host/validator/", "https://host/validator/status"),
            ("[::1]:8091", "http://[::1]:8091/status"),
        ] {
            let gateway = Gateway::new(given, None).unwrap();
            assert_eq!(gateway.url("/status").as_str(), route);
        }
        for given in ["", "ftp://host", "http://", "http://a:b@host", "http://host/?q", "a b:1"] {
            assert!(matches!(base(given), Err(ClientError::Address { .. })), "{given}");
        }
    }
}
