//! Connections that break, anywhere.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use svc_gateway::Config;
use tokio::io::AsyncWriteExt as _;

use super::client::{content, header};
use crate::common::{Miner, ROUND, World, name_of};

#[tokio::test]
async fn whatever_the_byte_at_which_it_breaks_an_upload_goes_on_to_one_right_submission() {
    const SEED: u64 = 20261127;
    let files = ["miner1_g0.pt", "miner1_g0.safetensors"];
    // 200 is the validator's key.
    let numbers = (1..=201u8).filter(|number| *number != 200);
    let miners: Vec<_> =
        numbers.map(|number| Miner::new(number, files[usize::from(number % 2)])).collect();
    let config = Config { burst_per_address: 100_000, ..Config::default() };
    let world = World::with(&miners.iter().collect::<Vec<_>>(), config).await;
    let mut random = StdRng::seed_from_u64(SEED);
    for miner in &miners {
        let content = content(miner);
        let path = world.create(miner).await;
        let cut = random.random_range(0..content.len());
        let mut stream = world.begin_append(&path, 0, content.len()).await;
        stream.write_all(&content[..cut]).await.unwrap();
        if random.random() {
            // What was sent has come, and then the connection ends; else it is torn.
            stream.shutdown().await.unwrap();
        }
        drop(stream);
        // Not even a request was seen, perhaps: the rest is sent from where it stands.
        let mut tries = 0;
        let response = loop {
            let offset = world.offset(&path).await;
            assert!(offset <= cut, "seed {SEED}: {offset} of {cut}");
            let response = world.append(&path, offset, &content[offset..]).send().await.unwrap();
            tries += 1;
            match response.status().as_u16() {
                409 | 423 if tries < 100 => {}
                _ => break response,
            }
        };
        assert_eq!(response.status(), 204, "seed {SEED}, cut at {cut}");
        assert!(header(&response, "x-stored-path").is_some());
    }
    let submissions = world.scheduler.submissions();
    assert_eq!(submissions.len(), miners.len());
    for miner in &miners {
        let key =
            format!("artifacts/submissions/{ROUND}/{}/{}", miner.hotkey, name_of(&miner.file));
        assert_eq!(std::fs::read(world.disk.path().join(key)).unwrap(), content(miner));
        let of = submissions.iter().filter(|s| s.hotkey == miner.hotkey.as_str());
        assert_eq!(of.count(), 1);
    }
    world.until("no part is left", || async { world.parts().is_empty() }).await;
    assert_eq!(world.traces().len(), 2 * miners.len());
    assert!(world.scheduler.refusals().is_empty());
}

#[tokio::test]
async fn an_upload_that_breaks_again_and_again_is_one_right_submission() {
    let miner = Miner::new(1, "miner0_g0.safetensors");
    let config = Config { burst_per_address: 100_000, ..Config::default() };
    let world = World::with(&[&miner], config).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    let mut random = StdRng::seed_from_u64(7);
    let mut offset = 0;
    let mut breaks = 0;
    while offset < content.len() - 10_000 {
        let mut stream = world.begin_append(&path, offset, content.len() - offset).await;
        let sent = random.random_range(1..8000);
        stream.write_all(&content[offset..offset + sent]).await.unwrap();
        drop(stream);
        let now = world.offset(&path).await;
        assert!((offset..=offset + sent).contains(&now));
        offset = now;
        breaks += 1;
        assert!(breaks < 10_000, "it does not get on");
    }
    world.until("the turn is free", || async { world.uploads().await == 0 }).await;
    let offset = world.offset(&path).await;
    let response = world.append(&path, offset, &content[offset..]).send().await.unwrap();
    assert_eq!(response.status(), 204);
    assert_eq!(world.scheduler.submissions().len(), 1);
    let key = header(&response, "x-stored-path").unwrap();
    assert_eq!(std::fs::read(world.disk.path().join("artifacts").join(key)).unwrap(), content);
}

#[tokio::test]
async fn a_client_that_hangs_up_behind_the_last_byte_has_submitted() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    let mut stream = world.begin_append(&path, 0, content.len()).await;
    stream.write_all(&content).await.unwrap();
    stream.shutdown().await.unwrap();
    world.until("it is stored", || async { world.scheduler.submissions().len() == 1 }).await;
    world
        .until("the same name tells it", || async {
            let response = world.tus("HEAD", &path).send().await.unwrap();
            header(&response, "x-stored-path").is_some()
        })
        .await;
}
