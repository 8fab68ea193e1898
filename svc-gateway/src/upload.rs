//! `POST /submit-checkpoint`: from a request to a submission.
//!
//! What can be told before the body is read is told then. The form's fields come before its file, as today's
//! miners send them; a file that comes earlier is refused, because nothing of it should be taken before its
//! sender is known. The work runs as a task of its own: a client that hangs up behind the last byte has
//! submitted, one that hangs up before it has not.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, BodyDataStream},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use checkpoint::Manifest;
use domain::{Hotkey, RoundId};
use serde_json::json;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout, timeout_at},
};
use tracing::{Instrument as _, Span, field::Empty, info, info_span, warn};

use crate::{
    admit::{self, Claim, Fields, Sender},
    app::App,
    error::Error,
    marks::{self, Submitted},
    metrics,
    multipart::{self, Multipart},
    spool::Spooled,
    submission,
    view::{Round, Seen},
};

/// Longest text field, in bytes.
const MAX_FIELD: usize = 4 << 10;
/// Room for the form around the file, in bytes.
const MAX_FORM: u64 = 64 << 10;

type Form = Multipart<BodyDataStream>;

/// `POST /submit-checkpoint`.
pub(crate) async fn submit(State(app): State<App>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let result = match begin(&app, &parts.headers) {
        Ok((upload, boundary)) => {
            let round = upload.round.id;
            let span = info_span!("upload", %round, hotkey = Empty, uid = Empty, reason = Empty);
            kit::trace::attach(&span, &upload.round.traceparent);
            let task = app.shutdown.spawn(upload.run(boundary, body).instrument(span));
            task.await.unwrap_or_else(|error| Err(Error::unavailable("finish the upload", error)))
        }
        Err(error) => {
            count(&app, &Err(&error));
            Err(error)
        }
    };
    match result {
        Ok(submitted) => Json(json!({
            "status": "ok",
            "stored_path": submitted.key,
            "bytes": submitted.bytes,
            "sha256": submitted.sha256,
        }))
        .into_response(),
        Err(error) => error.into_response(),
    }
}

fn count(app: &App, result: &Result<&Submitted, &Error>) {
    match result {
        Ok(_) => {
            app.stored.add();
            metrics::upload("stored", "");
        }
        Err(error) => {
            app.refused.add();
            metrics::upload("refused", error.reason());
        }
    }
}

/// An upload that has begun.
struct Upload {
    app: App,
    seen: Arc<Seen>,
    round: Arc<Round>,
    manifest: Arc<Manifest>,
    /// Largest file.
    limit: u64,
    deadline: Instant,
    _permit: OwnedSemaphorePermit,
}

/// What the headers and the validator's state say: whether an upload may begin at all.
fn begin(app: &App, headers: &HeaderMap) -> Result<(Upload, String), Error> {
    if app.shutdown.is_cancelled() {
        return Err(Error::Stopping);
    }
    let seen = app.latest.fresh()?;
    let round = Arc::clone(admit::open_round(&seen.view)?);
    let manifest = Arc::clone(seen.model()?.1);
    let boundary = multipart::boundary(headers)?;
    let limit = submission::largest_file(&manifest, seen.view.expert_group)
        .ok_or(Error::NoCheckpoint)?
        .min(app.config.max_upload_bytes);
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit.saturating_add(MAX_FORM)) {
        return Err(Error::TooLarge { limit });
    }
    let permit = app.uploads.take()?;
    let deadline = Instant::now() + app.config.upload_timeout;
    let app = app.clone();
    Ok((Upload { app, seen, round, manifest, limit, deadline, _permit: permit }, boundary))
}

impl Upload {
    async fn run(self, boundary: String, body: Body) -> Result<Submitted, Error> {
        metrics::uploads_in_progress(self.app.uploads.taken());
        let mut form = Multipart::new(body.into_data_stream(), &boundary);
        let result = self.receive(&mut form).await;
        match &result {
            Ok(submitted) => info!(key = %submitted.key, bytes = submitted.bytes, "stored"),
            Err(error) => {
                Span::current().record("reason", error.reason());
            }
        }
        count(&self.app, &result.as_ref());
        metrics::uploads_in_progress(self.app.uploads.taken().saturating_sub(1));
        result
    }

    /// Fields first: they tell who sends the file.
    async fn receive(&self, form: &mut Form) -> Result<Submitted, Error> {
        let (fields, file_name) = self.in_time(read_fields(form)).await?;
        let sender = admit::authenticate(&fields, &self.seen.view)?;
        let hotkey = sender.hotkey.clone();
        Span::current().record("hotkey", hotkey.as_str());
        self.app.limits.hotkey(&hotkey)?;
        let result = self.take(sender, file_name.as_deref(), form).await;
        if let Err(error) = &result {
            self.tell_refusal(&hotkey, error);
        }
        result
    }

