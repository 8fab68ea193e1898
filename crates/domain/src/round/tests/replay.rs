//! Whatever comes in whatever order: replays, crashes, rejections.

use proptest::prelude::*;

use super::*;

fn any_job() -> impl Strategy<Value = String> {
    let score = |k: &u8| JobKind::Score(key(*k)).id();
    let scores = MINERS.iter().map(score);
    prop::sample::select(
        scores
            .chain([JobKind::Baseline, JobKind::HeldOut].map(|kind| kind.id()))
            .collect::<Vec<_>>(),
    )
}

/// Events that could come in any order from outside.
pub(super) fn any_event() -> impl Strategy<Value = Event> {
    let miner = prop::sample::select(MINERS.to_vec());
    prop_oneof![
        4 => (0u64..90).prop_map(block),
        1 => (0u64..90, 0u64..90).prop_map(|(ancestor, abandoned)| Event::Reorganised {
            ancestor: BlockNumber(ancestor),
            ancestor_hash: BlockHash([ancestor as u8; 32]),
            abandoned: BlockNumber(abandoned),
        }),
        1 => (prop::sample::select(DegradationKind::ALL), "[ab]", 0u64..90).prop_map(
            |(kind, detail, block)| Event::Degraded { kind, detail, block: BlockNumber(block) }
        ),
        1 => "[ab]".prop_map(|why| Event::Held { round: id(), why }),
        2 => (0u64..3).prop_map(|branch| Event::Frozen {
            round: id(),
            branch,
            inputs: Box::new(inputs()),
        }),
        2 => miner.clone().prop_map(stored),
        1 => miner.prop_map(|k| Event::Refused {
            round: id(),
            hotkey: key(k),
            cause: Cause { reason: "non_finite".to_owned(), detail: String::new() },
        }),
        3 => "[ab]".prop_map(|worker| Event::Lease { worker }),
        1 => (any_job(), 1u64..6).prop_map(|(job, fence)| Event::Renew { job, fence }),
        1 => (any_job(), 1u64..6, prop::sample::select(vec!["data_unavailable", "timeout"])).prop_map(
            |(job, fence, reason)| {
                let (reason, detail) = (reason.to_owned(), String::new());
                Event::Finish { job, fence, result: Finished::Failed(Cause { reason, detail }) }
            }
        ),
        1 => (any_job(), 1u64..6, "[dx]", any::<bool>()).prop_map(
            |(job, fence, batches_digest, out_of_reach)| {
                let (baseline, losses) = (vec![5.0; 2], vec![4.0; 1 + usize::from(!out_of_reach)]);
                let (held_out, sources_digest) = (vec![5.0], batches_digest.clone());
                let result = Finished::Measured(Measured {
                    baseline, losses, held_out, batches_digest, sources_digest, out_of_reach,
                    ..Measured::default()
                });
                Event::Finish { job, fence, result }
            }
        ),
        3 => (prop::sample::select(vec!["baseline".to_owned(), "held_out".to_owned()]), 1u64..6)
            .prop_map(|(job, fence)| Event::Finish { job, fence, result: measured(5.0, 5.0) }),
        3 => (prop::sample::select(MINERS.to_vec()), 1u64..6, 1.0f64..6.0).prop_map(
            |(k, fence, loss)| Event::Finish {
                job: format!("score/{}", key(k)),
                fence,
                result: measured(5.0, loss),
            }
        ),
        1 => Just(()).prop_map(|()| merged()),
        2 => (0u64..3, 0u64..120, prop::sample::select(vec![0u8, 7, 9])).prop_map(
            |(cycle, asked, hash)| Event::Revealed {
                cycle: crate::CycleIndex(cycle),
                asked,
                reveals: Box::new(reveals(hash)),
            }
        ),
        1 => (0u64..3, prop::sample::select(vec![7u8, 9])).prop_map(|(cycle, hash)| {
            let (cycle, model) = (crate::CycleIndex(cycle), model(24, hash));
            Event::Resynced { cycle, model, blamed: vec![] }
        }),
        1 => (0u64..3, "[ab]").prop_map(|(cycle, reason)| {
            let cause = Cause { reason, detail: String::new() };
            Event::ResyncFailed { cycle: crate::CycleIndex(cycle), cause, blamed: vec![] }
        }),
        1 => Just(Event::ModelFound { model: model(3, 3) }),
        1 => Just(Event::HashSigned { round: id(), signature: "s".repeat(86) }),
        2 => prop::sample::select(vec![
            WriteKind::Seed, WriteKind::SignedHash, WriteKind::ModelHash, WriteKind::Weights,
        ]).prop_map(|kind| Event::Written {
            round: id(),
            kind,
            status: WriteStatus { state: WriteState::Done, ..WriteStatus::pending() },
        }),
    ]
}

