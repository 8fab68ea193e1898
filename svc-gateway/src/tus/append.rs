//! Bytes for an unfinished upload, and what becomes of it with the last of them.
//!
//! The upload is borrowed and the miner's turn is held while bytes are taken; what came stays, however the
//! request ends, unless it can be no submission: then the upload ends with it.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, http::StatusCode};
use checkpoint::{Limits, Manifest, Stream as Verification};
use store::Lease;
use tokio::{
    runtime::Handle,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};
use tracing::{Instrument as _, Span, field::Empty, info, info_span, warn};

use super::{
    body::{Sent, feed, pieces},
    life,
    part::{self, UploadId},
    table::{Looked, Taken, Watch},
};
use crate::{
    admit::Claim,
    app::{self, App},
    error::{Error, Gone},
    intake::{self, Checked, Intake, Paused, Received, Wanted},
    marks::{self, End, Submitted},
    metrics,
    places::Visitor,
    refusals, submission,
    turn::Turn,
    view::Seen,
};

/// Where an upload stands when a request has ended well.
#[derive(Debug)]
pub(super) enum Came {
    /// There is more to come.
    Part(Looked),
    /// It is the miner's submission.
    Whole(Submitted),
}

/// Counts an upload that came to its end, or did not begin.
pub(super) fn count(app: &App, result: Result<&Came, &Error>) {
    match result {
        Ok(Came::Part(_)) => {}
        Ok(Came::Whole(_)) => {
            app.stored.add();
            metrics::upload("stored", "");
        }
        Err(error) => {
            app.refused.add();
            metrics::upload("refused", error.reason());
        }
    }
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
    /// The connection that it came by.
    visitor: Option<Visitor>,
}

/// One of the uploads at a time.
struct Slot<'a> {
    app: &'a App,
    _slot: app::Slot,
}

impl<'a> Slot<'a> {
    fn take(app: &'a App, visitor: Option<&Visitor>) -> Result<Self, Error> {
        let slot = app::Slot::of(app.uploads.take()?, visitor);
        metrics::uploads_in_progress(app.uploads.taken());
        Ok(Self { app, _slot: slot })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        metrics::uploads_in_progress(self.app.uploads.taken().saturating_sub(1));
    }
}

impl Appending {
    /// Whether bytes may be taken at all.
    pub(super) fn begin(app: &App, visitor: Option<&Visitor>) -> Result<Self, Error> {
        if app.shutdown.is_cancelled() {
            return Err(Error::Stopping);
        }
        let seen = app.latest.fresh()?;
        let manifest = Arc::clone(seen.model()?.1);
        let deadline = Instant::now() + app.config.upload_timeout;
        Ok(Self { app: app.clone(), seen, manifest, deadline, visitor: visitor.cloned() })
    }

