//! A connection that sends parts of files without their bytes ever coming up to this process.
//!
//! hyper writes a body by showing its socket the body's buffers. A [`Piece`] of a file shows it a
//! placeholder of as many bytes as the file has there; the [`Wire`], which is that socket, knows the
//! placeholder by its address and has the kernel send the file instead (`sendfile`). hyper keeps count of
//! what was written, as with any other body, so that connections live on, clients that take nothing are
//! noticed, and a body can't be longer or shorter than announced.
//!
//! The two ends agree by a [`Lane`]: the wire notes there what the kernel has sent, a piece takes from that
//! what it is told was written. If hyper ever copied a placeholder instead of showing it to the wire, the
//! count would not come out, and the connection ends before a byte of it is sent.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use rustix::{fs::sendfile, net::sockopt::set_tcp_cork};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};
use tracing::debug;

use crate::{app::Slot, metrics, round_robin::Turn};

/// Most bytes of a file in one [`Piece`].
pub(crate) const PIECE: usize = 1 << 20;
/// What stands for bytes of a file. Never read, so never in memory.
static PLACEHOLDER: [u8; PIECE] = [0; PIECE];

/// A file that is being sent. Its slot among the downloads is free once nothing of it is left to send.
#[derive(Debug)]
pub(crate) struct Sending {
    pub(crate) file: File,
    _slot: Slot,
}

impl Sending {
    pub(crate) fn new(file: File, slot: Slot) -> Self {
        Self { file, _slot: slot }
    }
}

/// What a connection's pieces and its wire agree by.
#[derive(Debug, Default)]
pub(crate) struct Lane(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Parts of files, in the order in which they go out.
    parts: VecDeque<Part>,
    /// Bytes that the kernel has sent and no piece has taken off itself yet.
    sent: usize,
    /// Set when the count did not come out.
    broken: bool,
    /// The kernel sends nothing but full segments.
    corked: bool,
    /// It is this connection's turn.
    turn: Option<Turn>,
}

#[derive(Debug)]
struct Part {
    from: Arc<Sending>,
    offset: u64,
    left: usize,
    /// Another one follows at once.
    more: bool,
}

impl Inner {
    /// Whether a segment that is not full waits for what follows. One at the end of each piece costs the
    /// client a wake-up and an acknowledgement; but where others have their turn first, it would wait for them.
    fn cork(&mut self, socket: &TcpStream, corked: bool) {
        if self.corked != corked {
            match set_tcp_cork(socket, corked) {
                Ok(()) => self.corked = corked,
                Err(error) => debug!(%error, "TCP_CORK could not be set"),
            }
        }
    }
}

impl Lane {
    /// Puts at most [`PIECE`] bytes of the file at the end of the lane; `more` says that others of it follow
    /// at once. The piece must be handed to the connection that has this lane, in this order.
    pub(crate) fn piece(
        self: &Arc<Self>,
        from: Arc<Sending>,
        offset: u64,
        len: usize,
        more: bool,
    ) -> Piece {
        let left = len.min(PIECE);
        self.lock().parts.push_back(Part { from, offset, left, more });
        Piece::File(FilePiece { lane: Arc::clone(self), left })
    }

    /// It is this connection's turn, until [`Lane::end_turn`].
    pub(crate) fn begin_turn(&self, turn: Turn) {
        self.lock().turn = Some(turn);
    }

    pub(crate) fn has_turn(&self) -> bool {
        self.lock().turn.is_some()
    }

    /// Lets others have their turn: no later than when the connection waits for anything.
    pub(crate) fn end_turn(&self) {
        let turn = self.lock().turn.take();
        drop(turn);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `count` bytes that were written off what was sent.
    fn written(&self, count: usize) {
        let mut inner = self.lock();
        match inner.sent.checked_sub(count) {
            Some(rest) => inner.sent = rest,
            None => inner.broken = true,
        }
    }

    /// Sends at most `most` bytes of the first part.
    fn send(&self, socket: &TcpStream, most: usize) -> io::Result<usize> {
        let mut inner = self.lock();
        let Some(part) = inner.parts.front_mut() else {
            return Err(io::Error::other("a placeholder of no file"));
        };
        let mut offset = part.offset;
        let sent = loop {
            match sendfile(socket, &part.from.file, Some(&mut offset), most.min(part.left)) {
                Err(rustix::io::Errno::INTR) => {}
                sent => break sent?,
            }
        };
        if sent == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        part.offset += sent as u64;
        part.left = part.left.saturating_sub(sent);
        if part.left == 0 {
            let more = part.more;
            inner.parts.pop_front();
            if !more {
                inner.cork(socket, false);
            }
        }
        inner.sent += sent;
        metrics::download_bytes(sent as u64);
        Ok(sent)
    }
}

/// A part of a body.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Bytes.
    Bytes(Bytes),
    /// Bytes of a file, that only a [`Wire`] can send.
    File(FilePiece),
}

/// See [`Piece::File`].
#[derive(Debug)]
pub(crate) struct FilePiece {
    lane: Arc<Lane>,
    left: usize,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.remaining(),
            Self::File(piece) => piece.left,
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.chunk(),
            Self::File(piece) => PLACEHOLDER.get(..piece.left).unwrap_or(&PLACEHOLDER),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(count),
            Self::File(piece) => {
                piece.lane.written(count);
                piece.left = piece.left.saturating_sub(count);
            }
        }
    }
}

/// A socket that sends files in place of their placeholders.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: TcpStream,
    lane: Arc<Lane>,
}

impl Wire {
    pub(crate) fn new(socket: TcpStream, lane: Arc<Lane>) -> Self {
        Self { socket, lane }
    }

    /// Sends at most `most` bytes of the lane's first file.
    fn poll_send(&self, context: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(context))?;
            let send = || self.lane.send(&self.socket, most);
            match self.socket.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    /// Before anything is written.
    fn begin(&self) -> io::Result<()> {
        let mut inner = self.lane.lock();
        if inner.broken {
            return Err(io::Error::other("a placeholder was copied; nothing more is sent"));
        }
        if inner.parts.front().is_some_and(|part| part.more) {
            inner.cork(&self.socket, true);
        }
        Ok(())
    }
}

/// Whether this is the beginning of a placeholder: nothing else lies at its address.
fn is_placeholder(bytes: &[u8]) -> bool {
    !bytes.is_empty() && std::ptr::eq(bytes.as_ptr(), PLACEHOLDER.as_ptr())
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.begin()?;
        if is_placeholder(bytes) {
            return self.poll_send(context, bytes.len());
        }
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.begin()?;
        let mut filled = slices.iter().skip_while(|slice| slice.is_empty());
        if let Some(first) = filled.next().filter(|slice| is_placeholder(slice)) {
            return self.poll_send(context, first.len());
        }
        // What comes before the first placeholder.
        let plain = slices.iter().take_while(|slice| !is_placeholder(slice)).count();
        let slices = slices.get(..plain).unwrap_or(slices);
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        // Else hyper copies what it is to write.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
