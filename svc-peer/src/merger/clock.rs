//! The time of a merge: since it began for everybody.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Tells the time since the agreed start. Runs on the monotonic clock; only a start that was kept by an
/// earlier process is found by the wall clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    here: Instant,
    passed: Duration,
}

impl Clock {
    /// A merge of which `passed` has passed by now.
    pub(crate) fn new(passed: Duration) -> Self {
        Self { here: Instant::now(), passed }
    }

    /// A merge that began at `began`, in milliseconds since 1970.
    pub(crate) fn since(began: u64) -> Self {
        Self::new(Duration::from_millis(wall().saturating_sub(began)))
    }

    /// When it began, in milliseconds since 1970.
    pub(crate) fn began(self) -> u64 {
        let passed = u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX);
        wall().saturating_sub(passed)
    }

    /// Time since the start.
    pub(crate) fn now(self) -> Duration {
        self.here.elapsed() + self.passed
    }

    /// The moment at `since` after the start; now, where that is over.
    pub(crate) fn at(self, since: Duration) -> Instant {
        self.here + since.saturating_sub(self.passed)
    }
}

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a start must be found again by another process")]
pub(crate) fn wall() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn time_goes_on_from_what_has_passed() {
        let clock = Clock::new(Duration::from_secs(5));
        assert!(clock.now() >= Duration::from_secs(5));
        assert_eq!(clock.at(Duration::from_secs(8)), clock.here + Duration::from_secs(3));
        assert_eq!(clock.at(Duration::from_secs(1)), clock.here, "what is over is now");
    }

    #[tokio::test]
    async fn a_start_that_was_kept_is_found_again() {
        let clock = Clock::new(Duration::from_secs(5));
        let again = Clock::since(clock.began());
        assert!(again.now().abs_diff(clock.now()) < Duration::from_secs(2));
    }
}
