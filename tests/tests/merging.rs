//! Three validators: one lies in a merge, another one is killed in the middle of one; and one comes with
//! nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use connito::demo::{Args, Closed, Plan, Report, Subnet, ValidatorReport, Watched, check};
use domain::{BlockNumber, CycleIndex, Phase};
use kit::{Shutdown, Tls};
use proto::peer::v1::{GetMergeRequest, MergeState, merge_service_client::MergeServiceClient};

/// Who is killed.
const KILLED: usize = 1;
/// Who lies.
const LIAR: usize = 2;
/// In which cycle somebody is killed.
const CYCLE: u64 = 1;
const CYCLES: u64 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_liar_is_proven_to_lie_and_who_is_killed_in_mid_merge_is_back_for_the_next_one() {
    let folder = testkit::tempdir().unwrap();
    let args = Args {
        cycles: CYCLES,
        validators: 3,
        liar: true,
        processes: true,
        block_time: 400,
        ..Args::default()
    };
    let plan = Plan::new(&args, folder.path());
    let mut subnet = Subnet::start(plan.clone(), Shutdown::default()).await.unwrap();
    let closed = play(&plan, &mut subnet).await;
    let report = check(&plan, &subnet, closed, CYCLES).await.unwrap();
    subnet.stop().await;

    for cycle in &report.cycles {
        assert_eq!(cycle.validators.len(), 3, "everybody closed cycle {}", cycle.cycle);
    }
    the_liar_is_named_by_the_others_and_changes_nothing(&plan, &report);
    the_killed_one_costs_the_others_nothing(&report);
    all_are_together_again_in_the_last_cycle(&report);
}

/// Runs the cycles, and kills one in the middle of a merge.
async fn play(plan: &Plan, subnet: &mut Subnet) -> Vec<Closed> {
    let (mut killed, mut back) = (false, false);
    let mut closed = Vec::new();
    while closed.len() < plan.validators.len() * usize::try_from(CYCLES).unwrap() {
        let Watched::View(validator, view) = subnet.listen().await.unwrap() else { continue };
        let at = plan.schedule.phase_at(BlockNumber(view.block));
        let (cycle, phase) = (at.cycle_index.0, at.phase_name);
        if (cycle, phase) == (CYCLE, Phase::Merge) && !killed {
            killed = true;
            kill_in_mid_merge(plan, subnet).await;
        }
        // Too late to find its way back into that merge.
        if (cycle, phase) == (CYCLE + 1, Phase::Distribute) && !back {
            back = true;
            subnet.restart(KILLED, "svc-peer").unwrap();
        }
        let news = subnet.take_in(validator, &view);
        closed.extend(news.closed.filter(|closed| closed.cycle < CYCLES));
    }
    assert!(killed && back);
    closed
}

async fn kill_in_mid_merge(plan: &Plan, subnet: &mut Subnet) {
    let [.., peer] = subnet.ports(KILLED).grpc;
    let channel = kit::channel(&format!("http://127.0.0.1:{peer}"), &Tls::default()).unwrap();
    let mut merges = MergeServiceClient::new(channel);
    let round_id = plan.schedule.round_id(CycleIndex(CYCLE)).0;
    let in_the_middle = async {
        loop {
            let status = merges.get_merge(GetMergeRequest { round_id }).await;
            match status.map(|status| status.into_inner().state()) {
                Ok(MergeState::Meeting | MergeState::Reducing) => return,
                Ok(MergeState::Writing | MergeState::Ended) => panic!("too fast to be killed"),
                Ok(MergeState::Aggregating | MergeState::Unspecified) | Err(_) => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), in_the_middle).await.unwrap();
    subnet.kill(KILLED, "svc-peer").await.unwrap();
}

fn says(validator: &ValidatorReport, kind: &str) -> bool {
    validator.degradations.iter().any(|one| one.starts_with(&format!("{kind}:")))
}

fn the_liar_is_named_by_the_others_and_changes_nothing(plan: &Plan, report: &Report) {
    let liar = plan.validators[LIAR].hotkey.as_str();
    let validators = &report.cycles[0].validators;
    for validator in &validators[..LIAR] {
        let blamed = validator.degradations.iter().find(|one| one.starts_with("peer_blamed:"));
        let blamed = blamed.unwrap_or_else(|| panic!("{:?}", validator.degradations));
        assert!(blamed.contains(liar) && blamed.contains("wrong_reduction"), "{blamed}");
    }
    assert!(validators.iter().all(|validator| validator.model_hash == validators[0].model_hash));
}

fn the_killed_one_costs_the_others_nothing(report: &Report) {
    let validators = &report.cycles[usize::try_from(CYCLE).unwrap()].validators;
    let others = [&validators[0], &validators[LIAR]];
    for validator in others {
        assert!(!says(validator, "merge_failed"), "{:?}", validator.degradations);
        assert_eq!(validator.committed_hash, validator.model_hash);
    }
    assert_eq!(others[0].model_hash, others[1].model_hash);
    let killed = &validators[KILLED];
    assert_ne!(killed.model_hash, others[0].model_hash, "it was not killed in the middle");
    assert!(says(killed, "merge_failed"), "{:?}", killed.degradations);
}

fn all_are_together_again_in_the_last_cycle(report: &Report) {
    let validators = &report.cycles.last().unwrap().validators;
    assert!(says(&validators[KILLED], "resynced"), "{:?}", validators[KILLED].degradations);
    for validator in validators {
        assert!(!says(validator, "merge_failed"), "{:?}", validator.degradations);
        assert_eq!(validator.model_hash, validators[0].model_hash);
        assert_eq!(validator.committed_hash, validator.model_hash);
    }
}

/// When the newcomer starts: too late for the round that is open, and with no weights set for a cycle.
const JOINS: (u64, Phase) = (1, Phase::Merge);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_validator_that_comes_with_nothing_gets_the_model_and_merges_once_it_has_set_weights() {
    const LAST: u64 = JOINS.0 + 2;
    let folder = testkit::tempdir().unwrap();
    let args = Args { cycles: LAST + 1, validators: 3, ..Args::default() };
    let plan = Plan { late: true, ..Plan::new(&args, folder.path()) };
    let mut subnet = Subnet::start(plan.clone(), Shutdown::default()).await.unwrap();
    let (mut joined, mut closed) = (false, Vec::new());
    while closed.iter().filter(|closed: &&Closed| closed.cycle == LAST).count() < 3 {
        let Watched::View(validator, view) = subnet.listen().await.unwrap() else { continue };
        let at = plan.schedule.phase_at(BlockNumber(view.block));
        if (at.cycle_index.0, at.phase_name) == JOINS && !joined {
            joined = true;
            subnet.join().await.unwrap();
        }
        closed.extend(subnet.take_in(validator, &view).closed);
    }
    let report = check(&plan, &subnet, closed, LAST + 1).await.unwrap();
    subnet.stop().await;

    let newcomer = |cycle: u64| report.cycles[usize::try_from(cycle).unwrap()].validators.last();
    let first = newcomer(JOINS.0 + 1).unwrap();
    assert!(says(first, "resynced"), "{:?}", first.degradations);
    assert_eq!(first.weight_extrinsics.len(), 1, "{:?}", first.degradations);
    let last = &report.cycles.last().unwrap().validators;
    for validator in last {
        assert!(!says(validator, "merge_failed"), "{:?}", validator.degradations);
        assert!(!says(validator, "merge_partial"), "{:?}", validator.degradations);
        assert_eq!(validator.model_hash, last[0].model_hash);
        assert_eq!(validator.committed_hash, validator.model_hash);
    }
}
