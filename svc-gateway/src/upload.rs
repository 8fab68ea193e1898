//! `POST /submit-checkpoint`: from a request to a submission.
//!
//! What can be told before the body is read is told then. The form's fields come before its file, as today's
//! miners send them; a file that comes earlier is refused, because nothing of it should be taken before its
//! sender is known. A stranger gets little time and memory for the fields, and neither a slot nor room on the disk:
//! those are for senders that were verified. The work runs as a task of its own: a client that hangs up behind the
//! last byte has submitted, one that hangs up before it has not.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Json,
    body::{Body, BodyDataStream},
    extract::{Request, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use checkpoint::Manifest;
use futures::FutureExt as _;
use serde_json::json;
use tokio::{
    task::yield_now,
    time::{Instant, timeout, timeout_at},
};
use tracing::{Instrument as _, Span, field::Empty, info, info_span};

use crate::{
    admit::{self, Claim, Fields, Sender},
    app::{App, Slot},
    arriving::Arrival,
    error::Error,
    intake::{Intake, Wanted},
    marks::{self, Submitted},
    metrics,
    multipart::{self, Multipart, MultipartError},
    pace::Pace,
    places::Visitor,
    refusals,
    spool::Room,
    submission,
    turn::Turn,
    view::{Round, Seen},
};

/// Longest text field, in bytes.
const MAX_FIELD: usize = 4 << 10;
/// Longest fields together, names and values, in bytes.
const MAX_FIELDS: usize = 16 << 10;
/// Room for the form around the file, in bytes.
const MAX_FORM: u64 = 64 << 10;

type Form = Multipart<BodyDataStream>;

/// `POST /submit-checkpoint`.
pub(crate) async fn submit(State(app): State<App>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let result = match begin(&app, &parts.headers, parts.extensions.get()) {
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
    /// Largest file: what the group's may be, and no more than the whole form is announced to be.
    limit: u64,
    /// Bytes of the whole form, where the client says.
    announced: Option<u64>,
    /// How far it has come, once its sender is known.
    arrival: OnceLock<Arrival>,
    deadline: Instant,
    visitor: Option<Visitor>,
}

/// What the headers and the validator's state say: whether an upload may begin at all.
fn begin(
    app: &App,
    headers: &HeaderMap,
    visitor: Option<&Visitor>,
) -> Result<(Upload, String), Error> {
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
    let limit = announced.map_or(limit, |length| limit.min(length));
    let deadline = Instant::now() + app.config.upload_timeout;
    let (app, visitor) = (app.clone(), visitor.cloned());
    let arrival = OnceLock::new();
    Ok((
        Upload { app, seen, round, manifest, limit, announced, arrival, deadline, visitor },
        boundary,
    ))
}

impl Upload {
    async fn run(self, boundary: String, body: Body) -> Result<Submitted, Error> {
        let mut form = Multipart::new(body.into_data_stream(), &boundary);
        let result = self.authenticated(&mut form).await;
        match &result {
            Ok(submitted) => info!(key = %submitted.key, bytes = submitted.bytes, "stored"),
            Err(error) => {
                Span::current().record("reason", error.reason());
            }
        }
        count(&self.app, &result.as_ref());
        metrics::uploads_in_progress(self.app.uploads.taken());
        result
    }

    /// Fields first: they tell who sends the file.
    async fn authenticated(&self, form: &mut Form) -> Result<Submitted, Error> {
        let limit = self.app.config.header_timeout;
        let fields = async {
            timeout(limit, read_fields(form)).await.map_err(|_| Error::TooSlow { limit })?
        };
        let (fields, file_name) = self.in_time(fields).await?;
        let sender = admit::authenticate(&fields, &self.seen.view)?;
        let hotkey = sender.hotkey.clone();
        Span::current().record("hotkey", hotkey.as_str());
        self.app.limits.hotkey(&hotkey)?;
        let begin = || self.app.arriving.begin(self.round.id, &hotkey, 0, self.announced);
        self.arrival.get_or_init(begin);
        let result = self.take(sender, file_name.as_deref(), form).await;
        if let Err(error) = &result {
            refusals::tell(&self.app, &self.round, &hotkey, error);
        }
        result
    }

    /// Takes the file of a known sender, if it is wanted, there is room, and nobody else is taking one.
    async fn take(
        &self,
        sender: Sender,
        file_name: Option<&str>,
        form: &mut Form,
    ) -> Result<Submitted, Error> {
        let claim = admit::admit(sender, file_name, &self.seen.view, &self.round)?;
        Span::current().record("uid", claim.uid.0);
        let _slot = Slot::of(self.app.uploads.take()?, self.visitor.as_ref());
        let mut room = self.app.spool.reserve(self.limit)?;
        metrics::uploads_in_progress(self.app.uploads.taken());
        let turn = Turn::take(&self.app, &claim).await?;
        let work = async {
            marks::use_once(&self.app.store, &claim, self.app.config.mark_ttl).await?;
            let result = self.file(&claim, turn.lease(), &mut room, form).await;
            if result.as_ref().is_err_and(Error::is_transport) {
                marks::give_back(&self.app.store, turn.lease(), &claim).await;
            }
            result
        };
        let result = turn.during(work).await;
        turn.end().await;
        let submitted = result?;
        submission::announce(&self.app, &claim, &submitted).await;
        Ok(submitted)
    }

    /// Receives, verifies and stores the file.
    async fn file(
        &self,
        claim: &Claim,
        lease: &store::Lease,
        room: &mut Room,
        form: &mut Form,
    ) -> Result<Submitted, Error> {
        let group = self.seen.view.expert_group;
        let wanted = Wanted::new(&self.app, &self.manifest, group, claim.model_hash, None)?;
        let intake = Intake::begin(&self.app, &wanted)?;
        let intake = self.in_time(self.receive_file(intake, room, form)).await?;
        let file = intake.finish(&self.app).await?;
        submission::keep(&self.app, lease, claim, &file).await
    }

    /// Takes the current part, then reads the form to its end.
    async fn receive_file(
        &self,
        mut intake: Intake,
        room: &mut Room,
        form: &mut Form,
    ) -> Result<Intake, Error> {
        let idle = self.app.config.idle_timeout;
        let mut pace = Pace::new(self.app.config.min_upload_rate, idle);
        loop {
            // What the socket has is taken at once; what came is not left lying while there is nothing more.
            let (piece, waited) = match soon(form).await {
                Some(piece) => (piece?, Duration::ZERO),
                None => {
                    intake.flush().await?;
                    let begin = Instant::now();
                    (moving(idle, form.chunk()).await?, begin.elapsed())
                }
            };
            let Some(piece) = piece else { break };
            pace.moved(piece.len(), waited)?;
            if intake.bytes() + piece.len() as u64 > self.limit {
                // What was found in the bytes before says more.
                intake.pause().await?.stream?;
                return Err(Error::TooLarge { limit: self.limit });
            }
            metrics::upload_bytes(piece.len() as u64);
            if let Some(arrival) = self.arrival.get() {
                arrival.add(piece.len() as u64);
            }
            room.wrote(piece.len() as u64);
            intake.push(&piece).await?;
        }
        // What comes behind the file is little, and so is its time.
        let rest = async {
            while let Some(part) = form.next_part().await? {
                if part.file_name.is_some() {
                    return Err(Error::RepeatedField { field: part.name });
                }
                form.text(MAX_FIELD).await?;
            }
            Ok(intake)
        };
        timeout(idle, rest).await.map_err(|_| Error::TooSlow { limit: idle })?
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        timeout_at(self.deadline, work)
            .await
            .map_err(|_| Error::TooSlow { limit: self.app.config.upload_timeout })?
    }
}

/// Reads the text fields up to the file, and the file's name.
async fn read_fields(form: &mut Form) -> Result<(Fields, Option<String>), Error> {
    let mut fields = Fields::default();
    let mut room = MAX_FIELDS;
    while let Some(part) = form.next_part().await? {
        if part.name == "file" {
            return Ok((fields, part.file_name));
        }
        let value = form.text(MAX_FIELD).await?;
        room = room
            .checked_sub(part.name.len() + value.len())
            .ok_or(MultipartError::Malformed("the fields are too long"))?;
        fields.insert(part.name, value)?;
    }
    Err(Error::MissingFile)
}

/// The next piece, if the connection has it. Its task may have to run for that: it has its turn once.
async fn soon(form: &mut Form) -> Option<Result<Option<Bytes>, MultipartError>> {
    if let Some(piece) = form.chunk().now_or_never() {
        return Some(piece);
    }
    yield_now().await;
    form.chunk().now_or_never()
}

/// Waits for the client, but not for long.
async fn moving<T>(
    idle: Duration,
    step: impl Future<Output = Result<T, multipart::MultipartError>>,
) -> Result<T, Error> {
    timeout(idle, step).await.map_err(|_| Error::TooSlow { limit: idle })?.map_err(Error::from)
}