    /// The span of the work for the upload's round.
    pub(super) fn span(&self, name: &'static str) -> Span {
        let span = info_span!(
            "upload",
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
        // Reading all of it again is the one thing here that costs much.
        if part.stream.is_none() && offset > 0 && !part.is_whole() {
            self.app.limits.hotkey(&info.hotkey)?;
        }
        let claim = info.claim();
        let (taken, result) = match Turn::take(&self.app, &claim).await {
            Ok(turn) => {
                let worked = turn.during(self.in_turn(taken, id, &claim, turn.lease(), sent)).await;
                turn.end().await;
                worked?
            }
            Err(error @ Error::AlreadySubmitted { .. }) => {
                self.submitted_before(taken, &claim, error).await
            }
            Err(error) => (Some(taken), Err(error)),
        };
        if taken.is_none() {
            count(&self.app, result.as_ref());
            let round = self.seen.view.round.as_ref().filter(|round| round.id == claim.round);
            if let (Err(error), Some(round)) = (&result, round) {
                refusals::tell(&self.app, round, &claim.hotkey, error);
            }
        }
        // It goes back now: whoever comes next finds the turn free.
        drop(taken);
        if let Ok(Came::Whole(submitted)) = &result {
            submission::announce(&self.app, &claim, submitted).await;
        }
        result
    }

    async fn in_turn(
        &self,
        taken: Taken,
        id: &UploadId,
        claim: &Claim,
        lease: &Lease,
        sent: Sent,
    ) -> Result<Worked, Error> {
        if !life::settle_here(&self.app, lease, claim, id).await? {
            metrics::tus_ended("replaced");
            taken.end().await;
            return Ok((None, Err(Error::UploadGone { why: Gone::Replaced })));
        }
        Ok(Box::pin(self.append(taken, claim, lease, sent)).await)
    }

    /// Takes what was sent, and ends the upload when it is whole or can be no submission. The turn is held.
    pub(super) async fn append(
        &self,
        mut taken: Taken,
        claim: &Claim,
        lease: &Lease,
        sent: Sent,
    ) -> Worked {
        let _slot = match Slot::take(&self.app, self.visitor.as_ref()) {
            Ok(slot) => slot,
            Err(error) => return (Some(taken), Err(error)),
        };
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
        let (watch, limits) = (taken.watch(), wanted.limits);
        let pieces = match self.unless_stopped(&watch, pieces(&self.app, sent, room)).await {
            Ok(pieces) => pieces,
            Err(error) => return (Some(taken), Err(error)),
        };
        let made = taken.part().map_err(failed).and_then(|part| part.make_room(&self.app.spool));
        if let Err(error) = made {
            return (Some(taken), Err(error));
        }
        let app = self.app.clone();
        let mut intake =
            Intake::into_sink(taken, limits, move |taken| resume(&app, taken, &wanted));
        let feeding = feed(&self.app.config, &mut intake, pieces, room, length);
        let fed = self.unless_stopped(&watch, feeding).await;
        let Paused { sink: mut taken, stream } = match intake.pause().await {
            Ok(paused) => paused,
            Err(error) => return (None, Err(error)),
        };
        let stream = match (stream, fed) {
            (Err(error), _) => return self.failed(taken, error).await,
            (Ok(_), Err(error @ Error::TooLarge { .. })) => {
                return self.refuse(taken, error).await;
            }
            (Ok(stream), fed) => {
                let part = match taken.part() {
                    Ok(part) => part,
                    Err(error) => return (None, Err(failed(error))),
                };
                // Behind the last byte it does not matter how the request ends.
                if !part.is_whole() {
                    part.stream = Some(Box::new(stream));
                    let looked = Looked::at(part, Duration::ZERO);
                    return (Some(taken), fed.map(|()| Came::Part(looked)));
                }
                stream
            }
        };
        match self.keep(&mut taken, claim, lease, stream, limits).await {
            Ok(submitted) => self.stored(taken, submitted).await,
            Err(error) => self.failed(taken, error).await,
        }
    }

    /// Ends the verification, and makes the file the miner's submission.
    async fn keep(
        &self,
        taken: &mut Taken,
        claim: &Claim,
        lease: &Lease,
        stream: Verification,
        limits: Limits,
    ) -> Result<Submitted, Error> {
        let part = taken.part().map_err(failed)?;
        let path = part.path();
        let Checked { sha256, bytes, verified } =
            intake::verify(&self.app, stream, &path, limits).await?;
        let path = spawn_blocking(move || part::whole(&path)).await.map_err(failed)?;
        let path = path.map_err(failed)?;
        let received = Received { path, sha256, bytes, verified };
        submission::keep(&self.app, lease, claim, &received).await
    }

    async fn stored(&self, taken: Taken, submitted: Submitted) -> Worked {
        self.end(taken, &End::Stored(submitted.clone()), "stored").await;
        (None, Ok(Came::Whole(submitted)))
    }

    /// Something went wrong behind the bytes: what is ours may be tried again, all else ends the upload.
    async fn failed(&self, taken: Taken, error: Error) -> Worked {
        if let Error::UploadGone { why: Gone::Lost } = error {
            self.end(taken, &End::Lost, "lost").await;
            return (None, Err(error));
        }
        if is_ours(&error) {
            return (Some(taken), Err(error));
        }
        self.refuse(taken, error).await
    }

    /// Ends an upload that can be no submission.
    async fn refuse(&self, taken: Taken, error: Error) -> Worked {
        let end = End::Refused {
            status: error.status().as_u16(),
            reason: error.reason().to_owned(),
            detail: error.to_string(),
        };
        self.end(taken, &end, "refused").await;
        (None, Err(error))
    }

    async fn end(&self, mut taken: Taken, end: &End, how: &'static str) {
        if let Ok(part) = taken.part() {
            life::tell(&self.app, &part.info.id, end).await;
        }
        metrics::tus_ended(how);
        taken.end().await;
    }

    /// The miner has submitted: with this very file, when the answer was lost, or with another one.
    async fn submitted_before(&self, mut taken: Taken, claim: &Claim, error: Error) -> Worked {
        let length = taken.part().ok().filter(|part| part.is_whole()).map(|part| part.info.length);
        match marks::submission_of(&self.app.store, claim).await {
            Ok(Some(mark)) if Some(mark.bytes) == length && mark.is_of(claim) => {
                self.stored(taken, mark).await
            }
            Ok(_) => self.refuse(taken, error).await,
            Err(error) => (Some(taken), Err(error)),
        }
    }

    /// Takes bytes, for as long as that may last and somebody wants it.
    async fn unless_stopped<T>(
        &self,
        watch: &Watch,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            done = timeout_at(self.deadline, work) => {
                done.map_err(|_| Error::TooSlow { limit: self.app.config.upload_timeout })?
            }
            () = watch.told_to_stop() => {
                Err(Error::BrokenOff { why: "its sender asked anew".to_owned() })
            }
            () = self.app.shutdown.cancelled() => Err(Error::Stopping),
        }
    }
}

/// Whether neither the file nor its sender is to blame: the same may be tried again.
pub(super) fn is_ours(error: &Error) -> bool {
    error.is_transport() || error.status() == StatusCode::SERVICE_UNAVAILABLE
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
            warn!(%refusal, "what had come of an upload is not what it was");
            return Err(Error::UploadGone { why: Gone::Lost });
        }
        replayed?;
    }
    Ok(stream)
}

/// Ends an upload whose every byte has come, where no request does: it was interrupted.
pub(super) async fn settle(app: App, id: UploadId) {
    let Ok(Some(looked)) = app.tus.look(&id).await else { return };
    let Ok(appending) = Appending::begin(&app, None) else { return };
    let span = appending.span("settle");
    let sent = Sent { body: Body::empty(), length: Some(0), checksum: None };
    let running = appending.run(id.clone(), looked.info.length, sent).instrument(span);
    match Box::pin(running).await {
        Ok(_) | Err(Error::UploadLocked | Error::NoUpload) => {}
        Err(error) => info!(?id, %error, reason = error.reason(), "an upload was not stored"),
    }
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::unavailable("go on with the upload", why)
}
