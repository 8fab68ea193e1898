//! The cycle: which phase a block belongs to, and when the others come (protocol, section 2).
//!
//! Everything here follows from the block number and nine lengths. Serialised, the values are the
//! JSON of the phase API that miners poll.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};

use crate::{BlockNumber, CycleIndex, RoundId};

/// One of the nine consecutive block ranges of a cycle, in the order in which they come.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum Phase {
    /// The slices of the global model are served.
    #[default]
    Distribute,
    /// Miners train; validators finish the last round.
    Train,
    /// Miners commit the signature of their model hash, validators their seed.
    MinerCommit1,
    /// Miners reveal the model hash.
    MinerCommit2,
    /// Uploads are taken; the round is frozen at the first block.
    Submission,
    /// Evaluation goes on; scores are final at the end.
    Validate,
    /// Aggregation, averaging among validators, outer step.
    Merge,
    /// Validators commit the signature of the new model hash.
    ValidatorCommit1,
    /// Validators reveal the new hash and set weights.
    ValidatorCommit2,
}

impl Phase {
    /// All of them, in the order of a cycle.
    pub const ALL: [Self; 9] = [
        Self::Distribute,
        Self::Train,
        Self::MinerCommit1,
        Self::MinerCommit2,
        Self::Submission,
        Self::Validate,
        Self::Merge,
        Self::ValidatorCommit1,
        Self::ValidatorCommit2,
    ];

    /// Its place in the cycle, 0 to 8.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Its name in the protocol, for example `MinerCommit1`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Distribute => "Distribute",
            Self::Train => "Train",
            Self::MinerCommit1 => "MinerCommit1",
            Self::MinerCommit2 => "MinerCommit2",
            Self::Submission => "Submission",
            Self::Validate => "Validate",
            Self::Merge => "Merge",
            Self::ValidatorCommit1 => "ValidatorCommit1",
            Self::ValidatorCommit2 => "ValidatorCommit2",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Phase {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        Self::ALL
            .into_iter()
            .find(|phase| phase.name() == text)
            .ok_or_else(|| ScheduleError::UnknownPhase { name: text.chars().take(32).collect() })
    }
}

/// Why a schedule or the name of a phase is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// A phase without blocks would never come.
    #[error("phase {phase} has no blocks: every length must be at least 1")]
    Empty { phase: Phase },
    /// A cycle must be short enough for block arithmetic to stay exact.
    #[error("phase {phase} has {length} blocks: at most {max} are taken")]
    TooLong { phase: Phase, length: u64, max: u64 },
    /// There are nine phases.
    #[error("{found} lengths instead of 9")]
    Count { found: usize },
    /// Not one of the nine.
    #[error("`{name}` is not the name of a phase")]
    UnknownPhase { name: String },
}

/// The lengths of the nine phases, each at least 1 block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "[u64; 9]", into = "[u64; 9]")]
pub struct Schedule {
    lengths: [u64; 9],
}

impl Default for Schedule {
    /// The schedule of the live subnet: 472 blocks.
    fn default() -> Self {
        Self { lengths: [20, 300, 8, 8, 20, 50, 50, 8, 8] }
    }
}

impl TryFrom<[u64; 9]> for Schedule {
    type Error = ScheduleError;

    fn try_from(lengths: [u64; 9]) -> Result<Self, ScheduleError> {
        Self::new(lengths)
    }
}

impl TryFrom<&[u64]> for Schedule {
    type Error = ScheduleError;

    fn try_from(lengths: &[u64]) -> Result<Self, ScheduleError> {
        let nine: [u64; 9] =
            lengths.try_into().map_err(|_| ScheduleError::Count { found: lengths.len() })?;
        Self::new(nine)
    }
}

impl From<Schedule> for [u64; 9] {
    fn from(schedule: Schedule) -> Self {
        schedule.lengths
    }
}

/// Longest phase that is taken, in blocks: centuries at 12 seconds.
const MAX_LENGTH: u64 = u32::MAX as u64;