    /// Takes the file of a known sender, if it is wanted and nobody else is taking one.
    async fn take(
        &self,
        sender: Sender,
        file_name: Option<&str>,
        form: &mut Form,
    ) -> Result<Submitted, Error> {
        let claim = admit::admit(sender, file_name, &self.seen.view, &self.round)?;
        Span::current().record("uid", claim.uid.0);
        let (store, config) = (&self.app.store, &self.app.config);
        marks::check_new(store, &claim).await?;
        let lease = marks::claim_upload(store, &claim, config.upload_lease).await?;
        let work = async {
            // Once more, with the lease in hand: another upload may just have ended.
            marks::check_new(store, &claim).await?;
            marks::use_once(store, &claim, config.mark_ttl).await?;
            let result = self.file(&claim, &lease, form).await;
            if result.as_ref().is_err_and(Error::is_transport) {
                marks::give_back(store, &lease, &claim).await;
            }
            result
        };
        let result = marks::while_held(store, &lease, config.upload_lease, Box::pin(work)).await;
        if let Err(error) = store.release(lease).await {
            warn!(%error, "the lease of an upload could not be released; it runs out");
        }
        let submitted = result?;
        submission::announce(&self.app, &claim, &submitted).await;
        Ok(submitted)
    }

    /// Receives, verifies and stores the file.
    async fn file(
        &self,
        claim: &Claim,
        lease: &store::Lease,
        form: &mut Form,
    ) -> Result<Submitted, Error> {
        let file = self.in_time(self.spool(form)).await?;
        let group = self.seen.view.expert_group;
        let verified =
            submission::verify(&self.app, file.path(), &self.manifest, group, claim).await?;
        submission::keep(&self.app, lease, claim, &file, &verified).await
    }

    /// Writes the current part to the spool, then reads the form to its end.
    async fn spool(&self, form: &mut Form) -> Result<Spooled, Error> {
        let failed = |error| Error::unavailable("spool the file", error);
        let idle = self.app.config.idle_timeout;
        let mut file = self.app.spool.begin();
        while let Some(piece) = moving(idle, form.chunk()).await? {
            if file.bytes() + piece.len() as u64 > self.limit {
                return Err(Error::TooLarge { limit: self.limit });
            }
            metrics::upload_bytes(piece.len() as u64);
            file.write(piece).await.map_err(failed)?;
        }
        while let Some(part) = moving(idle, form.next_part()).await? {
            if part.file_name.is_some() {
                return Err(Error::RepeatedField { field: part.name });
            }
            moving(idle, form.text(MAX_FIELD)).await?;
        }
        file.finish().await.map_err(failed)
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        timeout_at(self.deadline, work)
            .await
            .map_err(|_| Error::TooSlow { limit: self.app.config.upload_timeout })?
    }

    /// Lets the scheduler know why an authenticated miner's upload was refused, unless that says nothing
    /// of the miner.
    fn tell_refusal(&self, hotkey: &Hotkey, error: &Error) {
        let of_the_miner = matches!(
            error.status(),
            StatusCode::BAD_REQUEST
                | StatusCode::FORBIDDEN
                | StatusCode::REQUEST_TIMEOUT
                | StatusCode::PAYLOAD_TOO_LARGE
        );
        if !of_the_miner || !self.round.miners.contains_key(hotkey) {
            return;
        }
        let (app, round, hotkey) = (self.app.clone(), self.round.id, hotkey.clone());
        let (reason, detail) = (error.reason(), error.to_string());
        self.app.shutdown.spawn(
            async move { report_refusal(app, round, hotkey, reason, detail).await }
                .instrument(Span::current()),
        );
    }
}

async fn report_refusal(
    app: App,
    round: RoundId,
    hotkey: Hotkey,
    reason: &'static str,
    detail: String,
) {
    for delay in [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(2)] {
        tokio::time::sleep(delay).await;
        match app.scheduler.report_refusal(round, &hotkey, reason, &detail).await {
            Ok(()) => return,
            Err(status) => info!(%status, "a refusal could not be reported"),
        }
    }
    warn!(%hotkey, %round, reason, "a refusal was not reported");
}

/// Reads the text fields up to the file, and the file's name.
async fn read_fields(form: &mut Form) -> Result<(Fields, Option<String>), Error> {
    let mut fields = Fields::default();
    while let Some(part) = form.next_part().await? {
        if part.name == "file" {
            return Ok((fields, part.file_name));
        }
        let value = form.text(MAX_FIELD).await?;
        fields.insert(part.name, value)?;
    }
    Err(Error::MissingFile)
}

/// Waits for the client, but not for long.
async fn moving<T>(
    idle: Duration,
    step: impl Future<Output = Result<T, multipart::MultipartError>>,
) -> Result<T, Error> {
    timeout(idle, step).await.map_err(|_| Error::TooSlow { limit: idle })?.map_err(Error::from)
}
