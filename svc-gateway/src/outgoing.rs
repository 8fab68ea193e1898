//! Bodies of answers: what handlers make, and files.
//!
//! A handler hands a file over as a [`FilePart`] among the answer's extensions; the connection makes it the
//! body. Nothing of a file is in this process's memory. What the kernel has not in its memory either is read
//! beforehand, on a thread that may wait for a disk: `sendfile` would have everybody wait.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    num::NonZeroU64,
    os::unix::fs::FileExt as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{body::Body, response::Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use rustix::{
    fs::{Advice, fadvise},
    io::{Errno, ReadWriteFlags, preadv2},
};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::{
    round_robin::{RoundRobin, Turns},
    wire::{Lane, PIECE, Piece, Sending},
};

/// How far apart the bytes are by which it is told whether a piece is in memory: the kernel reads ahead
/// about as much.
const PROBE: usize = 128 << 10;
/// How much the kernel is asked to read ahead, in pieces.
const AHEAD: u64 = 8;

/// `len` bytes of a file from `start`: the body of the answer that carries it.
#[derive(Debug, Clone)]
pub(crate) struct FilePart {
    pub(crate) from: Arc<Sending>,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// The body of any answer.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// What the handler made.
    Made(Body),
    /// A part of a file.
    File(FileBody),
}

/// See [`Outgoing::File`].
#[derive(Debug)]
pub(crate) struct FileBody {
    part: FilePart,
    lane: Arc<Lane>,
    turns: Turns,
    /// The next piece is being read into the kernel's memory.
    warming: Option<JoinHandle<io::Result<()>>>,
}

impl Outgoing {
    /// The answer with its body, for the connection that has this `lane`. Files take their turns.
    pub(crate) fn of(
        mut response: Response,
        lane: &Arc<Lane>,
        round_robin: &RoundRobin,
    ) -> axum::http::Response<Self> {
        let part = response.extensions_mut().remove::<FilePart>();
        response.map(|made| match part {
            Some(part) => {
                let (lane, turns) = (Arc::clone(lane), round_robin.turns());
                Self::File(FileBody { part, lane, turns, warming: None })
            }
            None => Self::Made(made),
        })
    }
}

impl HttpBody for Outgoing {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        match self.get_mut() {
            Self::Made(body) => {
                let frame = ready!(Pin::new(body).poll_frame(context));
                Poll::Ready(frame.map(|frame| Ok(frame?.map_data(Piece::Bytes))))
            }
            Self::File(body) => body
                .poll_piece(context)
                .map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(axum::Error::new))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Made(body) => body.is_end_stream(),
            Self::File(body) => body.part.len == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Made(body) => body.size_hint(),
            Self::File(body) => SizeHint::with_exact(body.part.len),
        }
    }
}

impl FileBody {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Piece>>> {
        let Self { part, lane, turns, warming } = self;
        if part.len == 0 {
            return Poll::Ready(None);
        }
        if lane.has_turn() {
            // Has sent a piece: others come first. It asks again before its turn ends, and so stands behind all who
            // asked; where nobody did, other tasks of this thread go on.
            let _again = ready!(turns.poll_next(context));
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let len = usize::try_from(part.len).map_or(PIECE, |len| len.min(PIECE));
        if warming.is_none() && !is_in_memory(&part.from.file, part.start, len) {
            let (from, start) = (Arc::clone(&part.from), part.start);
            *warming = Some(spawn_blocking(move || warm(&from.file, start, len)));
        }
        if let Some(task) = warming {
            let done = ready!(Pin::new(task).poll(context));
            *warming = None;
            if let Err(error) = done.map_err(io::Error::other).flatten() {
                return Poll::Ready(Some(Err(error)));
            }
        }
        lane.begin_turn(ready!(turns.poll_next(context)));
        let more = part.len > len as u64 && turns.nobody_waits();
        let piece = lane.piece(Arc::clone(&part.from), part.start, len, more);
        part.start += len as u64;
        part.len -= len as u64;
        Poll::Ready(Some(Ok(piece)))
    }
}

/// Whether the kernel need not wait for a disk to read this: as far as single bytes tell.
fn is_in_memory(file: &File, start: u64, len: usize) -> bool {
    let last = len.saturating_sub(1);
    for at in (0..len).step_by(PROBE).chain([last]) {
        let mut byte = [0];
        let into = &mut [IoSliceMut::new(&mut byte)];
        match preadv2(file, into, start + at as u64, ReadWriteFlags::NOWAIT) {
            Err(Errno::AGAIN) => return false,
            // The file system can't tell.
            Err(Errno::OPNOTSUPP) => return true,
            // An error shows when it is sent.
            _ => {}
        }
    }
    true
}

/// Reads this, and has the kernel begin with what comes next. May wait for a disk.
fn warm(file: &File, start: u64, len: usize) -> io::Result<()> {
    let ahead = NonZeroU64::new(AHEAD * PIECE as u64);
    // Advice only: without it, it is slower.
    let _ = fadvise(file, start, ahead, Advice::WillNeed);
    let mut buffer = vec![0; PROBE];
    let mut at = 0;
    while at < len {
        match file.read_at(&mut buffer, start + at as u64) {
            // Shorter than it was: shows when it is sent.
            Ok(0) => return Ok(()),
            Ok(read) => at += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