impl Schedule {
    /// A schedule of these lengths, in the order of [`Phase::ALL`].
    ///
    /// # Errors
    /// When a length is 0 or absurd.
    pub fn new(lengths: [u64; 9]) -> Result<Self, ScheduleError> {
        for (phase, length) in Phase::ALL.into_iter().zip(lengths) {
            if length == 0 {
                return Err(ScheduleError::Empty { phase });
            }
            if length > MAX_LENGTH {
                return Err(ScheduleError::TooLong { phase, length, max: MAX_LENGTH });
            }
        }
        Ok(Self { lengths })
    }

    /// Lengths in blocks, in the order of [`Phase::ALL`].
    pub fn lengths(&self) -> [u64; 9] {
        self.lengths
    }

    /// Length of one phase, in blocks.
    pub fn length(&self, phase: Phase) -> u64 {
        self.lengths[phase.index()]
    }

    /// Length of a cycle, in blocks.
    pub fn cycle_length(&self) -> u64 {
        self.lengths.iter().sum()
    }

    /// Blocks of the cycle that come before `phase`.
    pub fn offset(&self, phase: Phase) -> u64 {
        self.lengths[..phase.index()].iter().sum()
    }

    /// The cycle that `block` belongs to.
    pub fn cycle_of(&self, block: BlockNumber) -> CycleIndex {
        CycleIndex(block.0 / self.cycle_length())
    }

    /// First block of a cycle.
    pub fn cycle_start(&self, cycle: CycleIndex) -> BlockNumber {
        BlockNumber(cycle.0.saturating_mul(self.cycle_length()))
    }

    /// First and last block of `phase` in `cycle`.
    pub fn phase_range(&self, cycle: CycleIndex, phase: Phase) -> (BlockNumber, BlockNumber) {
        let first = self.cycle_start(cycle).0.saturating_add(self.offset(phase));
        (BlockNumber(first), BlockNumber(first.saturating_add(self.length(phase) - 1)))
    }

    /// The round of `cycle`: named by the first block of its Submission phase.
    pub fn round_id(&self, cycle: CycleIndex) -> RoundId {
        RoundId(self.phase_range(cycle, Phase::Submission).0.0)
    }

    /// The cycle that a round belongs to.
    pub fn cycle_of_round(&self, round: RoundId) -> CycleIndex {
        self.cycle_of(BlockNumber(round.0))
    }

    /// The phase of `block`.
    pub fn phase_of(&self, block: BlockNumber) -> Phase {
        self.phase_at(block).phase_name
    }

    /// Where `block` stands in its cycle and phase.
    pub fn phase_at(&self, block: BlockNumber) -> PhaseRecord {
        let cycle_length = self.cycle_length();
        let cycle_block_index = block.0 % cycle_length;
        let mut phase_name = Phase::Distribute;
        for phase in Phase::ALL {
            if self.offset(phase) <= cycle_block_index {
                phase_name = phase;
            }
        }
        let cycle_index = self.cycle_of(block);
        let (first, last) = self.phase_range(cycle_index, phase_name);
        PhaseRecord {
            block,
            blocks_into_phase: block.0 - first.0,
            blocks_remaining_in_phase: last.0 - block.0,
            cycle_block_index,
            cycle_index,
            cycle_length,
            phase_end_block: last,
            phase_index: phase_name.index(),
            phase_name,
            phase_start_block: first,
        }
    }

    /// The occurrence of `phase` that starts at `block` or next after it.
    pub fn next(&self, block: BlockNumber, phase: Phase) -> NextOccurrence {
        let cycle = self.cycle_of(block);
        let (mut start, mut end) = self.phase_range(cycle, phase);
        if start < block {
            (start, end) = self.phase_range(CycleIndex(cycle.0.saturating_add(1)), phase);
        }
        NextOccurrence { start, end, blocks_until: start.0.saturating_sub(block.0) }
    }

