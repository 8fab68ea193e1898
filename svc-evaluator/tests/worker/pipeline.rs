//! What happens to a job while another one is on the device.

use super::*;

/// Starts with `long` on the device, for many seconds unless it is stopped.
async fn busy() -> World {
    let world = World::start().await;
    world.scheduler.enqueue(wire::Job { lease_ms: 300, ..world.fixture.long("long") });
    world.status(|status| status.job_id == "long").await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn while_one_job_runs_the_next_is_prepared_and_no_third_is_leased() {
    let world = busy().await;
    let submission =
        world.fixture.submit("next.safetensors", &world.fixture.altered(|_, _| {})).await;
    for id in ["first", "second", "third"] {
        world.scheduler.enqueue(world.fixture.score(id, submission.clone()));
    }
    world.status(|status| status.job_id == "long" && status.staged_job_id == "first").await;
    // Long enough for a loop that wants more.
    world.scheduler.renewed(world.scheduler.renewals.load(Ordering::SeqCst) + 6).await;
    assert_eq!(world.scheduler.held_by("under-test"), ["first", "long"]);
    assert_eq!(world.scheduler.most_held(), 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_lost_while_it_is_staged_makes_room_for_another_and_the_running_one_goes_on() {
    let world = busy().await;
    let submission =
        world.fixture.submit("next.safetensors", &world.fixture.altered(|_, _| {})).await;
    let score =
        |id: &str| wire::Job { lease_ms: 300, ..world.fixture.score(id, submission.clone()) };
    world.scheduler.enqueue(score("first"));
    world.status(|status| status.staged_job_id == "first").await;
    world.scheduler.take_away("first");
    world.scheduler.enqueue(score("second"));
    let status = world.status(|status| status.staged_job_id == "second").await;
    assert_eq!(status.job_id, "long");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_submission_is_told_while_another_job_still_runs() {
    let mut world = busy().await;
    let nan = world.fixture.altered(|_, values| values[0] = f32::NAN);
    let submission = world.fixture.submit("nan.pt", &nan).await;
    world.scheduler.enqueue(world.fixture.score("nan", submission));
    assert_eq!(world.invalid("nan").await.reason, "non_finite");
    world.status(|status| status.job_id == "long").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_gives_back_the_running_and_the_staged_job_at_once() {
    let mut world = busy().await;
    let submission =
        world.fixture.submit("next.safetensors", &world.fixture.altered(|_, _| {})).await;
    world.scheduler.enqueue(world.fixture.score("staged", submission));
    world.status(|status| status.staged_job_id == "staged").await;
    world.shutdown.cancel();
    let mut given_back = Vec::new();
    for _ in 0..2 {
        match world.results.next().await {
            (job, Outcome::Failure(failure)) => {
                assert_eq!(failure.reason, "worker_lost");
                given_back.push(job);
            }
            other => panic!("{other:?}"),
        }
    }
    given_back.sort();
    assert_eq!(given_back, ["long", "staged"]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn own_data_is_measured_for_both_models_on_batches_that_the_miner_could_know() {
    let mut world = World::start().await;
    let fixture = &world.fixture;
    let trained = fixture.trained();
    let submission = fixture.submit("honest.safetensors", &trained).await;
    let job = wire::Job { own_batches: 2, ..fixture.score("score", submission) };
    let own = fixture.own_batches(&fixture::miner(), 2).await;
    let mut model = fixture.load();
    let of_base = model.losses(&own.batches).unwrap();
    model.overlay(&trained).unwrap();
    let of_submission = model.losses(&own.batches).unwrap();
    world.scheduler.enqueue(job);
    let score = world.measured("score").await;
    assert_eq!(score.own_baseline_losses, of_base);
    assert_eq!(score.own_losses, of_submission);
    assert_ne!(score.batches_digest, own.digest);
    world.stop().await;
}

/// A rival that nothing reaches: every loss is far lower.
fn unbeatable(batches: usize) -> wire::Rival {
    let losses = (0..batches).map(|n| 0.001 * (n % 3) as f64).collect();
    wire::Rival { losses, confidence: 0.95, minimum_batches: 4 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_can_not_be_paid_any_more_is_stopped_and_says_so() {
    let mut world = World::start().await;
    let fixture = &world.fixture;
    let base = fixture.submit("base.safetensors", &fixture.altered(|_, _| {})).await;
    let score = |id: &str| wire::Job { batches: 12, ..fixture.score(id, base.clone()) };
    let rivalled = wire::Job { rival: Some(unbeatable(12)), own_batches: 2, ..score("rivalled") };
    world.scheduler.enqueue(rivalled);
    world.scheduler.enqueue(score("alone"));
    let rivalled = world.measured("rivalled").await;
    assert!(rivalled.out_of_reach);
    assert_eq!(rivalled.baseline_losses.len(), 12);
    assert!((4..12).contains(&rivalled.losses.len()), "{}", rivalled.losses.len());
    assert!(rivalled.own_losses.is_empty() && rivalled.own_baseline_losses.is_empty());
    let alone = world.measured("alone").await;
    assert!(!alone.out_of_reach);
    assert_eq!(alone.losses.len(), 12);
    assert_eq!(rivalled.losses[..], alone.losses[..rivalled.losses.len()]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rival_that_comes_with_a_renewal_counts_as_well() {
    let mut world = World::start().await;
    let fixture = &world.fixture;
    let base = fixture.submit("base.safetensors", &fixture.altered(|_, _| {})).await;
    let job = wire::Job { batches: 600, lease_ms: 600, ..fixture.score("late", base) };
    world.scheduler.set_rival(unbeatable(600));
    world.scheduler.enqueue(job);
    let late = world.measured("late").await;
    assert!(late.out_of_reach && late.losses.len() < 600, "{}", late.losses.len());
    world.stop().await;
}
