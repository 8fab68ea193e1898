//! How fast files may come: buckets that fill with time and are emptied by bytes.
//!
//! A bucket is pure: the time is an argument. It lets a piece pass and says how long to wait after it, so
//! that a piece larger than the bucket is only paid for longer.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// What a bucket holds: as much as comes in this time.
const BURST: Duration = Duration::from_secs(1);

/// A limit on bytes per second; zero is none.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: u64,
    /// When everything that was let pass is paid for; none while nothing was.
    paid: Option<Instant>,
}

impl Bucket {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate, paid: None }
    }

    /// Lets `bytes` pass at `now`. Returns how long to wait before the next.
    pub(crate) fn take(&mut self, now: Instant, bytes: u64) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let paid = self.paid.map_or(now, |paid| paid.max(now)) + cost;
        self.paid = Some(paid);
        paid.duration_since(now).saturating_sub(BURST)
    }
}

/// The two limits of one file.
#[derive(Debug)]
pub(crate) struct Pace {
    all: Arc<Mutex<Bucket>>,
    own: Bucket,
}

impl Pace {
    /// A file of a miner that shares `all` with the others'.
    pub(crate) fn new(all: Arc<Mutex<Bucket>>, rate: u64) -> Self {
        Self { all, own: Bucket::new(rate) }
    }

    /// Waits as long as these bytes have to be waited for.
    pub(crate) async fn pay(&mut self, bytes: u64) {
        let now = Instant::now();
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner).take(now, bytes);
        let wait = all.max(self.own.take(now, bytes));
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_file_takes_the_time_that_its_limit_says() {
        let all = Arc::new(Mutex::new(Bucket::new(0)));
        let mut pace = Pace::new(all, 1000);
        let begin = Instant::now();
        for _ in 0..100 {
            pace.pay(100).await;
        }
        // 10 000 bytes at 1000 a second, of which a second's worth is ahead.
        assert_eq!(begin.elapsed().as_millis().div_ceil(10), 900);
    }

    #[tokio::test(start_paused = true)]
    async fn four_files_together_are_as_fast_as_all_may_be() {
        let all = Arc::new(Mutex::new(Bucket::new(1000)));
        let begin = Instant::now();
        let file = || {
            let mut pace = Pace::new(Arc::clone(&all), 800);
            async move {
                for _ in 0..50 {
                    pace.pay(100).await;
                }
            }
        };
        tokio::join!(file(), file(), file(), file());
        // 20 000 bytes at 1000 a second for all; each alone would have been done after six.
        assert_eq!(begin.elapsed().as_millis().div_ceil(10), 1900);
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_larger_than_the_bucket_is_paid_for_and_nothing_saved_up_is_kept_for_ever() {
        let mut bucket = Bucket::new(1000);
        let now = Instant::now();
        assert_eq!(bucket.take(now, 5000), Duration::from_secs(4));
        let later = now + Duration::from_secs(3600);
        assert_eq!(bucket.take(later, 3000), Duration::from_secs(2));
        assert_eq!(Bucket::new(0).take(now, u64::MAX), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn no_pieces_bring_more_than_the_rate_and_one_burst(
            pieces in prop::collection::vec((1u64..100_000, 0u64..500), 1..200),
            rate in 1u64..1_000_000,
        ) {
            let start = Instant::now();
            let (mut bucket, mut now, mut passed) = (Bucket::new(rate), start, 0u128);
            for (bytes, idle) in pieces {
                now += Duration::from_millis(idle);
                now += bucket.take(now, bytes);
                passed += u128::from(bytes);
                let time = now.duration_since(start) + BURST;
                // What is rounded away is less than a nanosecond for each piece.
                let most = u128::from(rate) * (time.as_nanos() + 200) / 1_000_000_000;
                prop_assert!(passed <= most + 1, "{passed} bytes in {time:?}");
            }
        }
    }
}
