//! When the epochs of a subnet begin, and so when what is committed now can be revealed.
//!
//! Today's runtimes keep the schedule in their state: an epoch begins a tempo after the last one,
//! or earlier where somebody asked for it (`PendingEpochAt`). Older runtimes compute it from the
//! block's number alone. Both rules are the chain's own.

use std::cmp::Ordering;

/// Longest tempo that a subnet can have, and most blocks without an epoch, on today's runtimes.
const MAX_TEMPO: u64 = 50_400;

/// The schedule of a subnet's epochs, as it stands at the end of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Epochs {
    /// Kept by the runtime.
    Stateful {
        /// `Tempo`, at least 1.
        tempo: u64,
        /// `LastEpochBlock`.
        last: u64,
        /// `PendingEpochAt`; 0 is none.
        pending: u64,
        /// `SubnetEpochIndex`.
        index: u64,
        /// `BlocksSinceLastStep`.
        since: u64,
    },
    /// Epoch `i` ends at the block `b` where `b + netuid + 1` is a multiple of `tempo + 1`.
    Modulo {
        /// `Tempo`.
        tempo: u64,
        /// The subnet, which shifts the epochs of different subnets against each other.
        netuid: u16,
    },
}

impl Epochs {
    /// The first block at which a commit that lands in `block + 1` can be revealed: the first one
    /// whose epoch is the commit's plus `period`. `block` is the block whose schedule this is.
    ///
    /// `None` when the chain's own bounds are exceeded: its numbers make no sense.
    pub(crate) fn first_reveal(self, block: u64, period: u64) -> Option<u64> {
        match self {
            Self::Modulo { tempo, netuid } => {
                let (length, shift) = (tempo + 1, u64::from(netuid) + 1);
                let epoch = (block + 1 + shift) / length;
                (epoch + period).checked_mul(length)?.checked_sub(shift)
            }
            Self::Stateful { tempo, .. } => {
                let tempo = tempo.max(1);
                let commit = block + 1;
                let first = if self.begins_at(commit) { commit } else { self.next(commit)? };
                // An epoch that begins at the commit's own block counts as the commit's.
                let later = if first == commit { period } else { period.checked_sub(1)? };
                first.checked_add(tempo.checked_mul(later)?)
            }
        }
    }

    /// The blocks in which a commit of epoch `commit` can be revealed, seen from `block`, whose
    /// schedule this is: the first one, or 0 where it is behind, and the last.
    ///
    /// `None` where epochs are not counted by the runtime, or its numbers make no sense.
    pub(crate) fn window(self, commit: u64, period: u64, block: u64) -> Option<(u64, u64)> {
        let Self::Stateful { tempo, index, .. } = self else { return None };
        let next = block.checked_add(1)?;
        let target = commit.checked_add(period)?;
        let now = index.checked_add(u64::from(self.begins_at(next)))?;
        match target.cmp(&now) {
            Ordering::Less => Some((0, block.saturating_sub(1))),
            Ordering::Equal if self.begins_at(next) => {
                Some((next, next.checked_add(tempo.max(1))?.checked_sub(1)?))
            }
            Ordering::Equal => Some((0, self.next(next)?.checked_sub(1)?)),
            Ordering::Greater => {
                let first = if self.begins_at(next) {
                    next.checked_add(tempo.max(1))?
                } else {
                    self.next(next)?
                };
                let later = (target - now - 1).checked_mul(tempo.max(1))?;
                let opens = first.checked_add(later)?;
                Some((opens, opens.checked_add(tempo.max(1) - 1)?))
            }
        }
    }

    /// Blocks of one epoch: as long as what can be revealed stays so.
    pub(crate) fn length(self) -> u64 {
        match self {
            Self::Stateful { tempo, .. } => tempo.max(1),
            Self::Modulo { tempo, .. } => tempo + 1,
        }
    }

    /// Whether an epoch begins at `block`, if none began after the block whose schedule this is.
    fn begins_at(self, block: u64) -> bool {
        match self {
            Self::Stateful { tempo, last, pending, since, .. } => {
                (pending > 0 && block >= pending)
                    || since > MAX_TEMPO
                    || block.saturating_sub(last) >= tempo.max(1)
            }
            Self::Modulo { tempo, netuid } => {
                (block + u64::from(netuid) + 1).is_multiple_of(tempo + 1)
            }
        }
    }

