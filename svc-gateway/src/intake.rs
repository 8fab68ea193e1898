//! A file on its way in, whichever road it takes: written down and verified as it passes, in one pass and in
//! memory that does not grow with it.
//!
//! Knows no HTTP and no miner: pieces in, a verified file or a refusal out. What is written to a temporary
//! file leaves nothing when it is dropped; what is written to something that lasts may be paused and gone on
//! with.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use checkpoint::{Limits, Manifest, Outcome, SliceLayout, Stream, Streamed, Verified};
use domain::{ExpertGroup, ModelHash};
use tempfile::{NamedTempFile, TempPath};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};
use tracing::{Instrument as _, info_span};

use crate::{
    app::App,
    blocks::{BLOCKS, Blocks},
    error::Error,
    metrics,
};

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

    /// A verification that has seen nothing yet. What was announced may be refused at once.
    pub(crate) fn stream(&self) -> Result<Stream, Error> {
        let layout = Arc::clone(&self.layout);
        Ok(Stream::new(layout, self.limits, Some(self.model_hash), self.announced)?)
    }
}

/// What pieces are written to. Dropped, it takes care of itself.
pub(crate) trait Sink: Send + 'static {
    /// Appends all of `piece`.
    fn append(&mut self, piece: &[u8]) -> io::Result<()>;
}

impl Sink for NamedTempFile {
    fn append(&mut self, piece: &[u8]) -> io::Result<()> {
        self.write_all(piece)
    }
}

/// A file that is being received.
#[derive(Debug)]
pub(crate) struct Intake<S = NamedTempFile> {
    blocks: Blocks,
    full: mpsc::Sender<Bytes>,
    worker: JoinHandle<Paused<S>>,
    limits: Limits,
    bytes: u64,
}

/// A file that no more is written to, for now or for good.
#[derive(Debug)]
pub(crate) struct Paused<S> {
    /// What was written.
    pub(crate) sink: S,
    /// The verification of just that, or why there is none.
    pub(crate) stream: Result<Stream, Error>,
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
    /// Begins a file in the spool. What it announces may be refused at once. Dropped, it leaves nothing.
    pub(crate) fn begin(app: &App, wanted: &Wanted) -> Result<Self, Error> {
        let stream = wanted.stream()?;
        let file = app.spool.file().map_err(Error::spooling)?;
        Ok(Self::into_sink(file, wanted.limits, move |_| Ok(stream)))
    }

    /// Bytes taken so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes a piece, waiting while disk and verification are behind. Refused as early as the bytes allow, some of
    /// which may wait for more: see [`Self::flush`].
    pub(crate) async fn push(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.bytes += piece.len() as u64;
        if self.feed(piece).await { Ok(()) } else { self.stopped().await }
    }

    /// Hands over what waits for more, where there is nothing more yet.
    pub(crate) async fn flush(&mut self) -> Result<(), Error> {
        if self.hand_over().await { Ok(()) } else { self.stopped().await }
    }

    /// Why the worker takes no more.
    async fn stopped(&mut self) -> Result<(), Error> {
        let Paused { stream, .. } = (&mut self.worker).await.map_err(failed)?;
        match stream {
            Err(error) => Err(error),
            Ok(_) => Err(failed("the worker stopped early")),
        }
    }

    /// No more bytes come: waits until everything is written and looked at.
    pub(crate) async fn finish(self, app: &App) -> Result<Received, Error> {
        let limits = self.limits;
        let Paused { sink, stream } = self.pause().await?;
        let path = sink.into_temp_path();
        let Checked { sha256, bytes, verified } = verify(app, stream?, &path, limits).await?;
        Ok(Received { path, sha256, bytes, verified })
    }
}

