//! All endpoints together: who is well, who is behind, and which one is in use.
//!
//! A state machine: news in, at most one switch out; time and chance are arguments. The endpoint in
//! use is left as soon as a better one is there; a preferred one is taken again only after it was
//! well for a while, so that an endpoint that comes and goes is not followed back and forth.

use std::time::Duration;

use super::{
    breaker::{self, Now},
    health::{Health, State, Told},
};

/// Times in a row that an endpoint may tell the same head while another one is ahead.
const STUCK: u32 = 3;

/// How endpoints are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// An endpoint that is as many blocks behind the best of all is lagging.
    pub(crate) max_lag: u64,
    /// A preferred endpoint is taken again once it was well for this long.
    pub(crate) return_after: Duration,
    pub(crate) breaker: breaker::Policy,
}

/// Something that was learned of an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum News {
    /// It answered a call, whatever it said.
    Answered { latency: Duration },
    /// Its connection was found lost, and another one was made.
    Reconnected,
    /// A call, a connection or a subscription failed.
    Failed { why: String },
    /// It was asked how the chain stands.
    Probed(Told),
    /// It told of a new head.
    Head(u64),
    /// It is of another chain.
    WrongGenesis { why: String },
    /// What it said cannot be true.
    Lied { why: String },
}

/// Another endpoint is in use from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Switch {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) why: String,
}

/// See the module. Endpoints are named by their rank in the configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Board {
    endpoints: Vec<Health>,
    current: Option<usize>,
    policy: Policy,
}

impl Board {
    pub(crate) fn new(count: usize, policy: Policy) -> Self {
        Self { endpoints: vec![Health::default(); count], current: None, policy }
    }

    /// The endpoint in use; `None` before one was found.
    pub(crate) fn current(&self) -> Option<usize> {
        self.current
    }

    /// Every endpoint, best first.
    pub(crate) fn endpoints(&self) -> &[Health] {
        &self.endpoints
    }

    /// What the endpoint in use told when it was asked last.
    pub(crate) fn told(&self) -> Option<Told> {
        self.endpoints.get(self.current?)?.told
    }

    /// Blocks that an endpoint is behind the best of all.
    pub(crate) fn lag(&self, rank: usize) -> u64 {
        let well = self.endpoints.iter().filter(|health| health.alone() == State::Ok);
        let best = well.map(|health| health.best).max().unwrap_or_default();
        self.endpoints.get(rank).map_or(0, |health| best.saturating_sub(health.best))
    }

    /// How an endpoint stands.
    pub(crate) fn state(&self, rank: usize) -> State {
        let Some(health) = self.endpoints.get(rank) else { return State::WrongGenesis };
        let behind = || self.lag(rank) >= self.policy.max_lag || health.stuck >= STUCK;
        let alone = health.alone();
        // Before it told of a block, nothing is known of how far it is.
        if alone == State::Ok && health.best > 0 && behind() { State::Lagging } else { alone }
    }

    /// Endpoints that may be asked now, the one in use first, then by how they stand.
    pub(crate) fn order(&self, now: Now) -> Vec<usize> {
        let mut ranks: Vec<usize> = (0..self.endpoints.len())
            .filter(|rank| self.state(*rank) != State::WrongGenesis)
            .filter(|rank| self.endpoints[*rank].breaker.allows(now))
            .collect();
        ranks.sort_by_key(|rank| (self.state(*rank), Some(*rank) != self.current, *rank));
        ranks
    }

    /// Whether every endpoint is of another chain.
    pub(crate) fn all_foreign(&self) -> bool {
        (0..self.endpoints.len()).all(|rank| self.state(rank) == State::WrongGenesis)
    }

    /// Asks to make a call to an endpoint.
    pub(crate) fn admit(&mut self, rank: usize, now: Now) -> bool {
        let policy = self.policy.breaker;
        let health = self.endpoints.get_mut(rank);
        health.is_some_and(|health| health.breaker.admit(now, policy))
    }

    /// Takes news of an endpoint, and judges again.
    pub(crate) fn hear(
        &mut self,
        rank: usize,
        news: News,
        now: Now,
        chance: f64,
    ) -> Option<Switch> {
        let ahead = self.lag(rank) > 0;
        let policy = self.policy.breaker;
        let health = self.endpoints.get_mut(rank)?;
        match news {
            News::Answered { latency } => health.answered(latency),
            News::Reconnected => health.well_since = None,
            News::Failed { why } => {
                health.breaker.failed(now, chance, policy);
                health.went_wrong(why);
            }
            News::Probed(told) => {
                let moved = told.best.number.0 > health.best;
                health.stuck = if moved || !ahead { 0 } else { health.stuck.saturating_add(1) };
                health.best = told.best.number.0;
                health.told = Some(told);
            }
            News::Head(number) => {
                health.best = health.best.max(number);
                health.stuck = 0;
            }
            News::WrongGenesis { why } => health.wrong_genesis(why),
            News::Lied { why } => {
                health.breaker.trip(now, policy);
                health.went_wrong(why);
            }
        }
        self.judge(now)
    }

    fn judge(&mut self, now: Now) -> Option<Switch> {
        for rank in 0..self.endpoints.len() {
            let well = self.state(rank) == State::Ok;
            let since = &mut self.endpoints[rank].well_since;
            *since = if well { since.or(Some(now)) } else { None };
        }
        let to = (0..self.endpoints.len()).min_by_key(|rank| (self.state(*rank), *rank))?;
        let Some(from) = self.current else {
            // Those before it were not heard of yet: the first choice is not made in a hurry.
            let in_a_hurry = (0..to).any(|rank| self.state(rank) == State::Unknown);
            if self.state(to) <= State::Lagging && !in_a_hurry {
                self.current = Some(to);
            }
            return None;
        };
        let (before, after) = (self.state(from), self.state(to));
        let why = if after < before && after <= State::Lagging {
            self.why(from)
        } else if after == State::Ok && to < from && self.well_for(to, now) {
            "it is preferred, and well again".to_owned()
        } else {
            return None;
        };
        self.current = Some(to);
        Some(Switch { from, to, why })
    }

    fn well_for(&self, rank: usize, now: Now) -> bool {
        let since = self.endpoints[rank].well_since;
        since.is_some_and(|since| now.saturating_sub(since) >= self.policy.return_after)
    }

    /// Why an endpoint was left.
    fn why(&self, rank: usize) -> String {
        match self.state(rank) {
            State::Lagging if self.lag(rank) < self.policy.max_lag => {
                "it brings no new blocks, and others do".to_owned()
            }
            State::Lagging => format!("it is {} blocks behind", self.lag(rank)),
            State::Ok | State::Unknown => "another one is better".to_owned(),
            State::Unreachable | State::Resting | State::WrongGenesis => {
                self.endpoints[rank].last_error.clone()
            }
        }
    }
}

#[cfg(test)]
mod tests;
