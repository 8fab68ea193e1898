//! A file on its way in, whichever road it takes: written to the spool and verified as it passes, in one
//! pass and in memory that does not grow with it.
//!
//! Knows no HTTP and no miner: pieces in, a verified file or a refusal out. Dropped, it leaves nothing.

use std::{io::Write as _, sync::Arc};

use bytes::Bytes;
use checkpoint::{Limits, Manifest, Outcome, SliceLayout, Stream, Streamed, Verified};
use domain::{ExpertGroup, ModelHash};
use tempfile::{NamedTempFile, TempPath};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tracing::{Instrument as _, info_span};

use crate::{app::App, error::Error, metrics};

/// Batches on their way to the disk, per upload.
const IN_FLIGHT: usize = 3;
/// Bytes that are handed over together: a worker that is woken for each piece of a socket does little else.
const BATCH: usize = 128 << 10;

/// What a file must be.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// The tensors of a submission.
    pub(crate) layout: Arc<SliceLayout>,
    /// Its committed hash.
    pub(crate) model_hash: ModelHash,
    /// Its length, where the sender told it.
    pub(crate) announced: Option<u64>,
    /// What is read at all.
    pub(crate) limits: Limits,
}

impl Wanted {
    /// A submission for `group` of the model that `manifest` tells of, committed as `model_hash`.
    pub(crate) fn new(
        app: &App,
        manifest: &Manifest,
        group: ExpertGroup,
        model_hash: ModelHash,
        announced: Option<u64>,
    ) -> Result<Self, Error> {
        let layout = Arc::new(manifest.layout(group).ok_or(Error::NoCheckpoint)?);
        let limits = Limits { max_file_bytes: app.config.max_upload_bytes, ..Limits::default() };
        Ok(Self { layout, model_hash, announced, limits })
    }

    fn stream(&self) -> Result<Stream, Error> {
        let layout = Arc::clone(&self.layout);
        Ok(Stream::new(layout, self.limits, Some(self.model_hash), self.announced)?)
    }
}

/// A file that is being received. Dropped, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Intake {
    batches: mpsc::Sender<Vec<Bytes>>,
    batch: Vec<Bytes>,
    /// Bytes in the batch.
    batched: usize,
    worker: JoinHandle<Result<(NamedTempFile, Streamed), Error>>,
    limits: Limits,
    bytes: u64,
}

/// A file that was received whole, and is what it should be. Dropped, it is deleted.
#[derive(Debug)]
pub(crate) struct Received {
    /// Where it lies.
    pub(crate) path: TempPath,
    /// SHA-256 of the content, 64 lower-case hex digits.
    pub(crate) sha256: String,
    /// Length of the content.
    pub(crate) bytes: u64,
    /// What was found.
    pub(crate) verified: Verified,
}

impl Intake {
    /// Begins a file. What it announces may be refused at once.
    pub(crate) fn begin(app: &App, wanted: &Wanted) -> Result<Self, Error> {
        let stream = wanted.stream()?;
        let file = app.spool.file().map_err(Error::spooling)?;
        let (batches, receiver) = mpsc::channel(IN_FLIGHT);
        let span = tracing::Span::current();
        let worker = tokio::task::spawn_blocking(move || {
            let _entered = span.entered();
            receive(file, stream, receiver)
        });
        let batch = Vec::new();
        Ok(Self { batches, batch, batched: 0, worker, limits: wanted.limits, bytes: 0 })
    }

    /// Bytes taken so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes a piece, waiting while disk and verification are behind. Refused as early as the bytes allow, some of
    /// which may wait for more: see [`Self::flush`].
    pub(crate) async fn push(&mut self, piece: Bytes) -> Result<(), Error> {
        self.bytes += piece.len() as u64;
        self.batched += piece.len();
        self.batch.push(piece);
        if self.batched < BATCH { Ok(()) } else { self.flush().await }
    }

    /// Hands over what waits for more, where there is nothing more yet.
    pub(crate) async fn flush(&mut self) -> Result<(), Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batched = 0;
        if self.batches.send(std::mem::take(&mut self.batch)).await.is_ok() {
            return Ok(());
        }
        // The worker only stops early when it failed, or found what must not be.
        match (&mut self.worker).await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) => Err(failed("the worker stopped early")),
            Err(error) => Err(failed(error)),
        }
    }

    /// No more bytes come: waits until everything is written and looked at.
    pub(crate) async fn finish(mut self, app: &App) -> Result<Received, Error> {
        self.flush().await?;
        let Self { batches, worker, limits, .. } = self;
        drop(batches);
        let (file, streamed) = worker.await.map_err(failed)??;
        let Streamed { sha256, bytes, outcome, .. } = streamed;
        let path = file.into_temp_path();
        let verified = match outcome {
            Outcome::Verified(verified) => verified,
            Outcome::NeedsReread(reread) => {
                let _turn = app.verifications.acquire().await.map_err(|_| Error::Stopping)?;
                let span = info_span!("reread", reason = %reread.reason());
                let (begin, at) = (Instant::now(), path.to_path_buf());
                let reading = tokio::task::spawn_blocking(move || {
                    checkpoint::open(&at, limits).and_then(|spooled| reread.verify(&spooled))
                });
                let verified = reading.instrument(span).await.map_err(failed)??;
                metrics::verification(begin.elapsed());
                verified
            }
        };
        Ok(Received { path, sha256, bytes, verified })
    }
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::unavailable("spool the file", why)
}

/// Writes and verifies what comes, until nothing more does.
fn receive(
    mut file: NamedTempFile,
    mut stream: Stream,
    mut batches: mpsc::Receiver<Vec<Bytes>>,
) -> Result<(NamedTempFile, Streamed), Error> {
    while let Some(batch) = batches.blocking_recv() {
        for piece in batch {
            stream.push(&piece)?;
            file.write_all(&piece).map_err(Error::spooling)?;
        }
    }
    Ok((file, stream.finish()?))
}
