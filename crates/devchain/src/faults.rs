//! How a node misbehaves when a test asks it to.

use std::{
    collections::BTreeMap,
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

use crate::chain::Tips;

/// What a node is wrong about, however well formed its answers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lie {
    /// The newest 16 blocks, and all that come, have other hashes: headers, streams and numbers
    /// agree with each other, but with no other node.
    BlockHash,
    /// Values of `Commitments.CommitmentOf` come back altered. They still decode.
    Commitments,
    /// The finalized head is the best one.
    Finality,
    /// Block 0 has another hash.
    Genesis,
}

/// What a node makes of the chain. Every change of it is seen by those who follow the node.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outlook {
    /// As many blocks the node is behind.
    pub(crate) lag: u32,
    /// Where the node stopped hearing of blocks.
    pub(crate) stuck: Option<Tips>,
    pub(crate) keep_states: Option<u32>,
    /// What it lies about, and the newest block about which it does not.
    pub(crate) lie: Option<(Lie, u32)>,
    /// Of another branch, only the newest block is announced.
    pub(crate) tip_only: bool,
}

/// The switches of one node, which tests turn and which its server reads.
#[derive(Debug)]
pub(crate) struct Faults {
    latency_us: AtomicU64,
    refusals: AtomicU32,
    drops: AtomicU32,
    lost_answers: AtomicU32,
    offline: AtomicBool,
    mute: watch::Sender<bool>,
    outlook: watch::Sender<Outlook>,
    /// How often each method was called.
    calls: watch::Sender<BTreeMap<&'static str, u64>>,
    /// Cancelled to cut all connections of its generation; then replaced.
    connections: watch::Sender<CancellationToken>,
}

impl Faults {
    pub(crate) fn new(keep_states: Option<u32>) -> Self {
        Self {
            latency_us: AtomicU64::new(0),
            refusals: AtomicU32::new(0),
            drops: AtomicU32::new(0),
            lost_answers: AtomicU32::new(0),
            offline: AtomicBool::new(false),
            mute: watch::Sender::new(false),
            outlook: watch::Sender::new(Outlook { keep_states, ..Outlook::default() }),
            calls: watch::Sender::default(),
            connections: watch::Sender::new(CancellationToken::new()),
        }
    }

    pub(crate) fn set_latency(&self, each_call: Duration) {
        let us = u64::try_from(each_call.as_micros()).unwrap_or(u64::MAX);
        self.latency_us.store(us, Ordering::Relaxed);
    }

    /// Counts a call, and waits as long as it is to take.
    pub(crate) async fn delay(&self, method: &'static str) {
        self.calls.send_modify(|calls| *calls.entry(method).or_default() += 1);
        let us = self.latency_us.load(Ordering::Relaxed);
        if us > 0 {
            let cut = self.connection();
            tokio::select! {
                () = cut.cancelled() => {}
                () = tokio::time::sleep(Duration::from_micros(us)) => {}
            }
        }
    }

    /// How often each method was called.
    pub(crate) fn calls(&self) -> BTreeMap<String, u64> {
        self.calls.borrow().iter().map(|(method, n)| ((*method).to_owned(), *n)).collect()
    }

    pub(crate) fn set_mute(&self, mute: bool) {
        self.mute.send_replace(mute);
    }

    /// Waits until the node has its voice back, or the connection is gone.
    pub(crate) async fn voice(&self) {
        let (mut mute, cut) = (self.mute.subscribe(), self.connection());
        tokio::select! {
            () = cut.cancelled() => {}
            _ = mute.wait_for(|mute| !mute) => {}
        }
    }

    pub(crate) fn outlook(&self) -> Outlook {
        *self.outlook.borrow()
    }

    /// The outlook as it changes.
    pub(crate) fn outlooks(&self) -> watch::Receiver<Outlook> {
        self.outlook.subscribe()
    }

    pub(crate) fn set_outlook(&self, change: impl FnOnce(&mut Outlook)) {
        self.outlook.send_modify(change);
    }

    pub(crate) fn refuse_submits(&self, n: u32) {
        self.refusals.store(n, Ordering::Relaxed);
    }

    /// Whether this submission is one of those to refuse.
    pub(crate) fn refuse(&self) -> bool {
        take_one(&self.refusals)
    }

    pub(crate) fn drop_submits(&self, n: u32) {
        self.drops.store(n, Ordering::Relaxed);
    }

    /// Whether this submission is one of those that no pool gets.
    pub(crate) fn drop_submit(&self) -> bool {
        take_one(&self.drops)
    }

    pub(crate) fn lose_answers(&self, n: u32) {
        self.lost_answers.store(n, Ordering::Relaxed);
    }

    /// Whether this submission is one of those whose answer is lost.
    pub(crate) fn lose_answer(&self) -> bool {
        take_one(&self.lost_answers)
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