impl<S: Sink> Intake<S> {
    /// Writes to `sink`, verified by the stream that `begin` makes where blocking is allowed.
    pub(crate) fn into_sink(
        sink: S,
        limits: Limits,
        begin: impl FnOnce(&mut S) -> Result<Stream, Error> + Send + 'static,
    ) -> Self {
        let (full, receiver) = mpsc::channel(BLOCKS);
        let span = tracing::Span::current();
        let worker = spawn_blocking(move || {
            let _entered = span.entered();
            let mut sink = sink;
            let stream = begin(&mut sink).and_then(|stream| receive(&mut sink, stream, receiver));
            Paused { sink, stream }
        });
        Self { blocks: Blocks::new(), full, worker, limits, bytes: 0 }
    }

    /// Takes a piece, waiting while disk and verification are behind; false when no more is taken, because
    /// the worker failed or found what must not be. Some of it may wait for more: see [`Self::hand_over`].
    pub(crate) async fn feed(&mut self, piece: &[u8]) -> bool {
        let mut rest = piece;
        while !rest.is_empty() {
            // Blocks come home from a worker that failed too.
            rest = self.blocks.fill(rest).await;
            if self.blocks.is_full() && !self.hand_over().await {
                return false;
            }
        }
        true
    }

    /// Hands over what waits for more, where there is nothing more yet; false as [`Self::feed`].
    pub(crate) async fn hand_over(&mut self) -> bool {
        match self.blocks.take() {
            Some(block) => self.full.send(block).await.is_ok(),
            None => true,
        }
    }

    /// No more bytes come for now: waits until what came is written and looked at.
    pub(crate) async fn pause(mut self) -> Result<Paused<S>, Error> {
        self.hand_over().await;
        let Self { full, worker, .. } = self;
        drop(full);
        worker.await.map_err(failed)
    }
}

/// What was found of a whole file.
#[derive(Debug)]
pub(crate) struct Checked {
    /// SHA-256 of the content, 64 lower-case hex digits.
    pub(crate) sha256: String,
    /// Length of the content.
    pub(crate) bytes: u64,
    /// The rest.
    pub(crate) verified: Verified,
}

/// Ends the verification of a file that lies at `path`, after its last byte.
pub(crate) async fn verify(
    app: &App,
    stream: Stream,
    path: &Path,
    limits: Limits,
) -> Result<Checked, Error> {
    let finishing = spawn_blocking(move || stream.finish());
    let Streamed { sha256, bytes, outcome, .. } = finishing.await.map_err(failed)??;
    let verified = match outcome {
        Outcome::Verified(verified) => verified,
        Outcome::NeedsReread(reread) => {
            let _turn = app.verifications.acquire().await.map_err(|_| Error::Stopping)?;
            let span = info_span!("reread", reason = %reread.reason());
            let (begin, at) = (Instant::now(), path.to_path_buf());
            let reading = spawn_blocking(move || {
                checkpoint::open(&at, limits).and_then(|spooled| reread.verify(&spooled))
            });
            let verified = reading.instrument(span).await.map_err(failed)??;
            metrics::verification(begin.elapsed());
            verified
        }
    };
    Ok(Checked { sha256, bytes, verified })
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::unavailable("spool the file", why)
}

/// Writes and verifies what comes, until nothing more does. What the verification has not passed is not
/// written.
fn receive(
    sink: &mut impl Sink,
    mut stream: Stream,
    mut blocks: mpsc::Receiver<Bytes>,
) -> Result<Stream, Error> {
    while let Some(block) = blocks.blocking_recv() {
        stream.push_shared(&block)?;
        sink.append(&block).map_err(Error::spooling)?;
    }
    Ok(stream)
}

/// Reads `len` bytes of `file` from its beginning into `stream`.
pub(crate) fn replay(file: &File, len: u64, stream: &mut Stream) -> Result<(), Error> {
    use std::os::unix::fs::FileExt as _;

    const PIECE: usize = 256 << 10;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < len {
        let wanted = usize::try_from(len - at).unwrap_or(PIECE).min(PIECE);
        let Some(room) = piece.get_mut(..wanted) else { break };
        file.read_exact_at(room, at).map_err(failed)?;
        stream.push(room)?;
        at += wanted as u64;
    }
    Ok(())
}
