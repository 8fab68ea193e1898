//! When what must be over: a merge's deadline, divided. The same for all members, counted from the
//! round's agreed start; what differs between their clocks is part of a step.
//!
//! Nobody waits for any of it when all is well. The times are for when somebody is missing, slow or
//! lying: what counts until when depends on how many have signed it, one step more for each
//! signature, so that whoever takes something in at the last moment has a step left to show it to
//! everybody else (Dolev and Strong 1983).

use std::time::Duration;

/// The times of a merge, all since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// How many faulty members there is room for.
    pub faults: u8,
    /// A message reaches everybody within this, by way of others where it must.
    pub step: Duration,
    /// A slice reaches everybody within this, though each of `faults` others stalls first.
    pub transfer: Duration,
    /// How long one fetch of a slice may take.
    pub fetch: Duration,
    /// Pause between two tries of what has failed.
    pub pace: Duration,
    /// An offer that nobody else has signed counts until then.
    pub offers: Duration,
    /// What offers count is decided.
    pub offered: Duration,
    /// Most members have signed who they are, or there is no merge.
    pub grouped: Duration,
    /// How long an owner waits for gradients.
    pub gather: Duration,
    /// How long a slice's next owner waits for the one before.
    pub attempt: Duration,
    /// A reduced slice that nobody else has signed counts until then.
    pub reduced: Duration,
    /// A claim that a slice is reduced wrongly, which nobody else has signed, counts until then.
    pub claims: Duration,
    /// What the result is is decided.
    pub decided: Duration,
    /// Everything is over.
    pub end: Duration,
}

impl Schedule {
    /// Divides `total` with room for `faults` faulty members.
    pub fn new(total: Duration, faults: u8) -> Self {
        // In units: the parts that grow with the faults are repeated that often.
        const OFFERS: u32 = 5;
        const STEP: u32 = 1;
        const ATTEMPT: u32 = 5;
        const TRANSFER: u32 = 4;
        const AUDIT: u32 = 3;
        let f = u32::from(faults);
        let units = OFFERS
            + (f + 2) * STEP
            + (f + 1) * ATTEMPT
            + (f + 1) * TRANSFER
            + AUDIT
            + (f + 1) * STEP
            + 2 * STEP;
        // Whole microseconds, so that all members round alike.
        let micros = u64::try_from(total.as_micros()).unwrap_or(u64::MAX) / u64::from(units);
        let unit = Duration::from_micros(micros);
        let offers = unit * OFFERS;
        let offered = offers + unit * (f + 1) * STEP;
        let grouped = offered + unit * STEP;
        let reduced = grouped + unit * ((f + 1) * ATTEMPT + TRANSFER);
        let claims = reduced + unit * (f * TRANSFER + AUDIT);
        let decided = claims + unit * (f + 1) * STEP;
        Self {
            faults,
            step: unit * STEP,
            transfer: unit * TRANSFER,
            fetch: unit * TRANSFER / (f + 2),
            pace: unit * STEP / 8,
            offers,
            offered,
            grouped,
            gather: unit * (ATTEMPT - 2),
            attempt: unit * ATTEMPT,
            reduced,
            claims,
            decided,
            end: decided + unit * 2 * STEP,
        }
    }

    /// Until when an offer counts that so many others have signed. With nobody else it is one's own,
    /// and a step must be left for the others to see it, as with every further signature.
    pub fn offer(&self, signers: usize) -> Duration {
        self.offers - self.step + self.step * self.steps(signers)
    }

    /// Until when the unanimity of a stage counts that so many others have vouched for.
    pub fn unanimity(&self, base: Duration, signers: usize) -> Duration {
        base + self.step * self.steps(signers)
    }

    /// Until when a reduced slice counts that so many others have signed.
    pub fn slice(&self, signers: usize) -> Duration {
        self.reduced - self.transfer + self.transfer * self.steps(signers)
    }

    /// Until when a slice counts as wrongly reduced that so many others have claimed to be.
    pub fn claim(&self, signers: usize) -> Duration {
        self.claims - self.step + self.step * self.steps(signers)
    }

    /// How long to wait after a failure, when so many came before it: longer each time, so that the
    /// dead cost little, and never so long that one who is back would miss a step.
    pub fn pause(&self, failed: u32) -> Duration {
        self.pace * 2_u32.pow(failed.min(2))
    }

    /// Steps for signatures: as many as there can be faulty ones, and one more. Among those is an
    /// honest one, who has shown to all what it signed when fewer had.
    fn steps(&self, signers: usize) -> u32 {
        u32::try_from(signers).unwrap_or(u32::MAX).min(u32::from(self.faults) + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_phase_has_room_and_the_sum_fits(seconds in 1..100_000_u64, faults in 0..40_u8) {
            let total = Duration::from_secs(seconds);
            let s = Schedule::new(total, faults);
            let times = [
                Duration::ZERO, s.offers, s.offered, s.grouped, s.reduced, s.claims, s.decided, s.end,
            ];
            prop_assert!(times.windows(2).all(|pair| pair[0] + s.step <= pair[1]), "{:?}", s);
            prop_assert!(s.end <= total && s.end > total * 99 / 100);
            // What the last honest signature lets in is in before the decision.
            let all = usize::MAX;
            prop_assert!(s.offer(all) + s.step <= s.offered);
            prop_assert!(s.unanimity(s.offers, all) <= s.offered);
            prop_assert!(s.unanimity(s.claims, all) <= s.decided);
            prop_assert!(s.slice(all) + s.step <= s.claims, "time to audit what came last");
            prop_assert!(s.claim(all) <= s.decided);
            // One's own, of which nobody else knows, reaches all while it counts from its author.
            prop_assert!(s.offer(0) + s.step <= s.offer(1) && s.claim(0) + s.step <= s.claim(1));
            prop_assert!(s.slice(0) + s.transfer <= s.slice(1) && s.slice(1) == s.reduced);
            // A slice has as many owners as there can be dead ones, and one more.
            prop_assert!(s.grouped + s.attempt * (u32::from(faults) + 1) + s.transfer <= s.reduced);
            prop_assert!(s.gather < s.attempt);
            // Each of the faulty ones may stall a fetch before an honest one answers.
            prop_assert!(s.fetch * (u32::from(faults) + 1) < s.transfer);
            prop_assert!(s.pace * 2 < s.step && s.pace > Duration::ZERO);
        }
    }
}
