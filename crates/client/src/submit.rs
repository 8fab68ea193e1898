//! Submissions: by tus where the gateway offers it, else as one form, until the gateway has the file or says
//! why it will not.
//!
//! A try that ends without an answer says nothing of what became of the file. The next one asks first: the upload
//! itself where there is one, then the gateway's receipt; and whoever is told that its submission is stored
//! already has submitted.

use std::{collections::BTreeMap, path::Path};

use domain::{Hotkey, ModelHash, RoundId, block_message, submission_message};
use reqwest::{
    Response, Url,
    header::HeaderMap,
    multipart::{Form, Part},
};
use serde::Deserialize;
use tracing::{debug, info};

use crate::{
    advice::{Next, is_of_upload},
    answer::{self, header},
    error::ClientError,
    gateway::{MinerClient, Status},
    note::{self, Purpose},
    retry::Tries,
    source::Source,
    tus::{self, Offer, Standing},
};

/// How often an upload is looked for that lies at another gateway, of which no address is known: whoever
/// distributes requests may hit it. Then another one is begun.
const MOST_ELSEWHERE: u32 = 2;

/// How a file came to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// By tus: it goes on where it broke off.
    Tus,
    /// As one form.
    Multipart,
    /// By an earlier try, whose answer was lost, or an earlier call.
    Earlier,
}

impl Transport {
    /// The stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tus => "tus",
            Self::Multipart => "multipart",
            Self::Earlier => "earlier",
        }
    }
}

/// A submission that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// How it came there.
    pub transport: Transport,
    /// The round, where one was open.
    pub round: Option<RoundId>,
    /// The file's length.
    pub bytes: u64,
    /// How much the gateway had when this call began to send.
    pub resumed_from: u64,
    /// How often it was tried.
    pub tries: u32,
    /// Where the validator keeps it, if it says.
    pub key: Option<String>,
    /// SHA-256 of what it has, in hex, if it says.
    pub sha256: Option<String>,
}

/// What a gateway says of a file that it took. Both forms of upload may say it, and neither must.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Stored {
    #[serde(default)]
    stored_path: Option<String>,
    #[serde(default)]
    sha256: Option<String>,
}

impl Stored {
    /// What an answer says that has no body.
    pub(crate) fn told_by(headers: &HeaderMap) -> Option<Self> {
        let text = |name| header(headers, name).map(str::to_owned);
        let stored_path = Some(text("x-stored-path")?);
        Some(Self { stored_path, sha256: text("x-content-sha256") })
    }
}

/// One submission, from its first try to its last.
struct Job<'a> {
    path: &'a Path,
    source: Source,
    hash: ModelHash,
    /// Whether the gateway speaks tus, once it was asked.
    offer: Option<Option<Offer>>,
    /// The upload that was begun.
    upload: Option<Url>,
    /// The gateway may have stored a file of which it could not tell.
    unsure: bool,
    /// Most bytes that the gateway was seen to have.
    reached: u64,
    /// What it had when the first byte was sent.
    resumed_from: Option<u64>,
    /// How often the upload was said to be at a gateway of which no address is known.
    elsewhere: u32,
    round: Option<RoundId>,
    /// Whose gateway it is, once it was asked.
    validator: Option<Hotkey>,
}

impl MinerClient {
    /// Submits the checkpoint at `path`, whose model hash is committed on chain, and returns once the gateway has
    /// stored it. Broken connections, restarts and a busy gateway are waited for and gone on from, within the
    /// [`crate::Patience`] and the phase; so is what an earlier process began.
    ///
    /// # Errors
    ///
    /// `Refused` at once with what does not pass by waiting; `GaveUp` and `OutOfTime`; `File`.
    pub async fn submit(&self, path: &Path, hash: ModelHash) -> Result<Submitted, ClientError> {
        let source = Source::open(path).await?;
        let mut job = Job {
            path,
            source,
            hash,
            offer: None,
            upload: None,
            unsure: false,
            reached: 0,
            resumed_from: None,
            elsewhere: 0,
            round: None,
            validator: None,
        };
        let mut tries = self.tries();
        loop {
            let result = Box::pin(self.try_to_submit(&mut job, &mut tries)).await;
            let error = match result {
                Ok(submitted) => return Ok(submitted),
                Err(ClientError::Refused(refusal)) if refusal.is_already_submitted() => {
                    let other = self.stored_another(&job).await;
                    if !other {
                        return Ok(job.submitted(Transport::Earlier, &tries, Stored::default()));
                    }
                    return Err(ClientError::Refused(refusal));
                }
                Err(error) => error,
            };
            if error.reason() == "upload_elsewhere" {
                job.elsewhere += 1;
            }
            tries.pause(error, self.progress.as_ref()).await?;
        }
    }

