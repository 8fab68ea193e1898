//! Work for evaluators: who gets how much of it, until when, on which data, and none without a seed.

use super::*;
use crate::Reason;

fn lease_as(state: &mut State, worker: &str) -> Option<JobGrant> {
    match run(state, Event::Lease { worker: worker.to_owned() }) {
        Reply::Granted(grant) => grant.map(|grant| *grant),
        other @ (Reply::Applied | Reply::Ignored | Reply::Renewed(_)) => panic!("{other:?}"),
    }
}

fn failed(reason: &str) -> Finished {
    Finished::Failed(Cause { reason: reason.to_owned(), detail: "why".to_owned() })
}

fn digests(batches: &str, sources: &str) -> Finished {
    let Finished::Measured(measured) = measured(5.0, 4.0) else { unreachable!() };
    let (batches_digest, sources_digest) = (batches.to_owned(), sources.to_owned());
    Finished::Measured(Measured { batches_digest, sources_digest, ..measured })
}

#[test]
fn a_worker_holds_two_jobs_at_most_and_the_baseline_is_not_waited_for() {
    let mut state = frozen();
    for k in [10, 11, 12] {
        run(&mut state, stored(k));
    }
    let (one, two) = (lease_as(&mut state, "a").unwrap(), lease_as(&mut state, "a").unwrap());
    assert_eq!(one.kind, JobKind::Baseline);
    assert!(matches!(two.kind, JobKind::Score(_)));
    assert!(lease_as(&mut state, "a").is_none(), "a hoard");
    assert!(lease_as(&mut state, "b").is_some());
    finish(&mut state, &one, measured(5.0, 5.0));
    assert!(lease_as(&mut state, "a").is_some(), "a place is free again");
}

#[test]
fn both_jobs_of_a_lost_worker_go_to_another_one() {
    let mut state = frozen();
    run(&mut state, stored(10));
    let lost = [lease_as(&mut state, "a").unwrap(), lease_as(&mut state, "a").unwrap()];
    let until = state.block.0 + policy().lease_blocks;
    blocks(&mut state, until);
    let again = [lease_as(&mut state, "b").unwrap(), lease_as(&mut state, "b").unwrap()];
    assert_eq!(lost.map(|grant| grant.id), again.clone().map(|grant| grant.id));
    assert_eq!(again.map(|grant| grant.attempt), [2, 2]);
    assert_eq!(kinds(&state), [DegradationKind::JobRetried; 2]);
}

#[test]
fn a_job_says_how_many_blocks_are_left_for_it() {
    let mut state = frozen();
    run(&mut state, stored(10));
    let now = state.block.0;
    let baseline = lease_as(&mut state, "a").unwrap();
    assert_eq!(baseline.blocks_left, first(Phase::Merge) - now);
    blocks(&mut state, first(Phase::Merge) - 1);
    let score = lease_as(&mut state, "b").into_iter().chain(lease_as(&mut state, "b"));
    let score = score.last().unwrap();
    assert_eq!(score.blocks_left, 1);

    let mut state = evaluated();
    run(&mut state, merged());
    let held_out = lease(&mut state);
    let end = policy().schedule.cycle_length();
    assert_eq!(held_out.blocks_left, end - state.block.0);
}

#[test]
fn a_result_on_other_batches_is_the_workers_failure_and_goes_to_another_one() {
    let mut state = frozen();
    run(&mut state, stored(10));
    let baseline = lease_as(&mut state, "a").unwrap();
    finish(&mut state, &baseline, digests("d", "s"));
    assert_eq!(round(&state).batches_digest.as_deref(), Some("d"));
    assert_eq!(round(&state).sources_digest.as_deref(), Some("s"));
    let score = lease_as(&mut state, "b").unwrap();
    finish(&mut state, &score, digests("other", "s"));
    assert_eq!(miner(&state, 10).verdict, None);
    let told = [DegradationKind::BatchesDiffer, DegradationKind::JobRetried];
    assert_eq!(kinds(&state), told);
    assert!(round(&state).degradations[0].detail.contains("by b"));
    assert!(lease_as(&mut state, "b").is_none(), "it would measure the same again");
    let again = lease_as(&mut state, "c").unwrap();
    // Who does not tell of its sources is believed, who tells of others is not.
    finish(&mut state, &again, digests("d", ""));
    assert!(miner(&state, 10).verdict.is_some());
    assert_eq!(round(&state).sources_digest.as_deref(), Some("s"));
}

#[test]
fn a_result_that_was_not_accepted_does_not_decide_on_the_batches() {
    let mut state = frozen();
    let baseline = lease_as(&mut state, "a").unwrap();
    let event = |result| Event::Finish { job: baseline.id.clone(), fence: baseline.fence, result };
    let nothing = apply(&mut state, event(digests("", "s")), &policy());
    assert!(matches!(nothing, Err(Rejection::BadResult { .. })));
    let Finished::Measured(short) = digests("x", "s") else { unreachable!() };
    let short = Finished::Measured(Measured { baseline: vec![5.0], ..short });
    let short = apply(&mut state, event(short), &policy()).unwrap_err();
    assert!(short.to_string().contains("1 losses of the base model for 2 batches"), "{short}");
    assert_eq!(round(&state).batches_digest, None);
}

