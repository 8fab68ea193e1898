//! Phases and schedules.

use domain::{Phase, Schedule};

use super::InvalidField;
use crate::scheduler::v1 as wire;

impl From<Phase> for wire::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Distribute => Self::Distribute,
            Phase::Train => Self::Train,
            Phase::MinerCommit1 => Self::MinerCommit1,
            Phase::MinerCommit2 => Self::MinerCommit2,
            Phase::Submission => Self::Submission,
            Phase::Validate => Self::Validate,
            Phase::Merge => Self::Merge,
            Phase::ValidatorCommit1 => Self::ValidatorCommit1,
            Phase::ValidatorCommit2 => Self::ValidatorCommit2,
        }
    }
}

impl TryFrom<wire::Phase> for Phase {
    type Error = InvalidField;

    fn try_from(phase: wire::Phase) -> Result<Self, InvalidField> {
        match phase {
            wire::Phase::Unspecified => Err(InvalidField::new("phase", "unspecified")),
            wire::Phase::Distribute => Ok(Self::Distribute),
            wire::Phase::Train => Ok(Self::Train),
            wire::Phase::MinerCommit1 => Ok(Self::MinerCommit1),
            wire::Phase::MinerCommit2 => Ok(Self::MinerCommit2),
            wire::Phase::Submission => Ok(Self::Submission),
            wire::Phase::Validate => Ok(Self::Validate),
            wire::Phase::Merge => Ok(Self::Merge),
            wire::Phase::ValidatorCommit1 => Ok(Self::ValidatorCommit1),
            wire::Phase::ValidatorCommit2 => Ok(Self::ValidatorCommit2),
        }
    }
}

impl From<Schedule> for wire::Schedule {
    fn from(schedule: Schedule) -> Self {
        Self { lengths: schedule.lengths().to_vec() }
    }
}

impl TryFrom<wire::Schedule> for Schedule {
    type Error = InvalidField;

    fn try_from(schedule: wire::Schedule) -> Result<Self, InvalidField> {
        let lengths = schedule.lengths.as_slice();
        Self::try_from(lengths).map_err(|error| InvalidField::new("lengths", error))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_phase_crosses_the_wire_and_an_unspecified_one_does_not() {
        for phase in Phase::ALL {
            assert_eq!(Phase::try_from(wire::Phase::from(phase)), Ok(phase));
        }
        let error = Phase::try_from(wire::Phase::Unspecified).unwrap_err();
        assert_eq!(error.to_string(), "invalid field `phase`: unspecified");
    }

    #[test]
    fn a_schedule_of_eight_phases_is_refused_and_so_is_an_empty_phase() {
        let error = Schedule::try_from(wire::Schedule { lengths: vec![1; 8] }).unwrap_err();
        assert_eq!(error.to_string(), "invalid field `lengths`: 8 lengths instead of 9");
        let error = Schedule::try_from(wire::Schedule { lengths: vec![0; 9] }).unwrap_err();
        assert!(error.to_string().contains("Distribute"), "{error}");
    }

    proptest! {
        #[test]
        fn every_schedule_crosses_the_wire(lengths in prop::array::uniform9(1u64..1_000_000)) {
            let schedule = Schedule::new(lengths).unwrap();
            prop_assert_eq!(Schedule::try_from(wire::Schedule::from(schedule)), Ok(schedule));
        }
    }
}