    async fn try_to_submit(
        &self,
        job: &mut Job<'_>,
        tries: &mut Tries,
    ) -> Result<Submitted, ClientError> {
        let status = self.status().await?;
        if let (domain::Phase::Submission, Some(blocks)) =
            (status.phase, status.blocks_remaining_in_phase)
        {
            tries.ends_in_blocks(blocks);
        }
        job.round = status.round;
        job.validator = Some(status.hotkey.clone());
        let purpose = job.purpose(self, &status);
        if let (None, Some(purpose)) = (&job.upload, &purpose) {
            job.upload = note::read(job.path, purpose, &self.gateway.url("/")).await;
        }
        if job.elsewhere > MOST_ELSEWHERE {
            // Whoever has it does not come back in time.
            self.forget(job).await;
            job.elsewhere = 0;
        }
        if let Some(url) = job.upload.clone() {
            match self.tus_standing(&url, job.source.bytes).await? {
                Standing::At(url, offset) => return self.by_tus(job, &url, offset, tries).await,
                Standing::Stored(stored) => {
                    self.forget(job).await;
                    return Ok(job.submitted(Transport::Earlier, tries, stored));
                }
                Standing::Over(refusal) => {
                    self.forget(job).await;
                    // No route: something before the gateway answered, or it speaks tus no more.
                    if !is_of_upload(&refusal.reason) && refusal.status != 404 {
                        return Err(ClientError::Refused(refusal));
                    }
                    info!(%refusal, "an upload that was begun is over, beginning another one");
                    job.unsure = true;
                }
            }
        }
        if job.unsure {
            if let Some(stored) = self.stored_this(job).await {
                return Ok(job.submitted(Transport::Earlier, tries, stored));
            }
            // It is not, as far as anybody says: whoever stores it after all will say so to the next try.
            job.unsure = false;
        }
        let offer = match job.offer {
            Some(offer) => offer,
            None => *job.offer.insert(self.tus_offer().await?),
        };
        let fields = self.fields(job, &status);
        let Some(offer) = offer else {
            return self.by_form(job, fields, tries).await;
        };
        if offer.largest.is_some_and(|largest| job.source.bytes > largest) {
            debug!(?offer, bytes = job.source.bytes, "the gateway will say that this is too much");
        }
        let url = self.tus_create(&fields, job.source.bytes).await?;
        if let Some(purpose) = &purpose {
            note::write(job.path, purpose, &url, &self.gateway.url("/")).await?;
        }
        job.upload = Some(url.clone());
        self.by_tus(job, &url, 0, tries).await
    }

    /// Sends what the gateway does not have yet.
    async fn by_tus(
        &self,
        job: &mut Job<'_>,
        url: &Url,
        mut offset: u64,
        tries: &mut Tries,
    ) -> Result<Submitted, ClientError> {
        let bytes = job.source.bytes;
        job.resumed_from.get_or_insert(offset);
        loop {
            job.reaches(offset, tries);
            let (response, _) = self.tus_append(url, &job.source, offset, tries).await;
            let response = answer::accepted(response?, self.gateway.patience.silence).await;
            let response = match response {
                Ok(response) => response,
                Err(error) => {
                    let refusal = error.refusal();
                    if refusal.is_some_and(|refusal| {
                        refusal.next() == Next::Never || is_of_upload(&refusal.reason)
                    }) {
                        self.forget(job).await;
                    }
                    return Err(error);
                }
            };
            let reached = tus::offset(&response).unwrap_or(bytes);
            if reached >= bytes {
                let stored = self.stored(response).await;
                self.forget(job).await;
                return Ok(job.submitted(Transport::Tus, tries, stored));
            }
            if reached <= offset {
                return Err(ClientError::Strange("it took nothing of what was sent".to_owned()));
            }
            offset = reached;
        }
    }

