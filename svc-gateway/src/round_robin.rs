//! Whose turn it is to send a piece of a file.
//!
//! As many connections send at a time as there are processors; the others come in the order in which they asked,
//! and who has sent asks again. Downloads that go on side by side so stay within few pieces of each other, and
//! find a file that they share in the processor's caches.

use std::{
    sync::Arc,
    task::{Context, Poll},
    thread::available_parallelism,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// The turns of all connections.
#[derive(Debug, Clone)]
pub(crate) struct RoundRobin(Arc<Semaphore>);

/// A connection's asking for turns.
#[derive(Debug)]
pub(crate) struct Turns(PollSemaphore);

/// The right to send a piece, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl RoundRobin {
    /// `at_a_time` connections send at a time.
    pub(crate) fn new(at_a_time: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_a_time)))
    }

    pub(crate) fn turns(&self) -> Turns {
        Turns(PollSemaphore::new(Arc::clone(&self.0)))
    }
}

impl Default for RoundRobin {
    fn default() -> Self {
        Self::new(available_parallelism().map_or(1, usize::from))
    }
}

impl Turns {
    /// Waits for the next turn, behind all who wait already.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Turn> {
        self.0.poll_acquire(context).map(|permit| Turn { _permit: permit })
    }

    /// Whether nobody can be waiting: another one could send at once.
    pub(crate) fn nobody_waits(&self) -> bool {
        self.0.available_permits() > 0
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::*;

    fn ask(turns: &mut Turns) -> Option<Turn> {
        match turns.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    #[test]
    fn turns_come_in_the_order_in_which_they_were_asked_for() {
        let all = RoundRobin::new(1);
        let [mut first, mut second, mut third] = [all.turns(), all.turns(), all.turns()];
        let turn = ask(&mut first).unwrap();
        assert!(ask(&mut second).is_none() && ask(&mut third).is_none());
        // Asks again while it has its turn, and still stands behind the others.
        assert!(ask(&mut first).is_none());
        drop(turn);
        assert!(ask(&mut first).is_none() && ask(&mut third).is_none());
        drop(ask(&mut second).unwrap());
        assert!(ask(&mut first).is_none());
        drop(ask(&mut third).unwrap());
        drop(ask(&mut first).unwrap());
    }

    #[test]
    fn who_is_gone_is_passed_over() {
        let all = RoundRobin::new(1);
        let [mut first, mut second, mut third] = [all.turns(), all.turns(), all.turns()];
        let turn = ask(&mut first).unwrap();
        assert!(ask(&mut second).is_none() && ask(&mut third).is_none());
        drop(turn);
        // It was its turn already.
        drop(second);
        assert!(ask(&mut third).is_some());
    }

    #[test]
    fn where_fewer_send_than_may_nobody_waits() {
        let all = RoundRobin::new(2);
        let [mut first, mut second] = [all.turns(), all.turns()];
        let turns = ask(&mut first).unwrap();
        assert!(first.nobody_waits());
        let others = ask(&mut second).unwrap();
        assert!(!first.nobody_waits());
        drop((turns, others));
        assert!(first.nobody_waits());
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let all = RoundRobin::new(1);
        let [mut first, mut second] = [all.turns(), all.turns()];
        let turn = ask(&mut first).unwrap();
        let waiting = tokio::spawn(async move {
            drop(poll_fn(|context| second.poll_next(context)).await);
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(turn);
        waiting.await.unwrap();
    }
}
