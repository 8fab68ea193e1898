//! Files that miners left on a hub, which gives them in its own way.

mod fetch;
mod hostile;
mod turns;

use std::time::Duration;

use kit::Common;
use serde_json::Value;
use store::Store;
use svc_gateway::{Config, HubConfig};
use testkit::TestHub;
use tokio::time::sleep;

use crate::common::{Miner, ROUND, World};

const REPO: &str = "some-miner/model_1";
const SAFE: &str = "model_expgroup_0.safetensors";
const PT: &str = "model_expgroup_0.pt";
/// Long enough for a gateway that would do what it must not.
const A_WHILE: Duration = Duration::from_millis(300);

fn miner(number: u8) -> Miner {
    Miner::new(number, &format!("miner{}_g0.safetensors", number - 1))
}

fn bytes(miner: &Miner) -> Vec<u8> {
    std::fs::read(&miner.file).unwrap()
}

/// Asks this hub, and soon again.
fn config(hub: &TestHub) -> Config {
    let hub = HubConfig {
        url: hub.url(),
        interval: Duration::from_millis(20),
        backoff: Duration::from_millis(1),
        timeout: Duration::from_secs(20),
        ..HubConfig::default()
    };
    Config { hub, ..Config::default() }
}

fn hub_config(hub: &TestHub, change: impl FnOnce(&mut HubConfig)) -> Config {
    let mut config = config(hub);
    change(&mut config.hub);
    config
}

/// Says of the roster's miner `at` that its file is there.
async fn name(world: &World, at: usize, repo: &str, commit: &str) {
    let (repo, digits) = (repo.to_owned(), commit[..7].to_owned());
    world
        .change(|view| {
            let line = &mut view.round.as_mut().unwrap().miners[at];
            (line.hub_repo, line.hub_revision) = (repo, digits);
        })
        .await;
}

/// The next block, at which an attempt that failed is repeated.
async fn next_block(world: &World) {
    world.change(|view| view.block += 1).await;
}

async fn until_stored(world: &World, count: usize) {
    world.until("it is stored", || async { world.scheduler.submissions().len() >= count }).await;
    assert_eq!(world.scheduler.submissions().len(), count);
}

async fn until_told(world: &World, reason: &str) {
    world.until("it is told", || async { !world.scheduler.refusals().is_empty() }).await;
    assert_eq!(world.scheduler.refusals()[0].1, reason);
    // Once.
    sleep(A_WHILE).await;
    assert_eq!(world.scheduler.refusals().len(), 1);
    assert!(world.scheduler.submissions().is_empty());
    world.until_no_traces().await;
}

/// What the gateways remember of attempts in a round: reason, and whether it was the last one.
async fn attempts(world: &World, round: u64) -> Vec<(String, bool)> {
    let store = Store::open(&world.store_url, &Common::default().namespace).unwrap();
    let marks = store.list(&format!("hub/{round}/")).await.unwrap();
    let attempt = |(_, mark): (String, bytes::Bytes)| {
        let mark: Value = serde_json::from_slice(&mark).unwrap();
        (mark["reason"].as_str().unwrap().to_owned(), mark["settled"].as_bool().unwrap())
    };
    marks.into_iter().map(attempt).collect()
}

fn stored(world: &World, miner: &Miner, file: &str) -> Vec<u8> {
    let folder = world.disk.path().join(format!("artifacts/submissions/{ROUND}/{}", miner.hotkey));
    std::fs::read(folder.join(file)).unwrap()
}

/// One miner, whose file is at a commit of a hub.
struct Scene {
    hub: TestHub,
    world: World,
    miner: Miner,
    commit: String,
}

impl Scene {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut HubConfig)) -> Self {
        let miner = miner(1);
        let file = bytes(&miner);
        Self::of(miner, &[(SAFE, file)], change).await
    }

    async fn of(
        miner: Miner,
        files: &[(&str, Vec<u8>)],
        change: impl FnOnce(&mut HubConfig),
    ) -> Self {
        let hub = TestHub::start().await.unwrap();
        let commit = hub.commit(REPO, files).unwrap();
        let world = World::with(&[&miner], hub_config(&hub, change)).await;
        Self { hub, world, miner, commit }
    }

    /// The chain tells of the place.
    async fn begin(&self) {
        name(&self.world, 0, REPO, &self.commit).await;
    }
}
