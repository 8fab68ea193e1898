//! A miner's end of the gateway's HTTP (protocol, section 8): signed, resumable downloads and submissions.
//!
//! Knows the wire and nothing of training. The key stays outside: signing is a function that is handed in.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use checkpoint::{Format, SliceId};
use domain::{
    BlockNumber, ExpertGroup, GlobalVersion, Hotkey, ModelHash, Phase, PhaseRecord, RoundId,
    block_message, submission_message,
};
use reqwest::{
    Body, RequestBuilder, Response, StatusCode,
    header::{CONTENT_TYPE, ETAG, HeaderMap, IF_RANGE, RANGE, RETRY_AFTER},
    multipart::{Form, Part},
};
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::{self, File, OpenOptions},
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};
use tokio_util::io::ReaderStream;
use tracing::info;

/// Signs bytes with the miner's hotkey: sr25519, context `substrate`.
pub type Signer = Arc<dyn Fn(&[u8]) -> [u8; 64] + Send + Sync>;

/// How often a broken transfer is begun again.
const ATTEMPTS: u32 = 8;
/// First pause between attempts; each next one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// Talks to one validator's gateway as one miner.
#[derive(Clone)]
pub struct MinerClient {
    http: reqwest::Client,
    base: String,
    hotkey: Hotkey,
    sign: Signer,
    token: Option<String>,
}

impl fmt::Debug for MinerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MinerClient")
            .field("base", &self.base)
            .field("hotkey", &self.hotkey)
            .finish_non_exhaustive()
    }
}

/// What a request can fail with.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The gateway can't be reached, or the transfer broke more often than it was tried again.
    #[error("the gateway can't be reached: {0}")]
    Http(#[from] reqwest::Error),
    /// The gateway said no.
    #[error("the gateway refused: {0}")]
    Refused(Outcome),
    /// A file on this side.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// What arrived is not what was announced.
    #[error("the download is corrupt: {0}")]
    Corrupt(String),
}

/// `GET /status`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Newest block.
    pub block: BlockNumber,
    /// Its phase.
    pub phase: Phase,
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
    /// The validator's hotkey.
    pub hotkey: Hotkey,
}

/// A file that was downloaded whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// Where it lies.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// How much of it was here before, from a download that had broken off.
    pub resumed_from: u64,
    /// Version of the model that it is of.
    pub global_version: GlobalVersion,
    /// Hash of that model, as committed on chain.
    pub model_hash: ModelHash,
}

/// How a submission ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// HTTP status: 200 when the submission is stored.
    pub status: u16,
    /// Stable reason; empty when it is stored.
    pub reason: String,
    /// The same for a person; where it is stored: the key.
    pub detail: String,
}

impl Outcome {
    /// Whether the submission is stored.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.status == StatusCode::OK.as_u16()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.status, self.reason, self.detail)
    }
}

#[derive(Deserialize)]
struct Refusal {
    detail: String,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct Stored {
    stored_path: String,
}

/// Where a download stands, as headers tell.
struct Announced {
    etag: String,
    sha256: String,
    global_version: GlobalVersion,
    model_hash: ModelHash,
}

impl MinerClient {
    /// A client of the gateway at `base_url`, for `hotkey`, whose key `sign` holds.
    ///
    /// # Errors
    ///
    /// When the HTTP client can't be set up.
    pub fn new(
        base_url: &str,
        hotkey: Hotkey,
        sign: Signer,
        token: Option<String>,
    ) -> Result<Self, ClientError> {
        kit::install_crypto();
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(SILENCE)
            .build()?;
        Ok(Self { http, base: base_url.trim_end_matches('/').to_owned(), hotkey, sign, token })
    }

    /// Where the validator stands.
    ///
    /// # Errors
    ///
    /// [`ClientError::Http`] and [`ClientError::Refused`].
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

