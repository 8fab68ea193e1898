//! A hub that gives files, sooner or later.

use std::time::Duration;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use serde_json::Value;
use testkit::{Mischief, TestHub};
use tokio::time::sleep;

use super::{
    A_WHILE, PT, REPO, SAFE, Scene, bytes, config, miner, name, stored, until_stored, until_told,
};
use crate::common::{Miner, ROUND, World, assert_refused};

#[tokio::test]
async fn a_file_that_a_commitment_names_is_stored_and_told_as_an_upload_would_be() {
    let scene = Scene::new().await;
    let (world, miner) = (&scene.world, &scene.miner);
    scene.begin().await;
    until_stored(world, 1).await;
    let told = world.scheduler.submissions().remove(0);
    assert_eq!(told.hotkey, miner.hotkey.to_string());
    assert_eq!(told.model_hash, miner.hash.to_hex());
    assert_eq!(told.key, format!("submissions/{ROUND}/{}/{SAFE}", miner.hotkey));
    assert_eq!(stored(world, miner, SAFE), bytes(miner));
    let meta: Value = serde_json::from_slice(&stored(world, miner, "meta.json")).unwrap();
    assert_eq!((&meta["transport"], &meta["bytes"]), (&"hub".into(), &told.bytes.into()));

    // Nothing is asked twice, nothing with a token, and after the first answer only by the whole id.
    sleep(A_WHILE).await;
    let asked = scene.hub.requests();
    assert_eq!(asked.len(), 4, "{asked:#?}");
    assert!(asked.iter().all(|request| request.authorization.is_none()));
    assert!(asked[1..].iter().all(|request| request.path.contains(&scene.commit)), "{asked:#?}");
    // The miner's own upload comes too late, and is told so.
    assert_refused(world.submit_honestly(miner).await, 409, "already_submitted").await;
}

#[tokio::test]
async fn safetensors_is_preferred_and_a_pt_is_taken() {
    let (one, two) = (miner(1), Miner::new(2, "miner1_g0.pt"));
    let hub = TestHub::start().await.unwrap();
    let world = World::with(&[&one, &two], config(&hub)).await;
    let readme = ("README.md", b"# a model".to_vec());
    let files =
        [(PT, bytes(&two)), (SAFE, bytes(&one)), ("a/b/c.pt", b"1".to_vec()), readme.clone()];
    let both = hub.commit("one/both", &files).unwrap();
    let pt = hub.commit("two/pt", &[readme, (PT, bytes(&two))]).unwrap();
    name(&world, 0, "one/both", &both).await;
    name(&world, 1, "two/pt", &pt).await;
    until_stored(&world, 2).await;
    assert_eq!(stored(&world, &one, SAFE), bytes(&one));
    assert_eq!(stored(&world, &two, PT), bytes(&two));
}

#[tokio::test]
async fn files_are_fetched_until_scores_are_final_and_not_after() {
    let scene = Scene::new().await;
    let world = &scene.world;
    world.change(|view| view.block = ROUND + 70).await;
    scene.begin().await;
    sleep(A_WHILE).await;
    assert_eq!(scene.hub.requests(), [], "Merge has begun");
    // The last block of Validate.
    world
        .change(|view| {
            view.block = ROUND + 69;
            view.round.as_mut().unwrap().uploads_open = false;
        })
        .await;
    until_stored(world, 1).await;
}

#[tokio::test]
async fn a_hub_that_is_switched_off_is_not_asked() {
    let scene = Scene::with(|hub| hub.enabled = false).await;
    scene.begin().await;
    sleep(A_WHILE).await;
    assert_eq!(scene.hub.requests(), []);
}

