//! Who fetches what, and who comes first.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::Value;
use svc_gateway::HubConfig;
use testkit::{Mischief, TestHub};
use tokio::{io::AsyncWriteExt as _, time::sleep};

use super::{
    A_WHILE, SAFE, Scene, attempts, bytes, config, hub_config, miner, name, stored, until_stored,
};
use crate::common::{ROUND, World};

#[tokio::test]
async fn two_gateways_fetch_a_file_once() {
    let scene = Scene::new().await;
    let world = &scene.world;
    world.gateway("data2", config(&scene.hub)).await;
    scene.begin().await;
    until_stored(world, 1).await;
    sleep(A_WHILE).await;
    assert_eq!(scene.hub.file_requests().len(), 1);
    assert_eq!(world.scheduler.submissions().len(), 1);
}

#[tokio::test]
async fn a_gateway_goes_on_with_the_next_file_while_another_has_the_first() {
    let miners: Vec<_> = (1..=3).map(miner).collect();
    let hub = TestHub::start().await.unwrap();
    let alone = |hub: &mut HubConfig| hub.concurrency = 1;
    let world = World::with(&miners.iter().collect::<Vec<_>>(), hub_config(&hub, alone)).await;
    let commits: Vec<_> = (miners.iter().enumerate())
        .map(|(at, miner)| hub.commit(&format!("of/{at}"), &[(SAFE, bytes(miner))]).unwrap())
        .collect();
    hub.misbehave(|request| match request.path.starts_with("/files/of/0/") {
        true => Mischief::Stall(9),
        false => Mischief::None,
    });
    name(&world, 0, "of/0", &commits[0]).await;
    world.until("one stands", || async { !hub.file_requests().is_empty() }).await;
    for at in [1, 2] {
        name(&world, at, &format!("of/{at}"), &commits[at]).await;
    }
    sleep(A_WHILE).await;
    assert_eq!(world.scheduler.submissions(), [], "the first gateway is busy");
    world.gateway("data2", hub_config(&hub, alone)).await;
    until_stored(&world, 2).await;
    assert_eq!(hub.file_requests().len(), 3);
}

#[tokio::test]
async fn the_miner_s_own_upload_comes_first_while_a_file_is_fetched() {
    let scene = Scene::new().await;
    let world = &scene.world;
    scene.hub.misbehave(|request| match request.elsewhere {
        true => Mischief::Stall(70_000),
        false => Mischief::None,
    });
    scene.begin().await;
    let asked = || async { !scene.hub.file_requests().is_empty() };
    world.until("it is being fetched", asked).await;
    assert_eq!(world.submit_honestly(&scene.miner).await.status(), 200);
    let spool =
        || async { world.traces().iter().all(|path| !path.to_string_lossy().contains("spool")) };
    world.until("the fetch is given up", spool).await;
    sleep(A_WHILE).await;
    assert_eq!(scene.hub.file_requests().len(), 1);
    assert_eq!(world.scheduler.submissions().len(), 1);
    assert_eq!(world.scheduler.refusals(), []);
    let meta: Value = serde_json::from_slice(&stored(world, &scene.miner, "meta.json")).unwrap();
    assert_eq!(meta["transport"], "upload");
}

#[tokio::test]
async fn a_fetched_file_waits_for_an_upload_that_is_under_way_and_stands_in_when_it_breaks_off() {
    let scene = Scene::new().await;
    let world = &scene.world;
    let (body, boundary) = world.raw_form(&world.fields(&scene.miner), &bytes(&scene.miner));
    let mut upload = world.begin_raw(&boundary, body.len()).await;
    upload.write_all(&body[..body.len() / 2]).await.unwrap();
    world.until("the upload is under way", || async { world.uploads().await == 1 }).await;
    let spooled = || async { !world.traces().is_empty() };
    world.until("the upload has its turn", spooled).await;
    scene.begin().await;
    let asked = || async { !scene.hub.file_requests().is_empty() };
    world.until("it is being fetched", asked).await;
    sleep(A_WHILE).await;
    assert_eq!(world.scheduler.submissions(), []);
    drop(upload);
    until_stored(world, 1).await;
    let meta: Value = serde_json::from_slice(&stored(world, &scene.miner, "meta.json")).unwrap();
    assert_eq!(meta["transport"], "hub");
}

#[tokio::test]
async fn this_validator_s_own_miners_come_first_and_no_more_at_once_than_may_be() {
    let miners: Vec<_> = (1..=3).map(miner).collect();
    let hub = TestHub::start().await.unwrap();
    let config = hub_config(&hub, |hub| hub.concurrency = 1);
    let world = World::with(&miners.iter().collect::<Vec<_>>(), config).await;
    let now = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&now);
    hub.misbehave(move |request| {
        seen.fetch_add(usize::from(request.elsewhere), Ordering::SeqCst);
        Mischief::None
    });
    let commits: Vec<_> = miners
        .iter()
        .enumerate()
        .map(|(at, miner)| hub.commit(&format!("of/{at}"), &[(SAFE, bytes(miner))]).unwrap())
        .collect();
    world
        .change(|view| {
            for (at, line) in view.round.as_mut().unwrap().miners.iter_mut().enumerate() {
                line.assigned = at == 2;
                line.hub_repo = format!("of/{at}");
                line.hub_revision = commits[at][..7].to_owned();
            }
        })
        .await;
    until_stored(&world, 3).await;
    let order: Vec<_> = world.scheduler.submissions().into_iter().map(|s| s.hotkey).collect();
    assert_eq!(order[0], miners[2].hotkey.to_string());
    assert_eq!(now.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_gateway_that_stops_lets_go_of_what_it_fetches() {
    let scene = Scene::new().await;
    scene.hub.misbehave(|request| match request.elsewhere {
        true => Mischief::Stall(70_000),
        false => Mischief::None,
    });
    scene.begin().await;
    scene.world.until("it is being fetched", || async { !scene.world.traces().is_empty() }).await;
    assert!(scene.world.stop().await, "it does not wait for the hub");
    assert_eq!(scene.world.traces(), Vec::<std::path::PathBuf>::new());
    // Not an attempt, and the next gateway need not wait.
    assert_eq!(attempts(&scene.world, ROUND).await, []);
    scene.hub.misbehave(|_| Mischief::None);
}
