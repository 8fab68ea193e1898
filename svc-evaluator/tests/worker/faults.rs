//! What goes wrong on our side, and what it costs: a job at most, never a miner's score.

use super::*;

/// A submission of the unchanged base, as a score that is to come.
async fn stored(world: &World, name: &str) -> wire::Job {
    let submission = world.fixture.submit(name, &world.fixture.altered(|_, _| {})).await;
    world.fixture.score(name, submission)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_in_mid_job_ends_it_and_the_next_one_is_done() {
    let mut world = World::start().await;
    let late = wire::Job { deadline_ms: 400, ..world.fixture.long("late") };
    world.scheduler.enqueue(late);
    world.scheduler.enqueue(world.fixture.job("next", JobKind::HeldOut));
    assert_eq!(world.failed("late").await.reason, "timeout");
    world.measured("next").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_vanish_or_change_in_the_store_are_never_held_against_the_miner() {
    let mut world = World::start().await;
    let names = ["vanished.pt", "cut.safetensors", "grown.pt", "flipped.safetensors"];
    for name in names {
        let job = stored(&world, name).await;
        let path = world.fixture.stored(&job.submission.as_ref().unwrap().key);
        let bytes = std::fs::read(&path).unwrap();
        // The stored file is shared with what was put.
        std::fs::remove_file(&path).unwrap();
        let mut changed = bytes.clone();
        match name {
            "cut.safetensors" => changed.truncate(bytes.len() / 2),
            "grown.pt" => changed.push(0),
            "flipped.safetensors" => changed[bytes.len() / 2] ^= 1,
            _ => changed.clear(),
        }
        if !changed.is_empty() {
            std::fs::write(&path, changed).unwrap();
        }
        world.scheduler.enqueue(job);
    }
    world.scheduler.enqueue(stored(&world, "whole.safetensors").await);
    for name in names {
        let failure = world.failed(name).await;
        assert_eq!(failure.reason, "evaluator_error", "{name}: {}", failure.detail);
    }
    world.measured("whole.safetensors").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_slice_that_is_not_what_its_manifest_says_is_ours_and_is_read_again() {
    let mut world = World::start().await;
    let job = world.fixture.job("baseline", JobKind::Baseline);
    let prefix = job.model.as_ref().unwrap().prefix.clone();
    let folder = world.fixture.stored(&prefix);
    let slice = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_str().unwrap().ends_with("expgroup_1.safetensors"))
        .unwrap();
    let whole = std::fs::read(&slice).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::remove_file(&slice).unwrap();
    std::fs::write(&slice, &flipped).unwrap();
    world.scheduler.enqueue(job.clone());
    assert_eq!(world.failed("baseline").await.reason, "evaluator_error");
    std::fs::remove_file(&slice).unwrap();
    std::fs::write(&slice, &whole).unwrap();
    world.scheduler.enqueue(job);
    world.measured("baseline").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_of_ours_that_is_spoilt_is_not_the_miners_fault() {
    let mut world = World::start().await;
    let base = world.fixture.altered(|_, _| {});
    let submission = world.fixture.submit("good.safetensors", &base).await;
    let score = world.fixture.score("score", submission);
    let prefix = score.model.as_ref().unwrap().prefix.clone();
    let slice = std::fs::read_dir(world.fixture.stored(&prefix))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_str().unwrap().ends_with("expgroup_1.safetensors"))
        .unwrap();
    let whole = std::fs::read(&slice).unwrap();
    let header = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let cut = whole[..whole.len() / 2].to_vec();
    let mut infinite = whole.clone();
    infinite[header..header + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    // Before the model was ever loaded: nothing has looked at its slice yet.
    for spoilt in [cut, infinite, b"garbage".to_vec()] {
        std::fs::remove_file(&slice).unwrap();
        std::fs::write(&slice, &spoilt).unwrap();
        world.scheduler.enqueue(score.clone());
        let failure = world.failed("score").await;
        assert_eq!(failure.reason, "evaluator_error", "{}", failure.detail);
        assert!(failure.detail.contains("slice"), "{}", failure.detail);
    }
    std::fs::remove_file(&slice).unwrap();
    std::fs::write(&slice, &whole).unwrap();
    world.scheduler.enqueue(score);
    world.measured("score").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_that_are_missing_are_data_unavailable_until_they_are_there() {
    let (scheduler, results) = FakeScheduler::new();
    let url = scheduler.serve(ANY, &Shutdown::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("late");
    let mut world = World::with_config(scheduler, results, url, |config| {
        config.corpus = folder.clone();
    })
    .await;
    world.scheduler.enqueue(world.fixture.job("baseline", JobKind::Baseline));
    assert_eq!(world.failed("baseline").await.reason, "data_unavailable");
    std::fs::create_dir(&folder).unwrap();
    let lines: String = (0..40)
        .map(|n| format!("{{\"text\": \"The {n}th of many texts that come too late.\"}}\n"))
        .collect();
    std::fs::write(folder.join("late.jsonl"), lines).unwrap();
    world.scheduler.enqueue(world.fixture.job("again", JobKind::Baseline));
    assert_eq!(world.measured("again").await.baseline_losses.len(), 3);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_fit_is_refused_by_name_before_it_is_loaded() {
    let (scheduler, results) = FakeScheduler::new();
    let url = scheduler.serve(ANY, &Shutdown::default()).await;
    let mut world = World::with_config(scheduler, results, url, |config| {
        config.memory_limit = 1 << 20;
    })
    .await;
    // Again and again: it is not the device that is broken.
    for job in ["first", "second", "third"] {
        world.scheduler.enqueue(world.fixture.job(job, JobKind::Baseline));
        let failure = world.failed(job).await;
        assert_eq!(failure.reason, "out_of_memory");
        assert!(failure.detail.contains("1048576 are available"), "{}", failure.detail);
    }
    let status = world.status(|status| status.failed == 3).await;
    assert!(status.base_hash.is_empty() && status.memory.is_empty());
    world.stop().await;
}
