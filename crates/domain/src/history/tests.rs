use proptest::prelude::*;

use super::*;

fn hotkey(byte: u8) -> Hotkey {
    Hotkey::from_public_key([byte; 32])
}

#[test]
fn only_the_last_eight_rounds_count() {
    let mut history = History::default();
    for round in 0..10 {
        history.record(Uid(3), &hotkey(1), RoundId(round), round as f64);
    }
    let miner = history.get(Uid(3)).unwrap();
    assert_eq!(
        miner.records().map(|record| record.round.0).collect::<Vec<_>>(),
        [2, 3, 4, 5, 6, 7, 8, 9]
    );
    assert_eq!(miner.average(), 5.5);
    assert_eq!(miner.last_round(), Some(RoundId(9)));
}

#[test]
fn a_changed_hotkey_inherits_nothing() {
    let mut history = History::default();
    history.record(Uid(3), &hotkey(1), RoundId(1), 2.25);
    history.record(Uid(3), &hotkey(2), RoundId(2), 1.0);
    let miner = history.get(Uid(3)).unwrap();
    assert_eq!((miner.hotkey(), miner.average()), (&hotkey(2), 1.0));
    assert!(!miner.has(RoundId(1)));
}

#[test]
fn observing_another_hotkey_forgets_and_observing_the_same_does_not() {
    let mut history = History::default();
    history.record(Uid(3), &hotkey(1), RoundId(1), 2.25);
    history.observe(Uid(3), &hotkey(1));
    assert!(history.get(Uid(3)).is_some());
    history.observe(Uid(3), &hotkey(2));
    assert_eq!(history.get(Uid(3)), None);
}

proptest! {
    #[test]
    fn a_replay_in_any_order_changes_nothing(
        rounds in prop::collection::vec((0u64..8, 0.0..3.0), 1..8),
    ) {
        let mut once = History::default();
        let unique: BTreeMap<u64, f64> = rounds.into_iter().collect();
        for (round, score) in &unique {
            once.record(Uid(0), &hotkey(1), RoundId(*round), *score);
        }
        let mut again = once.clone();
        for (round, score) in unique.iter().rev() {
            again.record(Uid(0), &hotkey(1), RoundId(*round), *score);
        }
        prop_assert_eq!(&again, &once);
        let json = serde_json::to_string(&once).unwrap();
        prop_assert_eq!(serde_json::from_str::<History>(&json).unwrap(), once);
    }
}
