//! How the server misbehaves when a test asks it to.

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Switches that tests turn and that the server reads.
#[derive(Debug)]
pub(crate) struct Faults {
    latency_us: AtomicU64,
    refusals: AtomicU32,
    lost_answers: AtomicU32,
    paused: AtomicBool,
    offline: AtomicBool,
    /// Cancelled to cut all connections of its generation; then replaced.
    connections: watch::Sender<CancellationToken>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            latency_us: AtomicU64::new(0),
            refusals: AtomicU32::new(0),
            lost_answers: AtomicU32::new(0),
            paused: AtomicBool::new(false),
            offline: AtomicBool::new(false),
            connections: watch::Sender::new(CancellationToken::new()),
        }
    }
}

impl Faults {
    pub(crate) fn set_latency(&self, each_call: Duration) {
        let us = u64::try_from(each_call.as_micros()).unwrap_or(u64::MAX);
        self.latency_us.store(us, Ordering::Relaxed);
    }

    /// Waits as long as a call is to take.
    pub(crate) async fn delay(&self) {
        let us = self.latency_us.load(Ordering::Relaxed);
        if us > 0 {
            tokio::time::sleep(Duration::from_micros(us)).await;
        }
    }

    pub(crate) fn refuse_submits(&self, n: u32) {
        self.refusals.store(n, Ordering::Relaxed);
    }

    /// Whether this submission is one of those to refuse.
    pub(crate) fn refuse(&self) -> bool {
        take_one(&self.refusals)
    }

    pub(crate) fn lose_answers(&self, n: u32) {
        self.lost_answers.store(n, Ordering::Relaxed);
    }

    /// Whether this submission is one of those whose answer is lost.
    pub(crate) fn lose_answer(&self) -> bool {
        take_one(&self.lost_answers)
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    pub(crate) fn set_offline(&self, offline: bool) {
        self.offline.store(offline, Ordering::Relaxed);
        if offline {
            self.cut();
        }
    }

    pub(crate) fn is_offline(&self) -> bool {
        self.offline.load(Ordering::Relaxed)
    }

    /// Cuts every open connection, without a word.
    pub(crate) fn cut(&self) {
        self.connections.send_replace(CancellationToken::new()).cancel();
    }

    /// The token that cuts a connection accepted now.
    pub(crate) fn connection(&self) -> CancellationToken {
        self.connections.borrow().clone()
    }
}

fn take_one(count: &AtomicU32) -> bool {
    let less = |n: u32| n.checked_sub(1);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
}

/// A connection that can be cut: reading and writing fail from then on. Reader and writer are
/// two tasks, and each is woken by its own future.
pub(crate) struct Severable<S> {
    inner: S,
    cut_reads: Cut,
    cut_writes: Cut,
}

type Cut = Pin<Box<WaitForCancellationFutureOwned>>;

impl<S> Severable<S> {
    pub(crate) fn new(inner: S, token: CancellationToken) -> Self {
        let cut_reads = Box::pin(token.clone().cancelled_owned());
        Self { inner, cut_reads, cut_writes: Box::pin(token.cancelled_owned()) }
    }
}

fn check(cut: &mut Cut, cx: &mut Context<'_>) -> io::Result<()> {
    match cut.as_mut().poll(cx) {
        Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
        Poll::Pending => Ok(()),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Severable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        check(&mut self.cut_reads, cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Severable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        check(&mut self.cut_writes, cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        check(&mut self.cut_writes, cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