#[test]
fn data_that_nobody_has_means_no_round_and_costs_no_miner_anything() {
    let mut state = frozen();
    run(&mut state, stored(10));
    // One is measured before the data goes away: it has nobody to be compared with.
    let baseline = lease_as(&mut state, "a").unwrap();
    let score = lease_as(&mut state, "a").unwrap();
    finish(&mut state, &score, measured(5.0, 4.0));
    finish(&mut state, &baseline, failed("data_unavailable"));
    assert!(lease_as(&mut state, "a").is_none(), "not at once");
    let next = state.block.0 + 1;
    blocks(&mut state, next);
    let again = lease_as(&mut state, "a").unwrap();
    run(&mut state, stored(11));
    finish(&mut state, &again, failed("data_unavailable"));
    assert!(lease_as(&mut state, "a").is_none(), "there is nothing to measure on");
    blocks(&mut state, first(Phase::Merge));
    for k in [10, 11] {
        let miner = miner(&state, k);
        assert_eq!((miner.score, miner.reason), (None, Some(Reason::DataUnavailable)));
        assert!(state.history.get(miner.uid).is_none());
    }
    assert!(round(&state).weights.is_empty());
    assert!(kinds(&state).contains(&DegradationKind::JobFailed));
    assert!(kinds(&state).contains(&DegradationKind::NotEvaluated));
}

#[test]
fn what_a_job_was_given_up_for_is_its_miners_reason_and_never_the_miners_fault() {
    for (told, reason) in [
        ("out_of_memory", Reason::OutOfMemory),
        ("data_unavailable", Reason::DataUnavailable),
        ("non_finite", Reason::EvaluatorError),
        ("a word of its own", Reason::EvaluatorError),
    ] {
        let mut state = frozen();
        run(&mut state, stored(10));
        let baseline = lease(&mut state);
        finish(&mut state, &baseline, measured(5.0, 5.0));
        while round(&state)
            .jobs
            .values()
            .any(|job| !matches!(job.state, JobState::Done | JobState::Failed(_)))
        {
            match lease_as(&mut state, "a") {
                Some(grant) => finish(&mut state, &grant, failed(told)),
                None => {
                    let next = state.block.0 + 1;
                    blocks(&mut state, next);
                }
            }
        }
        blocks(&mut state, first(Phase::Merge));
        assert_eq!((miner(&state, 10).score, miner(&state, 10).reason), (None, Some(reason)));
    }
}

/// A round whose validators published no seed.
fn seedless(policy: &Policy, fallback: bool) -> State {
    let mut state = fresh();
    state.history.record(Uid(2), &key(10), RoundId(0), 2.25);
    if fallback {
        state.last_weights = Weights::from([(Uid(3), 1.0)]);
    }
    blocks(&mut state, first(Phase::MinerCommit1));
    written(&mut state, WriteKind::Seed);
    blocks(&mut state, first(Phase::Submission));
    let mut inputs = inputs();
    inputs.commit_1.retain(|c| ![key(ME), key(OTHER)].contains(&c.hotkey));
    let zero = ValidatorCommitment { seed: Some(0), ..Default::default() };
    let data = zero.to_json().unwrap().into_bytes();
    inputs.commit_1.push(RawCommitment { hotkey: key(OTHER), block: BlockNumber(9), data });
    if fallback {
        inputs.metagraph.neurons[0].last_update = BlockNumber(0);
        inputs.block = BlockNumber(100);
    }
    let event = Event::Frozen { round: id(), branch: 0, inputs: Box::new(inputs) };
    apply(&mut state, event, policy).unwrap();
    state
}

#[test]
fn without_a_seed_there_is_no_round_and_never_a_constant() {
    let mut state = seedless(&policy(), false);
    let frozen = round(&state).frozen.as_ref().unwrap();
    assert_eq!((frozen.seed, frozen.validators[1].seed), (None, 0));
    assert_eq!(
        (round(&state).stage, kinds(&state)),
        (Stage::Committing, vec![DegradationKind::NoSeeds])
    );
    assert!(round(&state).jobs.is_empty() && lease_as(&mut state, "a").is_none());
    let late = apply(&mut state, stored(10), &policy());
    assert!(matches!(late, Err(Rejection::UploadsClosed { .. })));
    blocks(&mut state, first(Phase::ValidatorCommit1));
    run(&mut state, Event::HashSigned { round: id(), signature: "s".repeat(86) });
    written(&mut state, WriteKind::SignedHash);
    blocks(&mut state, first(Phase::ValidatorCommit2));
    written(&mut state, WriteKind::ModelHash);
    assert_eq!(round(&state).stage, Stage::Closed);
    assert_eq!((state.base.clone(), round(&state).merge.clone()), (Some(model(0, 0)), None));
    assert!(round(&state).weights.is_empty(), "averages of earlier rounds are not this one's");
    assert!(
        round(&state).miners.values().all(|miner| miner.score.is_none() && miner.reason.is_none())
    );
    assert_eq!(state.history.get(Uid(2)).unwrap().average(), 2.25);
}

#[test]
fn without_a_seed_only_the_stale_guard_sends_weights_and_policy_may_hold_them() {
    let state = seedless(&policy(), true);
    assert_eq!(round(&state).weights, [(Uid(3), 1.0)]);
    assert_eq!(round(&state).weights_origin, WeightsOrigin::StaleGuard);
    let mut policy = policy();
    policy.hold_weights_on.insert(DegradationKind::NoSeeds);
    let state = seedless(&policy, true);
    assert!(round(&state).weights.is_empty());
    assert!(kinds(&state).contains(&DegradationKind::WeightsHeld));
}