    /// The next occurrence of every phase: the body of `/blocks_until_next_phase`.
    pub fn until_next(&self, block: BlockNumber) -> PhaseTable<NextOccurrence> {
        PhaseTable(Phase::ALL.map(|phase| self.next(block, phase)))
    }

    /// The latest occurrence of `phase` that started before `block`. One that starts exactly at
    /// `block` counts as the next, not as the latest (`vectors/phases.json`).
    pub fn previous(&self, block: BlockNumber, phase: Phase) -> PreviousOccurrence {
        let cycle = self.cycle_of(block);
        let (first, last) = self.phase_range(cycle, phase);
        let back = if first < block { 0 } else { signed(self.cycle_length()) };
        PreviousOccurrence { start: signed(first.0) - back, end: signed(last.0) - back }
    }

    /// The latest started occurrence of every phase: the body of `/previous_phase_blocks`.
    pub fn previous_all(&self, block: BlockNumber) -> PhaseTable<PreviousOccurrence> {
        PhaseTable(Phase::ALL.map(|phase| self.previous(block, phase)))
    }
}

fn signed(block: u64) -> i64 {
    i64::try_from(block).unwrap_or(i64::MAX)
}

/// Where a block stands: the body of `/get_phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PhaseRecord {
    /// The block itself.
    pub block: BlockNumber,
    /// Blocks of the phase before this one.
    pub blocks_into_phase: u64,
    /// Blocks of the phase after this one.
    pub blocks_remaining_in_phase: u64,
    /// Blocks of the cycle before this one.
    pub cycle_block_index: u64,
    /// Its cycle.
    pub cycle_index: CycleIndex,
    /// Blocks in a cycle.
    pub cycle_length: u64,
    /// Last block of the phase.
    pub phase_end_block: BlockNumber,
    /// Place of the phase in the cycle, 0 to 8.
    pub phase_index: usize,
    /// The phase.
    pub phase_name: Phase,
    /// First block of the phase.
    pub phase_start_block: BlockNumber,
}

/// The occurrence of a phase that comes next; serialised as `[start, end, blocks_until]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "(BlockNumber, BlockNumber, u64)", into = "(BlockNumber, BlockNumber, u64)")]
pub struct NextOccurrence {
    /// First block.
    pub start: BlockNumber,
    /// Last block.
    pub end: BlockNumber,
    /// Blocks from now to the first; 0 when it starts now.
    pub blocks_until: u64,
}

impl From<(BlockNumber, BlockNumber, u64)> for NextOccurrence {
    fn from((start, end, blocks_until): (BlockNumber, BlockNumber, u64)) -> Self {
        Self { start, end, blocks_until }
    }
}

impl From<NextOccurrence> for (BlockNumber, BlockNumber, u64) {
    fn from(next: NextOccurrence) -> Self {
        (next.start, next.end, next.blocks_until)
    }
}

/// The latest occurrence of a phase that started before a block; serialised as `[start, end]`. Before the
/// first cycle ends it can lie before block 0, as the deployed phase API answers too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "(i64, i64)", into = "(i64, i64)")]
pub struct PreviousOccurrence {
    /// First block.
    pub start: i64,
    /// Last block.
    pub end: i64,
}

impl From<(i64, i64)> for PreviousOccurrence {
    fn from((start, end): (i64, i64)) -> Self {
        Self { start, end }
    }
}

impl From<PreviousOccurrence> for (i64, i64) {
    fn from(previous: PreviousOccurrence) -> Self {
        (previous.start, previous.end)
    }
}

/// One value per phase; serialised as an object with the phases' names as keys, ascending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PhaseTable<T>(pub [T; 9]);

impl<T> PhaseTable<T> {
    /// The value of one phase.
    pub fn get(&self, phase: Phase) -> &T {
        &self.0[phase.index()]
    }
}

impl<T: Serialize> Serialize for PhaseTable<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let named: BTreeMap<&str, &T> =
            Phase::ALL.iter().map(|phase| (phase.name(), self.get(*phase))).collect();
        serializer.collect_map(named)
    }
}

#[cfg(test)]
mod tests;
