//! The stake majority's model: looked for between two rounds, and fetched where it is not here.

use domain::ModelHash;
use proto::scheduler::v1::{Resync, RoundStage, RoundView};
use tokio::time::Duration;

use crate::{
    chain::Fault,
    merge::{Ending, Fetching, merged_hash},
    record::verified,
    subnet::{BASE_VERSION, ME, OTHER, hotkey},
    world::{ROUND, Scheduler, World, base_hash, degraded, round},
};

/// First block after the first cycle, and first of MinerCommit1 of the second.
const AFTER: u64 = 36;
const NEXT: u64 = AFTER + 8;
/// A stake that outweighs this validator's.
const MOST: u64 = 3_000_000;

fn resync(view: &RoundView) -> &Resync {
    view.resync.as_ref().expect("a look at the majority")
}

fn at(view: &RoundView, stage: &str) -> bool {
    view.resync.as_ref().is_some_and(|resync| resync.stage == stage)
}

fn base(view: &RoundView) -> &str {
    view.base.as_ref().map_or("", |base| &base.model_hash)
}

/// A validator whose merge failed, while the other one has made and revealed a model; up to the end of
/// the cycle.
async fn behind() -> (World, Scheduler) {
    let world = World::with(Fault::Honest, Ending::Fails).await;
    world.chain.reveal(ModelHash([9; 24]), 24, MOST);
    let scheduler = world.leader().await;
    let view = world.whole_round(&scheduler).await;
    assert_eq!(base(&view), base_hash());
    (world, scheduler)
}

#[tokio::test]
async fn a_validator_that_missed_the_merge_fetches_the_majoritys_model_before_the_next_round() {
    let (world, scheduler) = behind().await;
    world.to(&scheduler, AFTER).await;
    let view = scheduler.until("the model", |view| at(view, "done")).await;
    assert_eq!(base(&view), merged_hash());
    let told = resync(&view);
    assert_eq!((told.cycle, told.stake, told.revealed), (0, MOST, MOST + 1_000_000));
    assert_eq!(told.holders, [hotkey(OTHER).to_string()]);
    let asked = world.merge.resyncs();
    let [plan] = asked.as_slice() else { panic!("{} times", asked.len()) };
    let model = plan.model.as_ref().unwrap();
    assert_eq!(
        (plan.round_id, model.global_version, &model.model_hash),
        (ROUND, 24, &merged_hash())
    );
    assert_eq!(model.prefix, "models/24-0909090909090909");
    let holders: Vec<_> = plan.holders.iter().map(|v| (&v.hotkey, &v.axon, v.stake)).collect();
    assert_eq!(holders, [(&hotkey(OTHER).to_string(), &"127.0.0.1:8001".to_owned(), MOST)]);
    // Eight blocks of 40 ms until the next round.
    assert_eq!((plan.deadline_ms, &plan.hotkey), (320, &hotkey(ME).to_string()));
    assert_eq!(plan.traceparent, round(&view).traceparent);

    world.to(&scheduler, NEXT).await;
    let view = scheduler.until("the next round", |view| round(view).cycle == 1).await;
    assert_eq!((base(&view), degraded(&view)), (merged_hash().as_str(), vec!["resynced"]));
    assert!(resync(&view).degradations.is_empty(), "the round has them");
}

#[tokio::test]
async fn a_validator_that_is_with_the_majority_fetches_nothing() {
    let world = World::new().await;
    world.chain.reveal(ModelHash([9; 24]), 24, MOST);
    let scheduler = world.leader().await;
    world.whole_round(&scheduler).await;
    world.to(&scheduler, AFTER).await;
    let view = scheduler.until("the look", |view| at(view, "same")).await;
    assert_eq!(resync(&view).revealed, MOST + 1_000_000);
    world.to(&scheduler, NEXT).await;
    let view = scheduler.until("the next round", |view| round(view).cycle == 1).await;
    assert_eq!(degraded(&view), [""; 0]);
    assert!(world.merge.resyncs().is_empty());
}

