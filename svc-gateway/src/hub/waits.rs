//! When to try again, and when to give up.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::sleep;
use tracing::debug;

use super::{Failure, Trouble};

/// The longest wait between two tries, and the longest that the hub may ask everybody for.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The waits between tries. What brings something new begins them anew.
#[derive(Debug)]
pub(crate) struct Waits {
    tries: u32,
    backoff: Duration,
    left: ExponentialBackoff,
}

impl Waits {
    /// `tries` in a row, the first wait being about `backoff`.
    pub(crate) fn new(tries: u32, backoff: Duration) -> Self {
        Self { tries, backoff, left: delays(tries, backoff) }
    }

    /// Something new came.
    pub(crate) fn begin_anew(&mut self) {
        self.left = delays(self.tries, self.backoff);
    }

    /// Waits before the next try, if `trouble` passes and there is one left; else gives it back.
    pub(crate) async fn next(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        let Trouble::Failure(Failure::Passing { why, after }) = trouble else {
            return Err(trouble);
        };
        let Some(wait) = self.left.next() else {
            return Err(Failure::Unreachable { tries: self.tries, why }.into());
        };
        debug!(why, "asking the hub again");
        sleep(wait.max(after.unwrap_or_default()).min(LONGEST_WAIT)).await;
        Ok(())
    }
}

fn delays(tries: u32, backoff: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(backoff)
        .with_max_delay(LONGEST_WAIT)
        .with_factor(2.0)
        .with_max_times(tries.saturating_sub(1) as usize)
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_waited_out_some_times_and_what_does_not_is_not() {
        let mut waits = Waits::new(3, Duration::from_secs(1));
        for again in [true, true, false] {
            assert_eq!(waits.next(Failure::passing("down").into()).await.is_ok(), again);
        }
        waits.begin_anew();
        assert!(waits.next(Failure::passing("down").into()).await.is_ok());
        assert!(waits.next(Failure::answer("no").into()).await.is_err());
    }
}