proptest! {
    #[test]
    fn a_replay_of_the_same_events_gives_the_same_state(
        events in prop::collection::vec(any_event(), 0..120)
    ) {
        let play = || {
            let mut state = fresh();
            for event in &events {
                let _ = apply(&mut state, event.clone(), &policy());
            }
            state
        };
        prop_assert_eq!(play(), play());
    }

    #[test]
    fn a_state_saved_and_loaded_between_any_two_events_goes_on_as_if_nothing_had_happened(
        events in prop::collection::vec(any_event(), 0..80), crash in 0usize..80
    ) {
        let (mut whole, mut crashed) = (fresh(), fresh());
        for (i, event) in events.into_iter().enumerate() {
            if i == crash {
                let saved = serde_json::to_vec(&crashed).unwrap();
                crashed = serde_json::from_slice(&saved).unwrap();
            }
            let a = apply(&mut whole, event.clone(), &policy());
            let b = apply(&mut crashed, event, &policy());
            prop_assert_eq!(a, b);
        }
        prop_assert_eq!(whole, crashed);
    }

    #[test]
    fn whatever_happens_weights_are_none_or_sum_to_one_and_a_rejection_changes_nothing(
        events in prop::collection::vec(any_event(), 0..120)
    ) {
        let mut state = fresh();
        for event in events {
            let before = state.clone();
            if apply(&mut state, event, &policy()).is_err() {
                prop_assert_eq!(&before, &state);
            }
            let Some(round) = &state.round else { continue };
            prop_assert!(round.weights.iter().all(|(_, w)| w.is_finite() && *w >= 0.0));
            let sum: f64 = round.weights.iter().map(|(_, w)| w).sum();
            prop_assert!(round.weights.is_empty() || (sum - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn whatever_happens_no_worker_holds_three_jobs_and_all_verdicts_are_on_the_same_batches(
        events in prop::collection::vec(any_event(), 0..160)
    ) {
        let mut policy = policy();
        policy.early_stop = Some(EarlyStop { confidence: 0.9, minimum_batches: 2 });
        let mut state = fresh();
        for event in events {
            let _ = apply(&mut state, event, &policy);
            let Some(round) = &state.round else { continue };
            for worker in ["a", "b"] {
                let held = round.jobs.values().filter(|job| matches!(
                    &job.state, JobState::Leased { worker: holder, .. } if holder == worker
                ));
                prop_assert!(held.count() <= 2);
            }
            for miner in round.miners.values() {
                match &miner.verdict {
                    Some(Verdict::Measured { batches_digest, .. }) => {
                        prop_assert_eq!(Some(batches_digest), round.batches_digest.as_ref());
                    }
                    // Nobody is ever on the third rank here.
                    Some(Verdict::OutOfReach { .. }) => prop_assert!(false, "stopped for nobody"),
                    Some(Verdict::Invalid(_)) | None => {}
                }
            }
        }
    }

    #[test]
    fn a_block_seen_twice_or_late_does_nothing(late in 1u64..40) {
        let mut state = frozen();
        blocks(&mut state, late.max(first(Phase::Submission)));
        let before = state.clone();
        let late = late.min(state.block.0);
        prop_assert_eq!(run(&mut state, block(late)), Reply::Ignored);
        prop_assert_eq!(before, state);
    }
}