    /// The first block after `block` at which an epoch begins.
    fn next(self, block: u64) -> Option<u64> {
        match self {
            Self::Stateful { tempo, last, pending, .. } => {
                let by_tempo = last.checked_add(tempo.max(1))?;
                let due = if pending > 0 { by_tempo.min(pending) } else { by_tempo };
                Some(due.max(block + 1))
            }
            Self::Modulo { .. } => (block + 1..=block + MAX_TEMPO).find(|b| self.begins_at(*b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The chain, block by block: what `run_coinbase` does to the schedule, and which epoch an
    /// extrinsic or a reveal of a block sees before it.
    struct Simulated {
        tempo: u64,
        last: u64,
        pending: u64,
        index: u64,
        since: u64,
    }

    impl Simulated {
        fn due(&self, block: u64) -> bool {
            (self.pending > 0 && block >= self.pending)
                || self.since > MAX_TEMPO
                || block.saturating_sub(self.last) >= self.tempo
        }

        fn seen_at(&self, block: u64) -> u64 {
            self.index + u64::from(self.due(block))
        }

        fn step(&mut self, block: u64) {
            self.since += 1;
            if self.due(block) {
                (self.last, self.pending, self.since) = (block, 0, 0);
                self.index += 1;
            }
        }
    }

    fn simulate(mut chain: Simulated, block: u64, period: u64) -> u64 {
        let wanted = chain.seen_at(block + 1) + period;
        let mut at = block + 1;
        while chain.seen_at(at) != wanted {
            chain.step(at);
            at += 1;
        }
        at
    }

    proptest! {
        #[test]
        fn the_first_reveal_is_where_the_chain_block_by_block_says(
            tempo in 1_u64..400,
            age in 0_u64..400,
            pending_in in proptest::option::of(0_u64..50),
            block in 1000_u64..100_000,
            period in 1_u64..4,
        ) {
            let last = block - age.min(tempo - 1);
            let pending = pending_in.map_or(0, |blocks| block + 1 + blocks);
            let (index, since) = (7, block - last);
            let epochs = Epochs::Stateful { tempo, last, pending, index, since };
            let chain = Simulated { tempo, last, pending, index, since };
            prop_assert_eq!(epochs.first_reveal(block, period), Some(simulate(chain, block, period)));
        }

        #[test]
        fn by_the_old_rule_the_first_reveal_begins_the_epoch_that_is_a_period_later(
            tempo in 1_u64..400, netuid in 0_u16..1000, block in 0_u64..100_000, period in 1_u64..4,
        ) {
            let epochs = Epochs::Modulo { tempo, netuid };
            let epoch = |b: u64| (b + u64::from(netuid) + 1) / (tempo + 1);
            let first = epochs.first_reveal(block, period).unwrap();
            prop_assert_eq!(epoch(first), epoch(block + 1) + period);
            prop_assert_eq!(epoch(first - 1) + 1, epoch(first));
        }

        #[test]
        fn the_window_of_a_commit_is_where_the_chain_block_by_block_says(
            tempo in 2_u64..60,
            age in 0_u64..60,
            pending_in in proptest::option::of(0_u64..50),
            block in 1000_u64..100_000,
            ahead in 0_u64..3,
        ) {
            let last = block - age.min(tempo - 1);
            let pending = pending_in.map_or(0, |blocks| block + 1 + blocks);
            let (index, since) = (7, block - last);
            let epochs = Epochs::Stateful { tempo, last, pending, index, since };
            let mut chain = Simulated { tempo, last, pending, index, since };
            let commit = chain.seen_at(block + 1) + ahead - 1;
            let (opens, closes) = epochs.window(commit, 1, block).unwrap();
            for at in block + 1..block + 200 {
                let can = (opens..=closes).contains(&at);
                prop_assert_eq!(chain.seen_at(at) == commit + 1, can, "block {}", at);
                chain.step(at);
            }
        }

        #[test]
        fn numbers_that_make_no_sense_are_no_block_and_no_panic(
            tempo: u64, last: u64, pending: u64, block in 0_u64..u64::MAX / 4, period: u64,
        ) {
            let epochs = Epochs::Stateful { tempo, last, pending, index: 0, since: 0 };
            let _ = epochs.first_reveal(block, period);
            let _ = epochs.window(last, period, block);
            let modulo = Epochs::Modulo { tempo: tempo / 4, netuid: 102 };
            let _ = modulo.first_reveal(block, period / 4);
        }
    }
}