#[tokio::test]
async fn two_hundred_cuts_end_in_one_right_submission() {
    const CUTS: usize = 200;
    let seed = 7;
    let scene = Scene::with(|hub| hub.tries = 3).await;
    let size = bytes(&scene.miner).len();
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let mut cuts = 0;
    scene.hub.misbehave(move |request| {
        if !request.elsewhere || cuts == CUTS {
            return Mischief::None;
        }
        cuts += 1;
        // Some bring nothing at all; all together less than the file.
        let most = u32::try_from(size / CUTS).unwrap();
        let after = if cuts % 9 == 0 { 0 } else { most / 2 + chance.next_u32() % (most / 2) };
        Mischief::Cut(after as usize)
    });
    scene.begin().await;
    until_stored(&scene.world, 1).await;
    assert_eq!(stored(&scene.world, &scene.miner, SAFE), bytes(&scene.miner), "seed {seed}");
    let asked = scene.hub.file_requests();
    assert_eq!(asked.len(), CUTS + 1);
    // Each goes on where the last one ended, of the same state of the file.
    let starts: Vec<u64> = asked.iter().map(|request| request.from.unwrap_or(0)).collect();
    assert!(starts.is_sorted(), "{starts:?}");
    assert!(asked[20..].iter().all(|request| request.if_range.is_some()));
}

#[tokio::test]
async fn a_server_without_ranges_or_tags_sends_the_whole_again_and_nothing_is_taken_twice() {
    let scene = Scene::new().await;
    let mut sent = 0;
    scene.hub.misbehave(move |request| {
        sent += usize::from(request.elsewhere);
        match sent {
            0 => Mischief::None,
            1 => Mischief::Cut(50_000),
            _ => Mischief::IgnoreRange,
        }
    });
    scene.begin().await;
    until_stored(&scene.world, 1).await;
    assert_eq!(stored(&scene.world, &scene.miner, SAFE), bytes(&scene.miner));
    assert_eq!(scene.hub.file_requests()[1].from, Some(50_000));
}

#[tokio::test]
async fn a_connection_that_stalls_or_hangs_up_is_left_and_gone_on_from() {
    let scene = Scene::with(|hub| hub.timeout = Duration::from_millis(200)).await;
    let mut sent = 0;
    scene.hub.misbehave(move |request| {
        sent += usize::from(request.elsewhere);
        match (request.elsewhere, sent) {
            (true, 1) => Mischief::Stall(40_000),
            (true, 2) => Mischief::HangUp,
            _ => Mischief::None,
        }
    });
    scene.begin().await;
    until_stored(&scene.world, 1).await;
    let asked = scene.hub.file_requests();
    assert_eq!(
        asked.iter().map(|request| request.from).collect::<Vec<_>>(),
        [None, Some(40_000), Some(40_000)]
    );
}

#[tokio::test]
async fn a_hub_that_is_busy_is_asked_again_after_its_time() {
    let scene = Scene::new().await;
    let mut busy = 3;
    scene.hub.misbehave(move |_| match busy {
        0 => Mischief::None,
        _ => {
            busy -= 1;
            Mischief::Status(429, vec![("Retry-After", "0".to_owned())])
        }
    });
    scene.begin().await;
    until_stored(&scene.world, 1).await;
    assert_eq!(scene.hub.requests().len(), 7);
}

#[tokio::test]
async fn a_hub_that_knows_no_short_names_is_searched_and_several_commits_are_none() {
    let scene = Scene::new().await;
    let (world, hub) = (&scene.world, &scene.hub);
    let file = [(SAFE, bytes(&scene.miner))];
    for other in 0..7 {
        hub.commit(REPO, &[("README.md", vec![other])]).unwrap();
    }
    hub.misbehave(|request| match request.path.contains("/revision/") {
        true => Mischief::Status(404, vec![("X-Error-Code", "RevisionNotFound".to_owned())]),
        false => Mischief::None,
    });
    scene.begin().await;
    until_stored(world, 1).await;
    assert!(hub.requests().iter().filter(|r| r.path.contains("/commits/")).count() > 1);

    let other = miner(2);
    let world = World::with(&[&other], config(hub)).await;
    for last in ['0', '1'] {
        hub.commit_as("twin/model", &format!("abcdef1{}", last.to_string().repeat(33)), &file)
            .unwrap();
    }
    hub.misbehave(|_| Mischief::None);
    name(&world, 0, "twin/model", "abcdef1").await;
    until_told(&world, "hub_no_commit").await;
}
