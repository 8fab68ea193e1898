//! Creation of an upload: the signed request, with the fields of the form in `Upload-Metadata`.
//!
//! What can be told before a byte of the file is read is told then, in the order of the other road.

use std::{sync::Arc, time::Duration};

use axum::http::HeaderMap;
use tokio::task::spawn_blocking;
use tracing::{Instrument as _, Span, info_span};

use super::{
    append::{Appending, Came, is_ours},
    body::Sent,
    headers::{self, Metadata},
    invalid, life,
    part::UploadId,
    table::{Looked, Taken},
};
use crate::{
    admit::{self, Claim, Fields, Sender},
    app::App,
    error::Error,
    intake::Wanted,
    marks::{self, Place},
    places::Visitor,
    refusals, submission,
    turn::Turn,
    view::{Round, Seen},
};

/// The fields that are read, as in the form.
const FIELDS: [&str; 6] = [
    "target_hotkey_ss58",
    "origin_hotkey_ss58",
    "origin_block",
    "model_hex",
    "block_hex",
    "signature",
];

/// A creation that has begun.
#[derive(Debug)]
pub(super) struct Creating {
    app: App,
    seen: Arc<Seen>,
    round: Arc<Round>,
    length: u64,
    metadata: Metadata,
    /// The metadata as it came.
    said: String,
    /// The first bytes, where they come with it, and what takes them.
    first: Option<(Appending, Sent)>,
}

impl Creating {
    /// What the headers and the validator's state say: whether an upload may begin at all.
    pub(super) fn begin(
        app: &App,
        headers: &HeaderMap,
        first: Option<Sent>,
        visitor: Option<&Visitor>,
    ) -> Result<Self, Error> {
        if app.shutdown.is_cancelled() {
            return Err(Error::Stopping);
        }
        let seen = app.latest.fresh()?;
        let round = Arc::clone(admit::open_round(&seen.view)?);
        let manifest = seen.model()?.1;
        let limit = submission::largest_file(manifest, seen.view.expert_group)
            .ok_or(Error::NoCheckpoint)?
            .min(app.config.max_upload_bytes);
        let length = match headers.get("upload-length") {
            Some(length) => headers::bytes(length.as_bytes()).map_err(invalid("Upload-Length"))?,
            None if headers.contains_key("upload-defer-length") => {
                return Err(Error::LengthDeferred);
            }
            None => {
                return Err(Error::InvalidHeader { header: "Upload-Length", why: "is missing" });
            }
        };
        if length > limit {
            return Err(Error::TooLarge { limit });
        }
        if let Some(sent) = &first
            && sent.length.is_some_and(|sent| sent > length)
        {
            return Err(Error::TooLarge { limit: length });
        }
        let said = headers.get("upload-metadata").map_or(&b""[..], |value| value.as_bytes());
        let metadata = Metadata::parse(said).map_err(invalid("Upload-Metadata"))?;
        // All of it is ASCII.
        let said = String::from_utf8_lossy(said).into_owned();
        let first = match first {
            Some(sent) => Some((Appending::begin(app, visitor)?, sent)),
            None => None,
        };
        Ok(Self { app: app.clone(), seen, round, length, metadata, said, first })
    }

    /// The span of the work for the round.
    pub(super) fn span(&self) -> Span {
        let empty = tracing::field::Empty;
        let round = self.round.id;
        let span = info_span!(
            "upload",
            how = "create",
            %round,
            hotkey = empty,
            uid = empty,
            reason = empty
        );
        kit::trace::attach(&span, &self.round.traceparent);
        span
    }

    pub(super) async fn run(self) -> Result<(UploadId, Came), Error> {
        let result = self.authenticated().await;
        if let Err(error) = &result {
            Span::current().record("reason", error.reason());
        }
        result
    }

