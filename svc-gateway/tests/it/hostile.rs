//! Files that mean harm: each is refused for what it is, and leaves nothing.

use checkpoint::{Limits, model_hash, open};
use domain::ModelHash;

use crate::common::{Miner, World, assert_refused, vectors};

/// The hash of a file, where it can be read that far: a hostile miner commits to what it sends.
fn hash_of(file: &std::path::Path) -> Option<ModelHash> {
    model_hash(&open(file, Limits::default()).ok()?).ok()
}

#[tokio::test]
async fn every_hostile_file_of_the_vectors_is_refused_by_name() {
    let expected = [
        ("hostile_nan.pt", "non_finite"),
        ("hostile_inf.pt", "non_finite"),
        ("hostile_foreign_expert.pt", "foreign_tensor"),
        ("hostile_shared_weights.pt", "shared_weights"),
        ("hostile_wrong_shape.pt", "wrong_shape"),
        ("hostile_missing_tensor.pt", "missing_tensor"),
        ("hostile_exec.pt", "forbidden_pickle"),
        ("hostile_truncated.pt", "malformed"),
        ("hostile_garbage.pt", "malformed"),
        ("hostile_zero.pt", "malformed"),
        ("hostile_empty.pt", "malformed"),
        ("hostile_header.safetensors", "malformed"),
    ];
    for entry in std::fs::read_dir(vectors().join("model")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = expected.iter().any(|(file, _)| *file == name);
        assert!(known || !name.starts_with("hostile_"), "{name} is not in the table");
    }
    let pwned = std::env::temp_dir().join("connito_pwned");
    let _ = std::fs::remove_file(&pwned);
    for (file, reason) in expected {
        let mut miner = Miner::new(1, file);
        if let Some(hash) = hash_of(&miner.file) {
            miner.hash = hash;
        }
        let world = World::new(&[&miner]).await;
        let response = world.submit_honestly(&miner).await;
        eprintln!("{file}");
        assert_refused(response, 400, reason).await;
        world.until_no_traces().await;
        assert!(world.scheduler.submissions().is_empty());
        let refusals = vec![(miner.hotkey.to_string(), reason.to_owned())];
        world
            .until("the refusal is reported", || async { world.scheduler.refusals() == refusals })
            .await;
    }
    assert!(!pwned.exists(), "a pickle was executed");
}

#[tokio::test]
async fn a_sound_file_of_another_hash_than_the_committed_one_is_refused() {
    let mut miner = Miner::new(1, "miner0_g0.pt");
    miner.hash = ModelHash([9; 24]);
    let world = World::new(&[&miner]).await;
    assert_refused(world.submit_honestly(&miner).await, 400, "hash_mismatch").await;
    world.until_no_traces().await;
}

#[tokio::test]
async fn a_sound_file_of_another_group_is_refused() {
    let miner = Miner::new(1, "miner0_g1.pt");
    let world = World::new(&[&miner]).await;
    let response = world.submit_honestly(&miner).await;
    assert_eq!(response.status(), 400);
    world.until_no_traces().await;
}

#[tokio::test]
async fn after_a_refused_file_the_miner_may_send_the_right_one_but_must_sign_again() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let fields = world.fields(&miner);
    let garbage = vectors().join("model/hostile_garbage.pt");
    let response = world.submit(fields.clone(), &garbage, "m.pt").await;
    assert_refused(response, 400, "malformed").await;
    let replayed = world.submit(fields, &miner.file, "m.pt").await;
    assert_refused(replayed, 403, "signature_reused").await;
    assert_eq!(world.submit_honestly(&miner).await.status(), 200);
}
