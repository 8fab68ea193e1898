//! The body of a request that appends, on its way to the part: in pieces, in time, and no longer than may be.
//!
//! What has a checksum is held in a temporary file until it is known to fit: nothing of a body that does not
//! comes near the part or its verification.

use std::{pin::Pin, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _};
use tokio::{
    fs,
    io::{AsyncSeekExt as _, AsyncWriteExt as _},
    task::{spawn_blocking, yield_now},
    time::{Instant, timeout},
};
use tokio_util::io::ReaderStream;

use super::{headers::Checksum, table::Taken};
use crate::{Config, app::App, error::Error, intake::Intake, metrics, pace::Pace};

/// Longest body that is held against a checksum.
pub(super) const MAX_CHECKED: u64 = 64 << 20;
/// Bytes of a held body that are handed on at a time.
const PIECE: usize = 256 << 10;

/// The body of a request.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) body: Body,
    /// Its length, where it is told.
    pub(super) length: Option<u64>,
    /// What it must hash to.
    pub(super) checksum: Option<Checksum>,
}

/// A body in pieces.
pub(super) type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// What was sent: as it comes, or, where it has a checksum, once all of it has come and fits.
pub(super) async fn pieces(app: &App, sent: Sent, room: u64) -> Result<Pieces, Error> {
    let body = sent.body.into_data_stream();
    let body = body.map_err(|error| Error::BrokenOff { why: error.to_string() }).boxed();
    let Some(checksum) = sent.checksum else { return Ok(body) };
    let limit = room.min(MAX_CHECKED);
    if sent.length.is_some_and(|length| length > limit) {
        return Err(Error::TooLarge { limit });
    }
    let limit = sent.length.unwrap_or(limit);
    hold(app, body, checksum, limit).await
}

async fn hold(
    app: &App,
    mut body: Pieces,
    checksum: Checksum,
    limit: u64,
) -> Result<Pieces, Error> {
    let mut room = app.spool.reserve(limit)?;
    let spool = app.clone();
    let file = spawn_blocking(move || spool.spool.file()).await.map_err(failed)?;
    let (file, path) = file.map_err(Error::spooling)?.into_parts();
    let mut file = fs::File::from_std(file);
    let (mut checking, mut length) = (checksum.begin(), 0);
    let idle = app.config.idle_timeout;
    let mut pace = Pace::new(app.config.min_upload_rate, idle);
    loop {
        let begin = Instant::now();
        let Some(piece) = moving(idle, body.next()).await? else { break };
        pace.moved(piece.len(), begin.elapsed())?;
        length += piece.len() as u64;
        if length > limit {
            return Err(Error::TooLarge { limit });
        }
        checking.update(&piece);
        file.write_all(&piece).await.map_err(Error::spooling)?;
        room.wrote(piece.len() as u64);
    }
    if !checking.fits() {
        return Err(Error::ChecksumMismatch);
    }
    file.rewind().await.map_err(failed)?;
    // The name may go: the open file stays until it is read.
    drop(path);
    let held = ReaderStream::with_capacity(file, PIECE).map_err(failed);
    // The room is held as long as the file is read.
    Ok(held.inspect(move |_| _ = &room).boxed())
}

/// Hands on what is sent, until nothing more comes or nothing more is taken: then the worker says why.
/// `length` is that of the whole upload, of which `room` is still to come.
pub(super) async fn feed(
    config: &Config,
    intake: &mut Intake<Taken>,
    mut pieces: Pieces,
    room: u64,
    length: u64,
) -> Result<(), Error> {
    let idle = config.idle_timeout;
    let mut pace = Pace::new(config.min_upload_rate, idle);
    let mut left = room;
    loop {
        // What came is not left lying while there is nothing more.
        let (piece, waited) = match soon(&mut pieces).await {
            Some(piece) => (piece.transpose()?, Duration::ZERO),
            None => {
                if !intake.hand_over().await {
                    break;
                }
                let begin = Instant::now();
                (moving(idle, pieces.next()).await?, begin.elapsed())
            }
        };
        let Some(piece) = piece else { break };
        pace.moved(piece.len(), waited)?;
        left = left.checked_sub(piece.len() as u64).ok_or(Error::TooLarge { limit: length })?;
        metrics::upload_bytes(piece.len() as u64);
        if !intake.feed(&piece).await {
            break;
        }
    }
    Ok(())
}

/// The next piece, if the connection has it. Its task may have to run for that: it has its turn once.
async fn soon(pieces: &mut Pieces) -> Option<Option<Result<Bytes, Error>>> {
    if let Some(piece) = pieces.next().now_or_never() {
        return Some(piece);
    }
    yield_now().await;
    pieces.next().now_or_never()
}

/// Waits for the client, but not for long.
async fn moving<T>(
    idle: Duration,
    next: impl Future<Output = Option<Result<T, Error>>>,
) -> Result<Option<T>, Error> {
    timeout(idle, next).await.map_err(|_| Error::TooSlow { limit: idle })?.transpose()
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::unavailable("hold the body", why)
}
