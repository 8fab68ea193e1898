//! Bytes for an unfinished upload, and what becomes of it with the last of them.
//!
//! The upload is borrowed and the miner's turn is held while bytes are taken; what came stays, however the
//! request ends, unless it can be no submission: then the upload ends with it.

use std::{pin::Pin, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use checkpoint::{Manifest, Stream as Verification};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use store::Lease;
use tokio::{
    fs,
    io::{AsyncSeekExt as _, AsyncWriteExt as _},
    runtime::Handle,
    sync::OwnedSemaphorePermit,
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::io::ReaderStream;
use tracing::{Instrument as _, Span, field::Empty, info, info_span};

use super::{
    headers::Checksum,
    life,
    part::{Info, UploadId},
    table::{Looked, Taken, Watch},
};
use crate::{
    admit::Claim,
    app::App,
    error::{Error, Gone},
    intake::{self, Checked, Intake, Paused, Received, Wanted},
    marks::{self, End, Submitted},
    metrics, refusals, submission,
    turn::Turn,
    view::{Round, Seen},
};

/// Longest body that is held against a checksum before any of it is taken.
pub(super) const MAX_CHECKED: u64 = 64 << 20;
/// Bytes of a held body that are handed on at a time.
const PIECE: usize = 256 << 10;

/// Where an upload stands when a request has ended well.
#[derive(Debug)]
pub(super) enum Came {
    /// There is more to come.
    Part(Looked),
    /// It is the miner's submission.
    Whole(Submitted),
}

/// The body of a request.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) body: Body,
    /// Its length, where it is told.
    pub(super) length: Option<u64>,
    /// What it must hash to.
    pub(super) checksum: Option<Checksum>,
}

/// A borrowed upload, unless it has ended, and what to answer.
type Worked = (Option<Taken>, Result<Came, Error>);

/// A request that may append.
#[derive(Debug)]
pub(super) struct Appending {
    pub(super) app: App,
    pub(super) seen: Arc<Seen>,
    manifest: Arc<Manifest>,
    deadline: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Appending {
    /// Whether bytes may be taken at all.
    pub(super) fn begin(app: &App) -> Result<Self, Error> {
        if app.shutdown.is_cancelled() {
            return Err(Error::Stopping);
        }
        let seen = app.latest.fresh()?;
        let manifest = Arc::clone(seen.model()?.1);
        let permit = app.uploads.take()?;
        let deadline = Instant::now() + app.config.upload_timeout;
        Ok(Self { app: app.clone(), seen, manifest, deadline, _permit: permit })
    }

    /// The span of the work for the upload's round.
    pub(super) fn span(&self, name: &'static str) -> Span {
        let span = info_span!(
            "tus",
            how = name,
            round = Empty,
            hotkey = Empty,
            uid = Empty,
            reason = Empty
        );
        if let Some(round) = &self.seen.view.round {
            span.record("round", round.id.0);
            kit::trace::attach(&span, &round.traceparent);
        }
        span
    }

    /// Goes on with an upload at `offset`.
    pub(super) async fn run(self, id: UploadId, offset: u64, sent: Sent) -> Result<Came, Error> {
        metrics::uploads_in_progress(self.app.uploads.taken());
        let result = self.go_on(&id, offset, sent).await;
        match &result {
            Ok(Came::Part(_)) => {}
            Ok(Came::Whole(submitted)) => {
                info!(key = %submitted.key, bytes = submitted.bytes, "stored");
            }
            Err(error) => {
                Span::current().record("reason", error.reason());
            }
        }
        metrics::uploads_in_progress(self.app.uploads.taken().saturating_sub(1));
        result
    }

    async fn go_on(&self, id: &UploadId, offset: u64, sent: Sent) -> Result<Came, Error> {
        let mut taken = self.app.tus.take(id).await?;
        let part = taken.part().map_err(failed)?;
        let info = part.info.clone();
        Span::current().record("hotkey", info.hotkey.as_str()).record("uid", info.uid.0);
        if part.offset != offset {
            return Err(Error::OffsetMismatch { offset: part.offset });
        }
        if sent.length.is_some_and(|length| length > info.length - offset) {
            return Err(Error::TooLarge { limit: info.length });
        }
        if !part.is_whole() {
            life::check_open(&self.seen.view, info.round)?;
        }
        let reads_again = part.stream.is_none() && offset > 0;
        if reads_again && !part.is_whole() {
            self.app.limits.hotkey(&info.hotkey)?;
        }
        let claim = info.claim();
        let turn = match Turn::take(&self.app, &claim).await {
            Err(error @ Error::AlreadySubmitted { .. }) => {
                return self.submitted_before(taken, &info, error).await;
            }
            turn => turn?,
        };
        let work = async {
            let place = marks::place(&self.app.store, &claim.hotkey).await?;
            if place.is_none_or(|place| place.id != *id) {
                taken.end().await;
                return Err(Error::UploadGone { why: Gone::Replaced });
            }
            Ok(Box::pin(self.append(taken, &claim, turn.lease(), sent)).await)
        };
        let worked = turn.during(work).await;
        turn.end().await;
        // It goes back now: whoever comes next finds the turn free.
        let (taken, result) = worked?;
        drop(taken);
        if let Ok(Came::Whole(submitted)) = &result {
            submission::announce(&self.app, &claim, submitted).await;
        }
        result
    }

    /// Takes what was sent, and ends the upload when it is whole or can be no submission. The turn is held.
    pub(super) async fn append(
        &self,
        mut taken: Taken,
        claim: &Claim,
        lease: &Lease,
        sent: Sent,
    ) -> Worked {
        let group = self.seen.view.expert_group;
        let begun = match taken.part() {
            Ok(part) => {
                let length = part.info.length;
                Wanted::new(&self.app, &self.manifest, group, claim.model_hash, Some(length))
                    .map(|wanted| (wanted, length, length - part.offset))
            }
            Err(error) => Err(failed(error)),
        };
        let (wanted, length, room) = match begun {
            Ok(begun) => begun,
            Err(error) => return (Some(taken), Err(error)),
        };
        let pieces = match self.pieces(sent, room).await {
            Ok(pieces) => pieces,
            Err(error) => return (Some(taken), Err(error)),
        };
        let (watch, limits) = (taken.watch(), wanted.limits);
        let app = self.app.clone();
        let intake = Intake::into_sink(taken, limits, move |taken| resume(&app, taken, &wanted));
        let fed = timeout_at(self.deadline, self.feed(&intake, &watch, pieces, room, length)).await;
        let fed = fed.unwrap_or(Err(Error::TooSlow { limit: self.app.config.upload_timeout }));
        let Paused { sink: mut taken, stream } = match intake.pause().await {
            Ok(paused) => paused,
            Err(error) => return (None, Err(error)),
        };
        let stream = match (stream, fed) {
            (Err(error), _) => return self.failed(taken, claim, error).await,
            (Ok(_), Err(error @ Error::TooLarge { .. })) => {
                return self.refuse(taken, claim, error).await;
            }
            (Ok(stream), fed) => {
                let part = match taken.part() {
                    Ok(part) => part,
                    Err(error) => return (None, Err(failed(error))),
                };
                if fed.is_err() || !part.is_whole() {
                    part.stream = Some(Box::new(stream));
                    let looked = Looked {
                        info: part.info.clone(),
                        offset: part.offset,
                        silent: Duration::ZERO,
                    };
                    return (Some(taken), fed.map(|()| Came::Part(looked)));
                }
                stream
            }
        };
        match self.keep(&mut taken, claim, lease, stream, limits).await {
            Ok(submitted) => self.stored(taken, submitted).await,
            Err(error) => self.failed(taken, claim, error).await,
        }
    }

    /// What was sent, in pieces. What has a checksum is held until it is known to fit.
    async fn pieces(
        &self,
        sent: Sent,
        room: u64,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>, Error> {
        let body = sent.body.into_data_stream();
        let mut body = body.map_err(|error| Error::BrokenOff { why: error.to_string() }).boxed();
        let Some(checksum) = sent.checksum else { return Ok(body) };
        let limit = room.min(MAX_CHECKED);
        if sent.length.is_some_and(|length| length > limit) {
            return Err(Error::TooLarge { limit });
        }
        let held = spawn_blocking({
            let app = self.app.clone();
            move || app.spool.file()
        });
        let (held, path) = held.await.map_err(failed)?.map_err(failed)?.into_parts();
        let mut held = fs::File::from_std(held);
        let (mut checking, mut length) = (checksum.begin(), 0);
        let idle = self.app.config.idle_timeout;
        let holding = async {
            while let Some(piece) = moving(idle, body.next()).await? {
                length += piece.len() as u64;
                if length > limit {
                    return Err(Error::TooLarge { limit });
                }
                checking.update(&piece);
                held.write_all(&piece).await.map_err(failed)?;
            }
            held.rewind().await.map_err(failed)
        };
        timeout_at(self.deadline, holding)
            .await
            .map_err(|_| Error::TooSlow { limit: self.app.config.upload_timeout })??;
        if !checking.fits() {
            return Err(Error::ChecksumMismatch);
        }
        // The name may go: the open file stays until it is read.
        drop(path);
        Ok(ReaderStream::with_capacity(held, PIECE).map_err(failed).boxed())
    }

    /// Hands on what is sent, until nothing more comes or nothing more is taken.
    async fn feed(
        &self,
        intake: &Intake<Taken>,
        watch: &Watch,
        mut pieces: impl Stream<Item = Result<Bytes, Error>> + Unpin,
        room: u64,
        length: u64,
    ) -> Result<(), Error> {
        let (idle, mut left) = (self.app.config.idle_timeout, room);
        loop {
            let piece = tokio::select! {
                piece = moving(idle, pieces.next()) => piece?,
                () = watch.told_to_stop() => {
                    return Err(Error::BrokenOff { why: "its sender asked anew".to_owned() });
                }
                () = self.app.shutdown.cancelled() => return Err(Error::Stopping),
            };
            let Some(piece) = piece else { return Ok(()) };
            left = left.checked_sub(piece.len() as u64).ok_or(Error::TooLarge { limit: length })?;
            metrics::upload_bytes(piece.len() as u64);
            if !intake.feed(piece).await {
                // The worker says why.
                return Ok(());
            }
        }
    }

    /// Ends the verification, and makes the file the miner's submission.
    async fn keep(
        &self,
        taken: &mut Taken,
        claim: &Claim,
        lease: &Lease,
        stream: Verification,
        limits: checkpoint::Limits,
    ) -> Result<Submitted, Error> {
        let part = taken.part().map_err(failed)?;
        let path = part.path();
        let Checked { sha256, bytes, verified } =
            intake::verify(&self.app, stream, &path, limits).await?;
        let path = part.whole().map_err(failed)?;
        let received = Received { path, sha256, bytes, verified };
        submission::keep(&self.app, lease, claim, &received).await
    }

    async fn stored(&self, taken: Taken, submitted: Submitted) -> Worked {
        self.app.stored.add();
        metrics::upload("stored", "");
        self.end(taken, &End::Stored(submitted.clone()), "stored").await;
        (None, Ok(Came::Whole(submitted)))
    }

    /// Something went wrong behind the bytes: what is ours may be tried again, all else ends the upload.
    async fn failed(&self, taken: Taken, claim: &Claim, error: Error) -> Worked {
        if let Error::UploadGone { why: Gone::Lost } = error {
            self.end(taken, &End::Lost, "lost").await;
            return (None, Err(error));
        }
        let ours = error.status() == axum::http::StatusCode::SERVICE_UNAVAILABLE;
        if ours || error.is_transport() {
            return (Some(taken), Err(error));
        }
        self.refuse(taken, claim, error).await
    }

    /// Ends an upload that can be no submission.
    async fn refuse(&self, taken: Taken, claim: &Claim, error: Error) -> Worked {
        self.app.refused.add();
        metrics::upload("refused", error.reason());
        if let Some(round) = self.round(claim) {
            refusals::tell(&self.app, round, &claim.hotkey, &error);
        }
        let end = End::Refused {
            status: error.status().as_u16(),
            reason: error.reason().to_owned(),
            detail: error.to_string(),
        };
        self.end(taken, &end, "refused").await;
        (None, Err(error))
    }

    fn round(&self, claim: &Claim) -> Option<&Arc<Round>> {
        self.seen.view.round.as_ref().filter(|round| round.id == claim.round)
    }

    async fn end(&self, mut taken: Taken, end: &End, how: &'static str) {
        if let Ok(part) = taken.part() {
            life::tell(&self.app, &part.info.id, end).await;
        }
        metrics::tus_ended(how);
        taken.end().await;
    }

    /// The miner has submitted: with this very file, when the answer was lost, or with another one.
    async fn submitted_before(
        &self,
        mut taken: Taken,
        info: &Info,
        error: Error,
    ) -> Result<Came, Error> {
        let claim = info.claim();
        let whole = taken.part().map_err(failed)?.is_whole();
        let mark = marks::submission_of(&self.app.store, &claim).await?;
        let same = |mark: &Submitted| {
            whole && mark.bytes == info.length && mark.key.ends_with(&info.file_name)
        };
        match mark.filter(same) {
            Some(submitted) => {
                self.end(taken, &End::Stored(submitted.clone()), "stored").await;
                Ok(Came::Whole(submitted))
            }
            None => self.refuse(taken, &claim, error).await.1,
        }
    }
}

/// The verification of what has come: the one that was kept, or a new one that reads it again.
fn resume(app: &App, taken: &mut Taken, wanted: &Wanted) -> Result<Verification, Error> {
    let part = taken.part().map_err(failed)?;
    if let Some(stream) = part.stream.take() {
        return Ok(*stream);
    }
    let mut stream = wanted.stream()?;
    if part.offset > 0 {
        let _turn =
            Handle::current().block_on(app.verifications.acquire()).map_err(|_| Error::Stopping)?;
        metrics::tus_replayed(part.offset);
        // It has passed before: what is there now is not what came.
        let replayed = intake::replay(part.file(), part.offset, &mut stream);
        if let Err(Error::Content(refusal)) = &replayed {
            tracing::warn!(%refusal, "what had come of an upload is not what it was");
            return Err(Error::UploadGone { why: Gone::Lost });
        }
        replayed?;
    }
    Ok(stream)
}

/// Ends an upload whose every byte has come, where no request does: it was interrupted.
pub(super) async fn settle(app: App, id: UploadId) {
    let Ok(Some(looked)) = app.tus.look(&id).await else { return };
    let Ok(appending) = Appending::begin(&app) else { return };
    let span = appending.span("settle");
    let sent = Sent { body: Body::empty(), length: Some(0), checksum: None };
    let running = appending.run(id.clone(), looked.info.length, sent).instrument(span);
    match Box::pin(running).await {
        Ok(_) | Err(Error::UploadLocked | Error::NoUpload) => {}
        Err(error) => info!(?id, %error, reason = error.reason(), "an upload was not stored"),
    }
}

/// Waits for the client, but not for long.
async fn moving<T>(
    idle: Duration,
    next: impl Future<Output = Option<Result<T, Error>>>,
) -> Result<Option<T>, Error> {
    timeout(idle, next).await.map_err(|_| Error::TooSlow { limit: idle })?.transpose()
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::unavailable("go on with the upload", why)
}
