//! How often, how long and in what rhythm something that fails is tried again.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::{
    error::ClientError,
    progress::{Event, Progress},
};

/// The limits of trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Tries in a row that brought nothing, at most. One that moved bytes begins a new row.
    pub tries: u32,
    /// First pause between tries; each next one is about twice as long, with some chance in it.
    pub first_pause: Duration,
    /// Longest pause, where the gateway does not ask for a longer one.
    pub longest_pause: Duration,
    /// How long a connection may be silent.
    pub silence: Duration,
    /// How long the gateway may look at a file that it has all of.
    pub verdict: Duration,
    /// How long it may take in all; a submission also ends with its phase.
    pub in_all: Option<Duration>,
    /// Time between two blocks: tells how much of a phase is left.
    pub block_time: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 8,
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(10),
            silence: Duration::from_secs(60),
            verdict: Duration::from_secs(300),
            in_all: None,
            block_time: Duration::from_secs(12),
        }
    }
}

/// Longest pause that a gateway may ask for: its word must not put a miner to sleep for the cycle.
const LONGEST_ASKED: Duration = Duration::from_secs(120);

impl Patience {
    fn backoff(&self) -> ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(self.first_pause)
            .with_max_delay(self.longest_pause)
            .without_max_times()
            .with_jitter()
            .build()
    }
}

/// The tries of one piece of work.
#[derive(Debug)]
pub(crate) struct Tries {
    patience: Patience,
    backoff: ExponentialBackoff,
    /// In a row, without progress.
    failed: u32,
    /// In all.
    made: u32,
    until: Option<Instant>,
}

impl Tries {
    pub(crate) fn new(patience: Patience) -> Self {
        let until = patience.in_all.map(|in_all| Instant::now() + in_all);
        Self { patience, backoff: patience.backoff(), failed: 0, made: 1, until }
    }

    /// How often it was tried.
    pub(crate) fn made(&self) -> u32 {
        self.made
    }

    /// Something moved: what failed before does not count any more.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
        self.backoff = self.patience.backoff();
    }

    /// Nothing is of use after this many blocks more.
    pub(crate) fn ends_in_blocks(&mut self, blocks: u64) {
        // The phase's last block takes its time too.
        let blocks = u32::try_from(blocks.saturating_add(1)).unwrap_or(u32::MAX);
        let end = Instant::now().checked_add(self.patience.block_time.saturating_mul(blocks));
        let Some(end) = end else { return };
        let in_all = self.patience.in_all.and(self.until);
        self.until = Some(in_all.map_or(end, |until| until.min(end)));
    }

    /// When it has to be done.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Waits before the next try.
    ///
    /// # Errors
    ///
    /// With `error` when it does not pass by waiting; when it was tried often enough; when the next try would
    /// come too late.
    pub(crate) async fn pause(
        &mut self,
        error: ClientError,
        progress: &dyn Progress,
    ) -> Result<(), ClientError> {
        if !error.is_passing() {
            return Err(error);
        }
        self.failed += 1;
        if self.failed >= self.patience.tries {
            return Err(ClientError::GaveUp { tries: self.failed, last: Box::new(error) });
        }
        let asked = error.refusal().and_then(|refusal| refusal.retry_after).unwrap_or_default();
        let own = self.backoff.next().unwrap_or(self.patience.longest_pause);
        let pause = asked.min(LONGEST_ASKED).max(own);
        if self.until.is_some_and(|until| Instant::now() + pause >= until) {
            return Err(ClientError::OutOfTime { last: Box::new(error) });
        }
        info!(%error, ?pause, failed = self.failed, "it did not work, trying again");
        progress.on(Event::Again { why: &error, pause });
        sleep(pause).await;
        self.made += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Refusal;

    fn refused(status: u16, reason: &str, retry_after: Option<u64>) -> ClientError {
        ClientError::Refused(Refusal {
            status,
            reason: reason.to_owned(),
            detail: String::new(),
            retry_after: retry_after.map(Duration::from_secs),
        })
    }

    async fn pause(tries: &mut Tries, error: ClientError) -> Result<Duration, ClientError> {
        let before = Instant::now();
        tries.pause(error, &()).await.map(|()| before.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn the_gateways_word_is_waited_for_but_not_for_ever() {
        let mut tries = Tries::new(Patience::default());
        let waited = pause(&mut tries, refused(503, "busy", Some(30))).await.unwrap();
        assert!((30..32).contains(&waited.as_secs()), "{waited:?}");
        let waited = pause(&mut tries, refused(503, "busy", Some(1 << 40))).await.unwrap();
        assert!((120..122).contains(&waited.as_secs()), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn tries_are_bounded_and_progress_begins_a_new_row() {
        let mut tries = Tries::new(Patience { tries: 3, ..Patience::default() });
        for _ in 0..10 {
            pause(&mut tries, ClientError::Silent(Duration::ZERO)).await.unwrap();
            pause(&mut tries, ClientError::Silent(Duration::ZERO)).await.unwrap();
            tries.progressed();
        }
        for _ in 0..2 {
            pause(&mut tries, refused(502, "", None)).await.unwrap();
        }
        let error = pause(&mut tries, refused(502, "", None)).await.unwrap_err();
        assert!(matches!(error, ClientError::GaveUp { tries: 3, .. }), "{error}");
        assert_eq!(tries.made(), 23);
    }

    #[tokio::test(start_paused = true)]
    async fn what_stays_refused_is_told_at_once() {
        let mut tries = Tries::new(Patience::default());
        let error = pause(&mut tries, refused(400, "hash_mismatch", None)).await.unwrap_err();
        assert_eq!((error.reason(), tries.made()), ("hash_mismatch", 1));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_waited_for_that_comes_after_the_phase() {
        let mut tries = Tries::new(Patience::default());
        tries.ends_in_blocks(1);
        pause(&mut tries, refused(503, "busy", Some(20))).await.unwrap();
        let error = pause(&mut tries, refused(503, "busy", Some(20))).await.unwrap_err();
        assert!(matches!(error, ClientError::OutOfTime { .. }), "{error}");
        assert_eq!(error.reason(), "busy");
        // What the caller allows in all is never exceeded by a long phase.
        let in_all = Some(Duration::from_secs(5));
        let mut tries = Tries::new(Patience { in_all, ..Patience::default() });
        tries.ends_in_blocks(1000);
        assert!(pause(&mut tries, refused(503, "busy", Some(6))).await.is_err());
    }
}
