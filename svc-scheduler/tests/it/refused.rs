//! States and settings that a scheduler must not work with.

use std::time::Duration;

use bytes::Bytes;
use store::Store;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::world::{LONG, Scheduler, World};

const STATE: &str = "scheduler/state";

fn store(world: &World) -> Store {
    Store::open(&world.common.store_url, &world.common.namespace).unwrap()
}

/// Saves `bytes` as a leader would.
async fn save(store: &Store, bytes: Bytes) {
    let lease = store.acquire("scheduler", LONG).await.unwrap().unwrap();
    store.put_fenced(&lease, STATE, bytes).await.unwrap();
    store.release(lease).await.unwrap();
}

/// Waits until the scheduler says this about why it does not lead.
async fn says(scheduler: &Scheduler, text: &str) {
    let end = Instant::now() + LONG;
    loop {
        let status = scheduler.view().await.expect_err("it leads");
        assert_eq!(status.code(), Code::Unavailable);
        if status.message().contains(text) {
            return;
        }
        assert!(Instant::now() < end, "it says: {}", status.message());
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_state_that_cannot_be_read_is_refused_by_name_and_left_as_it_is() {
    for bytes in ["{\"hotkey\":", "not json", "{}", ""] {
        let world = World::new().await;
        let store = store(&world);
        save(&store, Bytes::from(bytes)).await;
        let scheduler = world.scheduler().await;
        says(&scheduler, "the saved state cannot be read").await;
        says(&scheduler, "common.namespace").await;
        scheduler.stop().await;
        assert_eq!(store.get(STATE).await.unwrap().unwrap(), bytes);
        assert!(world.chain.book().sent.is_empty());
    }
}

#[tokio::test]
async fn the_state_of_another_validator_under_the_same_namespace_is_refused_and_left() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.frozen(&scheduler).await;
    scheduler.stop().await;
    let before = store(&world).get(STATE).await.unwrap().unwrap();

    let mut other = World::new().await;
    other.chain =
        crate::chain::FakeChain::start(42, crate::chain::Fault::Honest, world.chain.head()).await;
    other.common.chain_url = other.chain.url();
    other.common.store_url.clone_from(&world.common.store_url);
    let scheduler = other.scheduler().await;
    says(&scheduler, "the saved state is of hotkey").await;
    says(&scheduler, crate::subnet::hotkey(42).as_str()).await;
    drop(scheduler);

    // Nor does the validator itself take it over with another expert group.
    let mut world = world;
    world.config.expert_group = 1;
    let scheduler = world.scheduler().await;
    says(&scheduler, "expert group 0").await;
    drop(scheduler);
    assert_eq!(store(&world).get(STATE).await.unwrap().unwrap(), before);
    assert_eq!(world.chain.book().submitted.len(), 1);
}

#[tokio::test]
async fn a_manifest_that_is_none_or_lacks_the_group_is_refused_by_name() {
    let mut world = World::new().await;
    world.config.initial_version = 7;
    world.put("models/7/manifest.json", "[");
    let scheduler = world.scheduler().await;
    says(&scheduler, "`models/7/manifest.json` is not a manifest").await;
    drop(scheduler);

    let mut world = World::new().await;
    world.config.expert_group = 3;
    let scheduler = world.scheduler().await;
    says(&scheduler, "has no slice of expert group 3").await;
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused_before_anything_is_served() {
    let world = World::new().await;
    let run = async |change: fn(&mut svc_scheduler::Config, &mut kit::Common)| {
        let (mut config, mut common) = (world.config.clone(), world.common.clone());
        config.grpc_addr = ([127, 0, 0, 1], 0).into();
        change(&mut config, &mut common);
        let shutdown = kit::Shutdown::default();
        let result = svc_scheduler::run(config, common, shutdown).await;
        format!("{:#}", result.expect_err("it runs"))
    };
    let told = run(|_, common| common.phases = vec![4; 8]).await;
    assert!(told.contains("`common.phases`: 8 lengths instead of 9"), "{told}");
    let told = run(|_, common| common.phases[2] = 0).await;
    assert!(told.contains("`common.phases`: phase MinerCommit1"), "{told}");
    assert!(run(|c, _| c.evaluation.max_attempts = 0).await.contains("max_attempts"));
    assert!(run(|c, _| c.policy.validators = vec!["5x".to_owned()]).await.contains("5x"));
}
