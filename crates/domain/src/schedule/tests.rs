use proptest::prelude::*;

use super::*;

fn schedules() -> impl Strategy<Value = Schedule> {
    prop::array::uniform9(1u64..400).prop_map(|lengths| Schedule::new(lengths).unwrap())
}

#[test]
fn the_default_cycle_has_472_blocks_and_opens_uploads_at_block_336() {
    let schedule = Schedule::default();
    assert_eq!(schedule.cycle_length(), 472);
    assert_eq!(schedule.round_id(CycleIndex(0)), RoundId(336));
    assert_eq!(schedule.round_id(CycleIndex(2)), RoundId(2 * 472 + 336));
    assert_eq!(schedule.cycle_of_round(RoundId(2 * 472 + 336)), CycleIndex(2));
}

#[test]
fn a_phase_without_blocks_is_refused_by_name() {
    let err = Schedule::new([20, 300, 8, 8, 0, 50, 50, 8, 8]).unwrap_err();
    assert_eq!(err, ScheduleError::Empty { phase: Phase::Submission });
    assert!(serde_json::from_str::<Schedule>("[1,1,1,1,0,1,1,1,1]").is_err());
}

#[test]
fn the_last_blocks_that_a_number_can_hold_have_a_phase() {
    let schedule = Schedule::new([u64::from(u32::MAX); 9]).unwrap();
    let block = BlockNumber(u64::MAX);
    assert_eq!(schedule.phase_at(block).block, block);
    assert!(schedule.next(block, Phase::Train).start >= block);
    assert!(schedule.previous(block, Phase::Train).start > 0);
}

#[test]
fn an_unknown_phase_is_named() {
    let err = "Rest".parse::<Phase>().unwrap_err();
    assert_eq!(err.to_string(), "`Rest` is not the name of a phase");
}

proptest! {
    #[test]
    fn each_block_is_in_exactly_one_phase(schedule in schedules(), block in 0u64..1_000_000) {
        let cycle = schedule.cycle_of(BlockNumber(block));
        let holding: Vec<Phase> = Phase::ALL
            .into_iter()
            .filter(|phase| {
                let (first, last) = schedule.phase_range(cycle, *phase);
                (first.0..=last.0).contains(&block)
            })
            .collect();
        prop_assert_eq!(holding, vec![schedule.phase_of(BlockNumber(block))]);
    }

    #[test]
    fn phases_follow_each_other_without_a_gap(schedule in schedules(), cycle in 0u64..1000) {
        for (phase, following) in Phase::ALL.iter().zip(&Phase::ALL[1..]) {
            let (_, last) = schedule.phase_range(CycleIndex(cycle), *phase);
            let (first, _) = schedule.phase_range(CycleIndex(cycle), *following);
            prop_assert_eq!(last.0 + 1, first.0);
        }
        let (_, last) = schedule.phase_range(CycleIndex(cycle), Phase::ValidatorCommit2);
        prop_assert_eq!(BlockNumber(last.0 + 1), schedule.cycle_start(CycleIndex(cycle + 1)));
    }

    #[test]
    fn the_next_and_the_previous_occurrence_enclose_the_block(
        schedule in schedules(),
        block in 0u64..1_000_000,
    ) {
        for phase in Phase::ALL {
            let next = schedule.next(BlockNumber(block), phase);
            let previous = schedule.previous(BlockNumber(block), phase);
            prop_assert_eq!(next.start.0, block + next.blocks_until);
            prop_assert_eq!(schedule.phase_at(next.start).blocks_into_phase, 0);
            prop_assert_eq!(schedule.phase_of(next.start), phase);
            prop_assert!(previous.start < signed(block));
            let apart = signed(next.start.0) - previous.start;
            prop_assert_eq!(apart, signed(schedule.cycle_length()));
            prop_assert_eq!(previous.end - previous.start, signed(schedule.length(phase)) - 1);
        }
    }

    #[test]
    fn a_schedule_survives_json(schedule in schedules()) {
        let json = serde_json::to_string(&schedule).unwrap();
        prop_assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule);
    }
}
