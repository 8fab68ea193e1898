//! What is known of one endpoint, and what follows from it.

use std::time::Duration;

use super::breaker::{Breaker, Now};
use crate::chain::Block;

/// How an endpoint stands. The order is that in which they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    Ok,
    /// It answers, and is behind the others.
    Lagging,
    /// It was not asked yet.
    Unknown,
    /// The last call to it failed.
    Unreachable,
    /// It failed too often, or lied: it is left alone for a while.
    Resting,
    /// It is of another chain: it is never used.
    WrongGenesis,
}

impl State {
    pub(crate) const ALL: [Self; 6] = [
        Self::Ok,
        Self::Lagging,
        Self::Unknown,
        Self::Unreachable,
        Self::Resting,
        Self::WrongGenesis,
    ];

    /// Stable, snake_case.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Lagging => "lagging",
            Self::Unknown => "unknown",
            Self::Unreachable => "unreachable",
            Self::Resting => "resting",
            Self::WrongGenesis => "wrong_genesis",
        }
    }
}

/// The ends of the chain and the runtime, as an endpoint tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) best: Block,
    pub(crate) finalized: Block,
    pub(crate) spec: u32,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Health {
    pub(crate) breaker: Breaker,
    /// What it told when it was asked last.
    pub(crate) told: Option<Told>,
    /// Newest block that it told of, by any road.
    pub(crate) best: u64,
    /// Times in a row that it told the same head while another one was ahead.
    pub(super) stuck: u32,
    answered: bool,
    wrong_genesis: bool,
    /// Smoothed.
    pub(crate) latency: Option<Duration>,
    /// Calls that failed, ever.
    pub(crate) errors: u64,
    pub(crate) last_error: String,
    /// It is well since then, without a break.
    pub(super) well_since: Option<Now>,
}

/// Of a new latency, this share is taken over.
const SMOOTHING: f64 = 0.125;

impl Health {
    /// Its state, not knowing the others'.
    pub(super) fn alone(&self) -> State {
        if self.wrong_genesis {
            State::WrongGenesis
        } else if self.breaker.is_open() {
            State::Resting
        } else if self.breaker.failures() > 0 {
            State::Unreachable
        } else if self.answered {
            State::Ok
        } else {
            State::Unknown
        }
    }

    pub(super) fn answered(&mut self, latency: Duration) {
        self.answered = true;
        self.wrong_genesis = false;
        self.breaker.succeeded();
        self.latency = Some(match self.latency {
            Some(before) => before.mul_f64(1.0 - SMOOTHING) + latency.mul_f64(SMOOTHING),
            None => latency,
        });
    }

    pub(super) fn wrong_genesis(&mut self, why: String) {
        self.wrong_genesis = true;
        self.errors += 1;
        self.last_error = why;
    }

    pub(super) fn went_wrong(&mut self, why: String) {
        self.errors += 1;
        self.last_error = why;
    }
}