    async fn authenticated(self) -> Result<(UploadId, Came), Error> {
        let mut fields = Fields::default();
        for field in FIELDS {
            if let Some(value) = self.metadata.get(field) {
                fields.insert(field.to_owned(), text(field, value)?)?;
            }
        }
        let file_name =
            self.metadata.get("filename").map(|name| text("filename", name)).transpose()?;
        let sender = admit::authenticate(&fields, &self.seen.view)?;
        let hotkey = sender.hotkey.clone();
        Span::current().record("hotkey", hotkey.as_str());
        self.app.limits.hotkey(&hotkey)?;
        let (app, round) = (self.app.clone(), Arc::clone(&self.round));
        let result = Box::pin(self.admitted(sender, file_name.as_deref())).await;
        if let Err(error) = &result {
            refusals::tell(&app, &round, &hotkey, error);
        }
        result
    }

    async fn admitted(
        self,
        sender: Sender,
        file_name: Option<&str>,
    ) -> Result<(UploadId, Came), Error> {
        let claim = admit::admit(sender, file_name, &self.seen.view, &self.round)?;
        Span::current().record("uid", claim.uid.0);
        let app = self.app.clone();
        marks::check_unused(&app.store, &claim).await?;
        // What the length alone tells.
        let group = self.seen.view.expert_group;
        let manifest = self.seen.model()?.1;
        Wanted::new(&app, manifest, group, claim.model_hash, Some(self.length))?.stream()?;
        app.tus.quiet(&claim.hotkey).await?;
        let turn = Turn::take(&app, &claim).await?;
        let work = async {
            marks::use_once(&app.store, &claim, app.config.mark_ttl).await?;
            let made = Box::pin(self.made(&claim, turn.lease())).await;
            if made
                .as_ref()
                .is_err_and(|error| is_ours(error) || matches!(error, Error::ChecksumMismatch))
            {
                marks::give_back(&app.store, turn.lease(), &claim).await;
            }
            made
        };
        let made = turn.during(work).await;
        turn.end().await;
        let (id, taken, came) = made?;
        drop(taken);
        if let Came::Whole(submitted) = &came {
            submission::announce(&app, &claim, submitted).await;
        }
        Ok((id, came))
    }

    /// Makes the upload, and takes the bytes that came with its creation.
    async fn made(
        self,
        claim: &Claim,
        lease: &store::Lease,
    ) -> Result<(UploadId, Option<Taken>, Came), Error> {
        let id = UploadId::random().map_err(failed)?;
        // Set aside when bytes come; where there is none now, its sender need not begin.
        drop(self.app.spool.reserve(self.length)?);
        let making = spawn_blocking({
            let (app, id, claim) = (self.app.clone(), id.clone(), claim.clone());
            let (length, said) = (self.length, self.said);
            move || app.parts.create(id, &claim, length, said)
        });
        let part = making.await.map_err(failed)?.map_err(failed)?;
        let looked = Looked::at(&part, Duration::ZERO);
        let taken = self.app.tus.open(part).await?;
        let url = life::home(&self.app).to_owned();
        let place = Place { id: id.clone(), round: claim.round, url };
        let ttl = self.app.config.mark_ttl;
        if let Err(error) =
            marks::put_place(&self.app.store, lease, &claim.hotkey, &place, ttl).await
        {
            taken.end().await;
            return Err(error);
        }
        let Some((appending, sent)) = self.first else {
            return Ok((id, Some(taken), Came::Part(looked)));
        };
        match appending.append(taken, claim, lease, sent).instrument(Span::current()).await {
            (taken, Ok(came)) => Ok((id, taken, came)),
            (taken, Err(error)) => {
                // Its sender has not heard of it.
                if let Some(taken) = taken {
                    taken.end().await;
                }
                Err(error)
            }
        }
    }
}

fn text(field: &'static str, value: &[u8]) -> Result<String, Error> {
    String::from_utf8(value.to_vec())
        .map_err(|_| Error::InvalidField { field, why: "it is not UTF-8".to_owned() })
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::unavailable("begin the upload", why)
}
