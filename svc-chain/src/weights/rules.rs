//! The chain's own checks of weights, in the chain's own order, made before anything is sent.

use std::collections::HashSet;

use super::Row;
use crate::failure::Failure;

/// What the chain's checks look at, as of one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Number of neurons.
    pub(crate) neurons: u16,
    /// Whether the subnet has the mechanism.
    pub(crate) mechanism: bool,
    /// The sender's slot; `None` when it is not registered.
    pub(crate) uid: Option<u16>,
    /// The sender's stake in rao, and what setting weights takes.
    pub(crate) stake: u64,
    pub(crate) stake_threshold: u64,
    /// `WeightsVersionKey`; 0 takes any.
    pub(crate) version: u64,
    /// Block of the sender's last update; 0 is never.
    pub(crate) last_update: u64,
    /// Blocks between two updates.
    pub(crate) rate_limit: u64,
    /// Whether the sender has a validator permit.
    pub(crate) permit: bool,
    /// Least number of weights.
    pub(crate) least: u16,
    /// Largest share of one weight, in parts of 65535.
    pub(crate) max_weight: u16,
}

impl Rules {
    /// What the chain would say to `row` at `block`, sent with `version_key`.
    ///
    /// # Errors
    ///
    /// The first check that fails, in the chain's order.
    pub(crate) fn check(&self, row: &Row, version_key: u64, block: u64) -> Result<(), Failure> {
        if !self.mechanism {
            return Err(Failure::NoSuchSubnet);
        }
        if row.len() > usize::from(self.neurons) {
            return Err(Failure::TooManyWeights);
        }
        let Some(uid) = self.uid else { return Err(Failure::NotRegistered) };
        if self.stake < self.stake_threshold {
            return Err(Failure::StakeTooLow);
        }
        if self.version != 0 && version_key < self.version {
            return Err(Failure::VersionKey);
        }
        if self.allowed_at().is_some_and(|allowed| block < allowed) {
            return Err(Failure::RateLimited);
        }
        // A neuron may always give all its weight to itself.
        let to_itself = matches!(row[..], [(only, _)] if only == uid);
        if !to_itself && !self.permit {
            return Err(Failure::NoPermit);
        }
        let distinct: HashSet<u16> = row.iter().map(|(uid, _)| *uid).collect();
        if distinct.len() < row.len() {
            return Err(Failure::DuplicateUids);
        }
        if row.iter().any(|(uid, _)| *uid >= self.neurons) {
            return Err(Failure::NoSuchUid);
        }
        if !to_itself && row.len() < usize::from(self.least) {
            return Err(Failure::TooFewWeights);
        }
        if !to_itself && exceeds(row, self.max_weight) {
            return Err(Failure::MaxWeight);
        }
        Ok(())
    }

    /// The block at which the rate limit allows the next update; `None` where it does not count.
    pub(crate) fn allowed_at(&self) -> Option<u64> {
        (self.last_update > 0).then_some(self.last_update.saturating_add(self.rate_limit))
    }
}

/// Whether the largest weight's share of the sum is above `limit` parts of 65535.
fn exceeds(row: &Row, limit: u16) -> bool {
    let sum: u64 = row.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let largest = row.iter().map(|(_, weight)| u64::from(*weight)).max().unwrap_or(0);
    limit < u16::MAX && largest * u64::from(u16::MAX) > u64::from(limit) * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Rules {
        Rules {
            neurons: 8,
            mechanism: true,
            uid: Some(3),
            stake: 1000,
            stake_threshold: 1000,
            version: 7,
            last_update: 100,
            rate_limit: 50,
            permit: true,
            least: 2,
            max_weight: 40_000,
        }
    }

    /// A change of the rules that makes them refuse.
    type Change = fn(&mut Rules);

    #[test]
    fn each_rule_refuses_by_its_name() {
        let row = vec![(1, 65535), (2, 65535)];
        assert_eq!(fine().check(&row, 7, 150), Ok(()));
        let cases: [(Change, Failure); 8] = [
            (|r| r.mechanism = false, Failure::NoSuchSubnet),
            (|r| r.neurons = 1, Failure::TooManyWeights),
            (|r| r.uid = None, Failure::NotRegistered),
            (|r| r.stake = 999, Failure::StakeTooLow),
            (|r| r.version = 8, Failure::VersionKey),
            (|r| r.last_update = 101, Failure::RateLimited),
            (|r| r.permit = false, Failure::NoPermit),
            (|r| r.least = 3, Failure::TooFewWeights),
        ];
        for (change, failure) in cases {
            let mut rules = fine();
            change(&mut rules);
            assert_eq!(rules.check(&row, 7, 150), Err(failure));
        }
        let check = |row: Row| fine().check(&row, 7, 150);
        assert_eq!(check(vec![(1, 5), (1, 5)]), Err(Failure::DuplicateUids));
        assert_eq!(check(vec![(1, 5), (8, 5)]), Err(Failure::NoSuchUid));
        assert_eq!(check(vec![(1, 65535), (2, 1)]), Err(Failure::MaxWeight));
    }

    #[test]
    fn the_first_rule_in_the_chains_order_is_the_one_that_is_told() {
        let rules = Rules { stake: 0, permit: false, last_update: 149, ..fine() };
        assert_eq!(rules.check(&vec![(9, 1)], 0, 150), Err(Failure::StakeTooLow));
    }

    #[test]
    fn a_neuron_may_give_all_its_weight_to_itself_without_permit() {
        let rules = Rules { permit: false, ..fine() };
        assert_eq!(rules.check(&vec![(3, 65535)], 7, 150), Ok(()));
        assert_eq!(rules.check(&vec![(2, 65535)], 7, 150), Err(Failure::NoPermit));
    }

    #[test]
    fn the_first_update_waits_for_nothing_and_version_0_takes_any_key() {
        let rules = Rules { last_update: 0, version: 0, ..fine() };
        assert_eq!(rules.check(&vec![(1, 9), (2, 9)], 0, 1), Ok(()));
        assert_eq!(rules.allowed_at(), None);
        assert_eq!(fine().allowed_at(), Some(150));
    }
}