    /// Downloads a slice of the current global model to `path`. A download that breaks off is gone on
    /// with, in this call or in the next one; what lies at `path` is whole and has the announced SHA-256.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`].
    pub async fn download(
        &self,
        slice: SliceId,
        format: Format,
        path: &Path,
    ) -> Result<Downloaded, ClientError> {
        let part = sibling(path, "part");
        let resumed_from = length(&part).await;
        let mut pause = PAUSE;
        for attempt in 1..=ATTEMPTS {
            match self.fetch(slice, format, path).await {
                Ok(announced) => {
                    let bytes = check(&part, &announced).await?;
                    in_place(fs::rename(&part, path).await, path)?;
                    // The tag is only of use beside a part.
                    let _ = fs::remove_file(sibling(path, "etag")).await;
                    let Announced { global_version, model_hash, .. } = announced;
                    let path = path.to_owned();
                    return Ok(Downloaded {
                        path,
                        bytes,
                        resumed_from,
                        global_version,
                        model_hash,
                    });
                }
                Err(error) if attempt < ATTEMPTS && is_passing(&error) => {
                    info!(%error, attempt, "a download broke off, going on");
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        Err(ClientError::Corrupt("it broke off too often".to_owned()))
    }

    /// Submits the checkpoint at `path`, whose model hash is committed on chain. Tries again while the
    /// gateway is busy or the connection breaks; any other refusal is an outcome, not an error.
    ///
    /// # Errors
    ///
    /// [`ClientError::Http`] when every attempt broke, [`ClientError::File`].
    pub async fn submit(&self, path: &Path, hash: ModelHash) -> Result<Outcome, ClientError> {
        let mut pause = PAUSE;
        let mut attempt = 1;
        loop {
            let (again, result) = match self.send(path, hash).await {
                Ok((outcome, retry_after)) => {
                    let passing = matches!(outcome.status, 408 | 429 | 503)
                        || outcome.reason == "upload_in_progress";
                    pause = retry_after.unwrap_or(pause);
                    (passing, Ok(outcome))
                }
                Err(error) => (is_passing(&error), Err(error)),
            };
            if !again || attempt == ATTEMPTS {
                return result;
            }
            info!(attempt, ?result, "a submission did not go through, trying again");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            attempt += 1;
        }
    }

    /// Goes on with the download of `path` from what is here already.
    async fn fetch(
        &self,
        slice: SliceId,
        format: Format,
        path: &Path,
    ) -> Result<Announced, ClientError> {
        let (part, tag) = (sibling(path, "part"), sibling(path, "etag"));
        let status = self.status().await?;
        let signature = self.signature(&block_message(&status.hotkey, status.block));
        let mut form = vec![
            ("target_hotkey_ss58", status.hotkey.to_string()),
            ("origin_hotkey_ss58", self.hotkey.to_string()),
            ("origin_block", status.block.to_string()),
            ("signature", signature),
            ("format", format.extension().to_owned()),
        ];
        if slice != SliceId::Full {
            form.push(("expert_group_id", slice.to_string()));
        }
        let mut request = self.request(self.http.get(self.url("/get-checkpoint"))).form(&form);
        let here = length(&part).await;
        if let (Ok(etag), true) = (fs::read_to_string(&tag).await, here > 0) {
            request = request.header(RANGE, format!("bytes={here}-")).header(IF_RANGE, etag);
        }
        let response = request.send().await?;
        let complete = response.status() == StatusCode::RANGE_NOT_SATISFIABLE;
        if complete {
            // All of it is here, or too much: without the part, the next attempt begins afresh.
            in_place(fs::remove_file(&part).await, &part)?;
            return Err(ClientError::Refused(refusal(response).await?));
        }
        let mut response = accepted(response).await?;
        let announced = announced(response.headers())?;
        let append = response.status() == StatusCode::PARTIAL_CONTENT;
        in_place(fs::write(&tag, &announced.etag).await, &tag)?;
        let opened = OpenOptions::new()
            .create(true)
            .write(true)
            .append(append)
            .truncate(!append)
            .open(&part)
            .await;
        let mut file = in_place(opened, &part)?;
        while let Some(piece) = response.chunk().await? {
            in_place(file.write_all(&piece).await, &part)?;
        }
        in_place(file.sync_all().await, &part)?;
        Ok(announced)
    }

    async fn send(
        &self,
        path: &Path,
        hash: ModelHash,
    ) -> Result<(Outcome, Option<Duration>), ClientError> {
        let status = self.status().await?;
        let block = block_message(&status.hotkey, status.block);
        let message = submission_message(&hash, &status.hotkey, status.block);
        let file = in_place(File::open(path).await, path)?;
        let bytes = in_place(file.metadata().await, path)?.len();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let part = Part::stream_with_length(Body::wrap_stream(ReaderStream::new(file)), bytes)
            .file_name(name.unwrap_or_default());
        let form = Form::new()
            .text("target_hotkey_ss58", status.hotkey.to_string())
            .text("origin_hotkey_ss58", self.hotkey.to_string())
            .text("origin_block", status.block.to_string())
            .text("model_hex", hash.to_hex())
            .text("block_hex", hex::encode(block))
            .text("signature", self.signature(&message))
            .part("file", part);
        let request = self.request(self.http.post(self.url("/submit-checkpoint")));
        let response = request.multipart(form).send().await?;
        if response.status() == StatusCode::OK {
            let stored: Stored = response.json().await?;
            let status = StatusCode::OK.as_u16();
            let (reason, detail) = (String::new(), stored.stored_path);
            return Ok((Outcome { status, reason, detail }, None));
        }
        let retry_after = retry_after(response.headers());
        Ok((refusal(response).await?, retry_after))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.request(self.http.get(self.url(path))).send().await?;
        Ok(accepted(response).await?.json().await?)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn request(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn signature(&self, message: &[u8]) -> String {
        BASE64_URL_SAFE_NO_PAD.encode((self.sign)(message))
    }
}

async fn accepted(response: Response) -> Result<Response, ClientError> {
    if response.status().is_success() {
        Ok(response)
    } else {
        Err(ClientError::Refused(refusal(response).await?))
    }
}

async fn refusal(response: Response) -> Result<Outcome, ClientError> {
    let status = response.status().as_u16();
    let is_json =
        response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    let refusal = if is_json {
        response.json().await?
    } else {
        Refusal { detail: response.text().await?, reason: String::new() }
    };
    Ok(Outcome { status, reason: refusal.reason, detail: refusal.detail })
}

fn announced(headers: &HeaderMap) -> Result<Announced, ClientError> {
    fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, ClientError> {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| ClientError::Corrupt(format!("the answer has no header {name}")))
    }
    let wrong = |name: &str| ClientError::Corrupt(format!("the answer's header {name} is wrong"));
    Ok(Announced {
        etag: text(headers, ETAG.as_str())?.to_owned(),
        sha256: text(headers, "x-content-sha256")?.to_owned(),
        global_version: text(headers, "x-global-version")?
            .parse()
            .map(GlobalVersion)
            .map_err(|_| wrong("x-global-version"))?,
        model_hash: text(headers, "x-model-hash")?.parse().map_err(|_| wrong("x-model-hash"))?,
    })
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// Whether the same may work in a moment.
fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Http(error) => !error.is_builder() && !error.is_decode(),
        ClientError::Refused(outcome) => matches!(outcome.status, 408 | 416 | 429 | 503),
        ClientError::File { .. } | ClientError::Corrupt(_) => false,
    }
}

/// Compares the finished part with what was announced; a wrong one is deleted. Returns its length.
async fn check(part: &Path, announced: &Announced) -> Result<u64, ClientError> {
    let mut file = in_place(File::open(part).await, part)?;
    let (mut sha256, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = in_place(file.read(&mut piece).await, part)?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        sha256.update(&piece[..read]);
    }
    let found = hex::encode(sha256.finalize());
    if found == announced.sha256 {
        return Ok(bytes);
    }
    in_place(fs::remove_file(part).await, part)?;
    Err(ClientError::Corrupt(format!("its SHA-256 is {found}, not {}", announced.sha256)))
}

fn sibling(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    path.with_file_name(name)
}

async fn length(path: &Path) -> u64 {
    fs::metadata(path).await.map_or(0, |metadata| metadata.len())
}

fn in_place<T>(result: std::io::Result<T>, path: &Path) -> Result<T, ClientError> {
    result.map_err(|source| ClientError::File { path: path.to_owned(), source })
}