#[tokio::test]
async fn a_model_that_nobody_has_is_tried_for_until_the_next_round_says_that_it_stands_behind() {
    let (world, scheduler) = behind().await;
    world.merge.fetching(Fetching::Fails);
    world.to(&scheduler, AFTER).await;
    let view =
        scheduler.until("the reason", |v| v.resync.as_ref().is_some_and(|r| !r.reason.is_empty()));
    let view = view.await;
    assert_eq!(
        (resync(&view).reason.as_str(), resync(&view).detail.as_str()),
        ("no_holders", "nobody has it")
    );
    let end = tokio::time::Instant::now() + crate::world::LONG;
    while world.merge.resyncs().len() < 3 {
        assert!(tokio::time::Instant::now() < end, "it is not tried again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.to(&scheduler, NEXT).await;
    let view = scheduler.until("the next round", |view| round(view).cycle == 1).await;
    assert_eq!(degraded(&view), ["peer_blamed", "behind_majority"]);
    let told = &round(&view).degradations;
    assert!(told[0].detail.starts_with(hotkey(OTHER).as_str()), "{}", told[0].detail);
    assert!(told[1].detail.ends_with("no_holders: nobody has it"), "{}", told[1].detail);
    assert_eq!((base(&view), resync(&view).stage.as_str()), (base_hash().as_str(), "late"));
    // It is over with it: none is asked for while the round runs.
    let asked = world.merge.resyncs().len();
    world.to(&scheduler, AFTER + ROUND).await;
    scheduler.until_stage(RoundStage::Evaluating).await;
    assert_eq!(world.merge.resyncs().len(), asked);
}

#[tokio::test]
async fn another_model_than_was_asked_for_is_not_taken() {
    let (world, scheduler) = behind().await;
    world.merge.fetching(Fetching::BringsAnother);
    world.to(&scheduler, AFTER).await;
    let refused =
        |view: &RoundView| view.resync.as_ref().is_some_and(|r| r.reason == "other_model");
    let view = scheduler.until("the refusal", refused).await;
    assert_eq!(base(&view), base_hash());
    world.merge.fetching(Fetching::Works);
    let view = scheduler.until("the model", |view| at(view, "done")).await;
    assert_eq!((base(&view), resync(&view).reason.as_str()), (merged_hash().as_str(), ""));
}

#[tokio::test]
async fn a_leader_that_crashes_while_a_model_is_fetched_is_followed_by_one_that_goes_on() {
    let mut world = World::with(Fault::Honest, Ending::Fails).await;
    world.config.leader_ttl = Duration::from_secs(1);
    world.chain.reveal(ModelHash([9; 24]), 24, MOST);
    world.merge.fetching(Fetching::Hangs);
    let leader = world.leader().await;
    world.whole_round(&leader).await;
    world.to(&leader, AFTER).await;
    leader.until("the fetch", |view| at(view, "fetching")).await;
    leader.crash();

    let leader = world.leader().await;
    let view = leader.until("the fetch", |view| at(view, "fetching")).await;
    assert_eq!(base(&view), base_hash());
    world.merge.fetching(Fetching::Works);
    let view = leader.until("the model", |view| at(view, "done")).await;
    assert_eq!(base(&view), merged_hash());
    let asked = world.merge.resyncs();
    assert!(asked.len() >= 2 && asked.iter().all(|plan| *plan == asked[0]), "{asked:#?}");
}

#[tokio::test]
async fn a_validator_without_a_model_joins_by_the_majoritys_and_plays_the_next_round() {
    let mut world = World::new().await;
    world.config.initial_version = 7;
    world.chain.reveal(ModelHash([9; 24]), 24, MOST);
    let scheduler = world.leader().await;
    let view = world.to(&scheduler, AFTER - 1).await;
    assert_eq!((&view.base, &view.round, &view.resync), (&None, &None, &None));
    world.to(&scheduler, AFTER).await;
    let view = scheduler.until("the model", |view| at(view, "done")).await;
    assert_eq!(base(&view), merged_hash());
    world.to(&scheduler, NEXT).await;
    scheduler.until("the next round", |view| view.round.is_some()).await;
    world.to(&scheduler, AFTER + ROUND).await;
    let view = scheduler.until_stage(RoundStage::Evaluating).await;
    assert_eq!(degraded(&view), ["resynced"]);
    assert!(world.chain.book().submitted.iter().any(|((_, kind), _)| kind == "seed"));
}

#[tokio::test]
async fn a_first_model_that_is_imported_later_is_found() {
    let mut world = World::new().await;
    world.config.initial_version = 7;
    world.config.leader_ttl = Duration::from_secs(2);
    let scheduler = world.leader().await;
    assert_eq!(scheduler.view().await.unwrap().base, None);
    let old = world.path(&format!("models/{BASE_VERSION}/manifest.json"));
    world.put("models/7/manifest.json", &std::fs::read_to_string(old).unwrap());
    let view = scheduler.until("the model", |view| view.base.is_some()).await;
    assert_eq!(view.base.unwrap().prefix, "models/7");
    world.opened(&scheduler).await;
}

#[tokio::test]
async fn reveals_that_endpoints_do_not_agree_on_are_waited_for() {
    let world = World::with(Fault::Disagrees, Ending::Merges).await;
    world.chain.reveal(ModelHash([5; 24]), BASE_VERSION, MOST);
    let scheduler = world.leader().await;
    world.to(&scheduler, AFTER).await;
    let unread = |view: &RoundView| view.resync.as_ref().is_some_and(|r| r.reason == "unreadable");
    let view = scheduler.until("the reason", unread).await;
    assert_eq!(resync(&view).detail, "disagreement: block 36 has two hashes");
    world.chain.agree();
    let view = scheduler.until("the look", |view| at(view, "same")).await;
    assert_eq!(resync(&view).reason, "");
}

#[tokio::test]
async fn what_was_fetched_is_pruned_with_the_models_of_its_number() {
    let (mut world, scheduler) = behind().await;
    scheduler.stop().await;
    world.config.retention.models = 2;
    let scheduler = world.leader().await;
    world.to(&scheduler, AFTER).await;
    scheduler.until("the model", |view| at(view, "done")).await;
    let old = ["models/1-0101010101010101/manifest.json", "models/3/manifest.json"];
    let kept = ["models/24-0909090909090909/manifest.json", "models/24/manifest.json"];
    for key in old.iter().chain(&kept) {
        world.put(key, "content");
    }
    // The second round is missed but for its record.
    world.to(&scheduler, NEXT).await;
    world.to(&scheduler, AFTER + 24).await;
    world.to(&scheduler, AFTER + NEXT).await;
    let (_, record) = verified(&scheduler.record(AFTER + ROUND).await);
    assert_eq!(record.base.prefix, "models/24-0909090909090909");
    let end = tokio::time::Instant::now() + crate::world::LONG;
    while old.iter().any(|key| world.path(key).exists()) {
        assert!(tokio::time::Instant::now() < end, "old models are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(kept.iter().all(|key| world.path(key).exists()));
}
