//! Least rates: how little may move while the other side is waited for.
//!
//! Only waiting counts, so that nobody is blamed for a disk or a processor of ours. What moves is looked at over
//! windows: a burst does not pay for a crawl behind it, and a link that fails for a moment is forgiven.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// What has moved in the current window.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Bytes per second.
    rate: u64,
    window: Duration,
    bytes: u64,
    waited: Duration,
}

/// Less has moved than must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crawling {
    /// The least rate, in bytes per second.
    pub(crate) rate: u64,
    /// Over how long.
    pub(crate) window: Duration,
}

impl Pace {
    /// At least `rate` bytes per second (0: any), over windows of this length.
    pub(crate) fn new(rate: u64, window: Duration) -> Self {
        Self { rate, window, bytes: 0, waited: Duration::ZERO }
    }

    /// `bytes` moved after the other side was waited for this long.
    pub(crate) fn moved(&mut self, bytes: usize, waited: Duration) -> Result<(), Crawling> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.waited = self.waited.saturating_add(waited);
        if self.waited < self.window {
            return Ok(());
        }
        let least = u128::from(self.rate).saturating_mul(self.waited.as_millis()) / 1000;
        let enough = u128::from(self.bytes) >= least;
        (self.bytes, self.waited) = (0, Duration::ZERO);
        if enough { Ok(()) } else { Err(Crawling { rate: self.rate, window: self.window }) }
    }
}

/// A connection that fails when the other side takes nothing for too long, or takes it too slowly.
#[derive(Debug)]
pub(crate) struct Taking<S> {
    stream: S,
    limit: Duration,
    pace: Pace,
    /// Runs while a write waits, which it does since then.
    alarm: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<S> Taking<S> {
    /// Nothing for `limit` is too long; less than `rate` bytes per second over as long is too slow.
    pub(crate) fn new(stream: S, limit: Duration, rate: u64) -> Self {
        Self { stream, limit, pace: Pace::new(rate, limit), alarm: None }
    }

    fn watched<T>(
        &mut self,
        context: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let given_up = |why| Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
        if let Poll::Ready(progress) = progress {
            let waited = self.alarm.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
            let moved = progress.as_ref().map_or(0, bytes);
            if self.pace.moved(moved, waited).is_err() {
                return given_up("the client takes too little");
            }
            return Poll::Ready(progress);
        }
        let limit = self.limit;
        let (_, alarm) = self.alarm.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(sleep_until(now + limit)))
        });
        ready!(alarm.as_mut().poll(context));
        given_up("the client takes nothing")
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taking<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taking<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, progress, |written| *written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_flush(context);
        self.watched(context, progress, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watched(context, progress, |written| *written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::sleep,
    };

    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);

    #[test]
    fn a_byte_now_and_then_is_too_slow_and_a_pause_of_a_fast_sender_is_not() {
        let mut drip = Pace::new(1000, WINDOW);
        let refused = (1..).find(|_| drip.moved(1, Duration::from_secs(1)).is_err());
        assert_eq!(refused, Some(30));
        let mut pausing = Pace::new(1000, WINDOW);
        for _ in 0..100 {
            pausing.moved(40_000, Duration::from_secs(1)).unwrap();
            pausing.moved(1, Duration::from_secs(29)).unwrap();
        }
    }

    #[test]
    fn a_burst_does_not_pay_for_a_crawl_behind_it() {
        let mut pace = Pace::new(1000, WINDOW);
        pace.moved(1 << 30, WINDOW).unwrap();
        pace.moved(1, WINDOW).unwrap_err();
    }

    #[test]
    fn time_that_nobody_waited_for_the_sender_does_not_count_and_no_rate_is_no_limit() {
        let mut ours = Pace::new(u64::MAX, WINDOW);
        (0..1000).for_each(|_| ours.moved(1, Duration::ZERO).unwrap());
        let mut none = Pace::new(0, WINDOW);
        (0..1000).for_each(|_| none.moved(0, WINDOW).unwrap());
    }

    /// Writes ten bytes to somebody who takes one every 20 s.
    async fn write(rate: u64, limit: Duration) -> io::Result<()> {
        let (ours, mut theirs) = tokio::io::duplex(1);
        let mut ours = Taking::new(ours, limit, rate);
        let slow = async {
            for _ in 0..10 {
                sleep(Duration::from_secs(20)).await;
                theirs.read_u8().await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            done = ours.write_all(b"1234567890") => done,
            () = slow => unreachable!(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_or_too_little_is_given_up_and_a_slow_one_is_not() {
        write(0, Duration::from_secs(30)).await.unwrap();
        let nothing = write(0, Duration::from_secs(19)).await.unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::TimedOut);
        let little = write(1, Duration::from_secs(30)).await.unwrap_err();
        assert_eq!(little.to_string(), "the client takes too little");
    }
}