    /// Sends the file as today's miners do: all of it in one form.
    async fn by_form(
        &self,
        job: &mut Job<'_>,
        mut fields: BTreeMap<&'static str, String>,
        tries: &Tries,
    ) -> Result<Submitted, ClientError> {
        let bytes = job.source.bytes;
        let name = fields.remove("filename").unwrap_or_default();
        let mut form = Form::new();
        for (field, value) in fields {
            form = form.text(field, value);
        }
        let (body, moved) = job.source.body(0, &self.progress).await?;
        // Fields come before the file: the gateway looks at them first.
        let form = form.part("file", Part::stream_with_length(body, bytes).file_name(name));
        let request =
            self.gateway.http().post(self.gateway.url("/submit-checkpoint")).multipart(form);
        let sent = self.send_file(request, &moved, bytes, tries.until()).await;
        // Without an answer, the last byte may have made it a submission.
        job.unsure = sent.is_err() && moved.bytes() >= bytes;
        let response = answer::accepted(sent?, self.gateway.patience.silence).await?;
        let stored = self.stored(response).await;
        Ok(job.submitted(Transport::Multipart, tries, stored))
    }

    /// What the gateway says of the file; that it is stored, the status has said.
    async fn stored(&self, response: Response) -> Stored {
        if let Some(stored) = Stored::told_by(response.headers()) {
            return stored;
        }
        answer::json(response, self.gateway.patience.silence).await.unwrap_or_default()
    }

    /// What the receipt says of this file, if it says that it is stored.
    async fn stored_this(&self, job: &Job<'_>) -> Option<Stored> {
        let receipt = match self.receipt(job.round?).await {
            Ok(receipt) => receipt,
            Err(error) => {
                debug!(%error, "the gateway does not tell what became of it");
                return None;
            }
        };
        let text = |name| receipt.find(name).and_then(|value| value.as_str()).map(answer::clean);
        let stored = Stored {
            stored_path: text("key").or_else(|| text("stored_path")),
            sha256: text("sha256"),
        };
        receipt.has_stored(&job.hash).then_some(stored)
    }

    /// Whether the receipt says that the file which is stored is another one. Where nobody says which it is, it is
    /// this one: a gateway stores what is committed on chain and refuses requests for anything else.
    async fn stored_another(&self, job: &Job<'_>) -> bool {
        let Some(round) = job.round else { return false };
        let receipt = self.receipt(round).await.ok();
        let found = receipt.as_ref().and_then(|receipt| receipt.find("model_hash"));
        let hash = found.and_then(|hash| hash.as_str()?.parse::<ModelHash>().ok());
        hash.is_some_and(|hash| hash != job.hash)
    }

    /// The upload is over.
    async fn forget(&self, job: &mut Job<'_>) {
        job.upload = None;
        if let Some(validator) = &job.validator {
            note::forget(job.path, validator).await;
        }
    }

    /// The fields of a submission, signed at the newest block; `filename` is tus's word for the file's name.
    fn fields(&self, job: &Job<'_>, status: &Status) -> BTreeMap<&'static str, String> {
        let message = submission_message(&job.hash, &status.hotkey, status.block);
        let block = block_message(&status.hotkey, status.block);
        [
            ("target_hotkey_ss58", status.hotkey.to_string()),
            ("origin_hotkey_ss58", self.hotkey().to_string()),
            ("origin_block", status.block.to_string()),
            ("model_hex", job.hash.to_hex()),
            ("block_hex", hex::encode(block)),
            ("signature", self.signature(&message)),
            ("filename", job.source.name.clone()),
        ]
        .into()
    }
}

impl Job<'_> {
    fn purpose(&self, client: &MinerClient, status: &Status) -> Option<Purpose> {
        Some(Purpose {
            validator: status.hotkey.clone(),
            hotkey: client.hotkey().clone(),
            round: status.round?,
            model_hash: self.hash,
            bytes: self.source.bytes,
        })
    }

    /// The gateway has so much: more than ever before is progress.
    fn reaches(&mut self, offset: u64, tries: &mut Tries) {
        if offset > self.reached {
            self.reached = offset;
            tries.progressed();
        }
    }

    fn submitted(&self, transport: Transport, tries: &Tries, stored: Stored) -> Submitted {
        Submitted {
            transport,
            round: self.round,
            bytes: self.source.bytes,
            resumed_from: self.resumed_from.unwrap_or_default(),
            tries: tries.made(),
            key: stored.stored_path.map(|key| answer::clean(&key)),
            sha256: stored.sha256.map(|hash| answer::clean(&hash)),
        }
    }
}
