//! The breaker of one endpoint: after some failures in a row it is left alone for a while, then
//! one call tries whether it is back.
//!
//! A state machine with time and chance as arguments. It knows nothing of calls or connections.

use std::time::Duration;

/// When an endpoint is left alone, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Failures in a row that open the breaker.
    pub(crate) failures: u32,
    /// The longest first rest, and the longest of all: each is up to twice the one before.
    pub(crate) rest: (Duration, Duration),
    /// A trial that was not heard of for this long is lost: another one may be made.
    pub(crate) trial: Duration,
}

/// A point in time: since the process started.
pub(crate) type Now = Duration;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Breaker {
    state: State,
    /// Failures since the last success.
    failures: u32,
    /// Rests since the last success.
    rests: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Calls go through.
    #[default]
    Closed,
    /// No call goes through before this time.
    Resting { until: Now },
    /// One call is on its way to find out; no other goes through before this time.
    Trying { until: Now },
}

impl Breaker {
    /// Whether a call may be made.
    pub(crate) fn allows(&self, now: Now) -> bool {
        match self.state {
            State::Closed => true,
            State::Resting { until } | State::Trying { until } => now >= until,
        }
    }

    /// Asks to make a call: after a rest, only one is let through until it is heard of.
    pub(crate) fn admit(&mut self, now: Now, policy: Policy) -> bool {
        let allowed = self.allows(now);
        if allowed && self.state != State::Closed {
            self.state = State::Trying { until: now + policy.trial };
        }
        allowed
    }

    /// Whether the endpoint is left alone, or tried after that.
    pub(crate) fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    /// Failures since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// A call was answered.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A call failed. `chance` is in 0..1: the rest is that share of the longest one.
    pub(crate) fn failed(&mut self, now: Now, chance: f64, policy: Policy) {
        self.failures = self.failures.saturating_add(1);
        let opens = match self.state {
            State::Closed => self.failures >= policy.failures,
            State::Trying { .. } => true,
            // Of a call from before the rest.
            State::Resting { .. } => false,
        };
        if opens {
            self.rest(now, chance, policy);
        }
    }

    /// The endpoint is not to be trusted now, whatever it answers: the longest rest at once.
    pub(crate) fn trip(&mut self, now: Now, policy: Policy) {
        self.failures = self.failures.saturating_add(1);
        self.state = State::Resting { until: now + policy.rest.1 };
    }

    fn rest(&mut self, now: Now, chance: f64, policy: Policy) {
        let doubled = policy.rest.0.saturating_mul(1 << self.rests.min(16));
        let longest = doubled.min(policy.rest.1);
        self.rests = self.rests.saturating_add(1);
        self.state = State::Resting { until: now + longest.mul_f64(chance.clamp(0.0, 1.0)) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy {
        failures: 3,
        rest: (Duration::from_secs(1), Duration::from_secs(8)),
        trial: Duration::from_secs(5),
    };

    fn at(seconds: u64) -> Now {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_not_after_failures_in_between() {
        let mut breaker = Breaker::default();
        for _ in 0..2 {
            breaker.failed(at(0), 1.0, POLICY);
        }
        breaker.succeeded();
        for _ in 0..2 {
            breaker.failed(at(0), 1.0, POLICY);
        }
        assert!(breaker.admit(at(0), POLICY));
        breaker.failed(at(0), 1.0, POLICY);
        assert!(!breaker.admit(at(0), POLICY));
    }

    #[test]
    fn after_the_rest_one_call_tries_and_its_end_decides() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            breaker.failed(at(0), 1.0, POLICY);
        }
        assert!(breaker.admit(at(1), POLICY));
        assert!(!breaker.admit(at(1), POLICY), "one trial at a time");
        breaker.failed(at(2), 1.0, POLICY);
        assert!(!breaker.admit(at(3), POLICY), "the second rest is longer");
        assert!(breaker.admit(at(4), POLICY));
        breaker.succeeded();
        assert!(!breaker.is_open() && breaker.admit(at(4), POLICY) && breaker.admit(at(4), POLICY));
    }

    #[test]
    fn a_trial_that_nobody_hears_of_does_not_shut_the_endpoint_out_for_ever() {
        let mut breaker = Breaker::default();
        breaker.trip(at(0), POLICY);
        assert!(!breaker.admit(at(7), POLICY));
        assert!(breaker.admit(at(8), POLICY));
        assert!(!breaker.admit(at(12), POLICY));
        assert!(breaker.admit(at(13), POLICY));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Wait(u64),
        Ask,
        Succeed,
        Fail(f64),
        Trip,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..3000).prop_map(Step::Wait),
            Just(Step::Ask),
            Just(Step::Succeed),
            (0.0..1.0).prop_map(Step::Fail),
            Just(Step::Trip),
        ]
    }

    proptest! {
        /// Whatever happens: no rest is longer than the longest, a success always closes, and it
        /// opens only when there was a reason.
        #[test]
        fn no_endpoint_is_shut_out_for_longer_than_the_longest_rest(
            steps in prop::collection::vec(step(), 1..80)
        ) {
            let (mut breaker, mut now, mut in_a_row) = (Breaker::default(), Duration::ZERO, 0);
            for step in steps {
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Ask => {
                        let open = breaker.is_open();
                        if breaker.admit(now, POLICY) && open {
                            prop_assert!(!breaker.admit(now, POLICY), "one trial at a time");
                        }
                    }
                    Step::Succeed => {
                        breaker.succeeded();
                        in_a_row = 0;
                    }
                    Step::Fail(chance) => {
                        breaker.failed(now, chance, POLICY);
                        in_a_row += 1;
                    }
                    Step::Trip => {
                        breaker.trip(now, POLICY);
                        in_a_row += POLICY.failures;
                    }
                }
                prop_assert!(breaker.allows(now + POLICY.rest.1.max(POLICY.trial)));
                if in_a_row < POLICY.failures {
                    prop_assert!(breaker.allows(now), "{:?}", breaker);
                }
            }
        }
    }
}
