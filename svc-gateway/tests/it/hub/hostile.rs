//! A hub, or a miner through it, that does not do what it should: nothing of it is taken, and the right one is
//! told.

use std::time::Duration;

use svc_gateway::HubConfig;
use testkit::{HubRequest, Mischief, TestHub};
use tokio::time::sleep;

use super::{
    A_WHILE, REPO, SAFE, Scene, attempts, bytes, config, hub_config, miner, next_block, stored,
    until_stored,
};
use crate::common::{Miner, ROUND, World};

#[tokio::test]
async fn a_miner_whose_place_is_none_is_told_once_and_by_one_gateway() {
    type Files = Vec<(&'static str, Vec<u8>)>;
    let honest = || -> Files { vec![(SAFE, bytes(&miner(1)))] };
    let nan = Miner::new(1, "hostile_nan.pt");
    let cases: Vec<(&str, Files, &str)> = vec![
        ("nobody/here", Vec::new(), "hub_missing"),
        ("no/commit", honest(), "hub_no_commit"),
        ("no-owner", Vec::new(), "hub_place"),
        ("../../api", Vec::new(), "hub_place"),
        ("not/hex", honest(), "hub_place"),
        ("no/files", vec![("README.md", vec![1; 9])], "hub_no_file"),
        ("two/files", vec![("a.pt", vec![1; 9]), ("b.pt", vec![2; 9])], "hub_no_file"),
        ("another/s", vec![(SAFE, bytes(&miner(2)))], "hash_mismatch"),
        ("not/finite", vec![(SAFE, bytes(&nan))], "non_finite"),
        ("nothing/in-it", vec![(SAFE, Vec::new())], "malformed"),
        ("too/large", vec![(SAFE, vec![0; 4 << 20])], "too_large"),
    ];
    let hub = TestHub::start().await.unwrap();
    let miners: Vec<_> =
        (1..).take(cases.len()).map(|number| Miner::new(number, "miner0_g0.safetensors")).collect();
    let world = World::with(&miners.iter().collect::<Vec<_>>(), config(&hub)).await;
    let places = cases.iter().map(|(repo, files, _)| {
        let commit = match files.is_empty() {
            true => "0123abc".to_owned(),
            false => hub.commit(repo, files).unwrap(),
        };
        match *repo {
            "no/commit" => (*repo, "fffffff".to_owned()),
            "not/hex" => (*repo, "main".to_owned()),
            _ => (*repo, commit[..7].to_owned()),
        }
    });
    let places: Vec<_> = places.map(|(repo, digits)| (repo.to_owned(), digits)).collect();
    world
        .change(|view| {
            let roster = view.round.as_mut().unwrap().miners.iter_mut();
            for (line, (repo, digits)) in roster.zip(places) {
                (line.hub_repo, line.hub_revision) = (repo, digits);
            }
        })
        .await;
    let told = || async { world.scheduler.refusals().len() >= cases.len() };
    world.until("everybody is told", told).await;
    let asked = hub.requests().len();
    // Another gateway does not ask again, and neither does this one at the next block.
    world.gateway("data2", config(&hub)).await;
    next_block(&world).await;
    sleep(A_WHILE).await;
    assert_eq!(hub.requests().len(), asked);
    let mut expected: Vec<_> = (miners.iter().zip(&cases))
        .map(|(miner, (.., reason))| (miner.hotkey.to_string(), (*reason).to_owned()))
        .collect();
    let mut refusals = world.scheduler.refusals();
    expected.sort();
    refusals.sort();
    assert_eq!(refusals, expected);
    world.until_no_traces().await;
    // They may still upload.
    for miner in &miners {
        assert_eq!(world.submit_honestly(miner).await.status(), 200);
    }
}

#[tokio::test]
async fn what_the_hub_does_wrong_is_never_told_as_the_miner_s_fault() {
    let files = |request: &HubRequest| request.elsewhere;
    let api = |request: &HubRequest| request.path.starts_with("/api/");
    let tree = |request: &HubRequest| request.path.contains("/tree/");
    type When = fn(&HubRequest) -> bool;
    let status =
        |status, code: &str| Mischief::Status(status, vec![("X-Error-Code", code.to_owned())]);
    let redirect = |to: &str| Mischief::Redirect(to.to_owned());
    let says = |text: &str| Mischief::Says(text.to_owned());
    let cases: Vec<(When, Mischief, &str)> = vec![
        (api, status(503, ""), "hub_unreachable"),
        (api, status(500, ""), "hub_unreachable"),
        (api, status(418, ""), "hub_answer"),
        (api, status(403, ""), "hub_answer"),
        (api, Mischief::HangUp, "hub_unreachable"),
        (api, Mischief::Circle, "hub_answer"),
        (api, says("not JSON"), "hub_answer"),
        (api, says(r#"{"sha":"0123abc"}"#), "hub_answer"),
        (tree, Mischief::Endless, "hub_answer"),
        (tree, Mischief::PageElsewhere, "hub_answer"),
        (tree, Mischief::Says(" ".repeat(5 << 20)), "hub_answer"),
        (files, status(404, ""), "hub_unreachable"),
        (files, status(403, ""), "hub_unreachable"),
        (files, status(416, ""), "hub_unreachable"),
        (files, Mischief::Cut(0), "hub_unreachable"),
        (files, Mischief::WrongLength(5), "hub_answer"),
        (files, Mischief::TooMuch(5), "hub_answer"),
        (files, Mischief::OtherBytes, "hub_changed"),
        (files, redirect("http://169.254.169.254/latest/meta-data"), "hub_answer"),
        (files, redirect("http://10.0.0.1/"), "hub_answer"),
        (files, redirect("http://[fd00::1]/"), "hub_answer"),
        (files, redirect("http://2852039166/"), "hub_answer"),
        (files, redirect("file:///etc/passwd"), "hub_answer"),
        (files, redirect("http://"), "hub_answer"),
    ];
    let scene = Scene::with(|hub| hub.tries = 2).await;
    let world = &scene.world;
    scene.hub.misbehave(|_| Mischief::HangUp);
    scene.begin().await;
    let mut round = ROUND;
    for (when, mischief, reason) in cases {
        let what = format!("{mischief:.80?}");
        scene.hub.misbehave(move |request| match when(request) {
            true => mischief.clone(),
            false => Mischief::None,
        });
        // Another round, where nothing was tried yet.
        round += 472;
        world
            .change(|view| {
                view.block = round + 1;
                view.round.as_mut().unwrap().round_id = round;
            })
            .await;
        world.until(&what, || async { !attempts(world, round).await.is_empty() }).await;
        assert_eq!(attempts(world, round).await, [(reason.to_owned(), false)], "{what}");
        world.until_no_traces().await;
        assert_eq!(world.scheduler.refusals(), [], "{what}");
        assert_eq!(world.scheduler.submissions(), [], "{what}");
    }
    // It comes to its senses: so does the file, at the next block.
    scene.hub.misbehave(|_| Mischief::None);
    next_block(world).await;
    until_stored(world, 1).await;
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_not_put_together_from_two() {
    for (mischief, reason) in [
        (Mischief::Etag("\"another\""), "hub_changed"),
        (Mischief::OtherBytes, "hub_changed"),
        (Mischief::WrongRange, "hub_answer"),
    ] {
        let scene = Scene::with(|hub| hub.attempts = 1).await;
        let mut sent = 0;
        scene.hub.misbehave(move |request| {
            sent += usize::from(request.elsewhere);
            match (request.elsewhere, sent) {
                (true, 1) => Mischief::Cut(60_000),
                (true, _) => mischief.clone(),
                (false, _) => Mischief::None,
            }
        });
        scene.begin().await;
        let tried = || async { !attempts(&scene.world, ROUND).await.is_empty() };
        scene.world.until("it was tried", tried).await;
        assert_eq!(attempts(&scene.world, ROUND).await, [(reason.to_owned(), false)]);
        assert_eq!(scene.hub.file_requests()[1].from, Some(60_000));
        assert_eq!(scene.world.scheduler.submissions(), []);
        assert_eq!(scene.world.scheduler.refusals(), []);
        scene.world.until_no_traces().await;
    }
}

#[tokio::test]
async fn a_redirect_to_the_gateway_itself_brings_nothing_and_no_token() {
    let scene = Scene::with(|hub| {
        hub.token = Some("hf_secret".into());
        hub.attempts = 1;
        hub.tries = 2;
    })
    .await;
    let to = format!("{}/get-checkpoint", scene.world.url);
    scene.hub.misbehave(move |request| match request.path.contains("/resolve/") {
        true => Mischief::Redirect(to.clone()),
        false => Mischief::None,
    });
    scene.begin().await;
    let tried = || async { !attempts(&scene.world, ROUND).await.is_empty() };
    scene.world.until("it was tried", tried).await;
    assert_eq!(attempts(&scene.world, ROUND).await, [("hub_unreachable".to_owned(), false)]);
    assert_eq!(scene.world.scheduler.submissions(), []);
    assert_eq!(scene.world.scheduler.refusals(), []);
    assert!(scene.hub.requests().iter().all(|request| request.authorization.is_none()));
}

#[tokio::test]
async fn the_token_is_sent_after_a_refusal_only_and_to_the_hub_only() {
    let scene = Scene::with(|hub| hub.token = Some("hf_secret".into())).await;
    scene.hub.misbehave(|request| match request.elsewhere {
        true => Mischief::None,
        false => Mischief::NeedsToken("hf_secret"),
    });
    scene.begin().await;
    until_stored(&scene.world, 1).await;
    let asked = scene.hub.requests();
    let tokens: Vec<_> = asked.iter().map(|r| (r.elsewhere, r.authorization.is_some())).collect();
    assert_eq!(tokens[..2], [(false, false), (false, true)]);
    assert!(tokens[2..].iter().all(|(elsewhere, token)| elsewhere != token), "{asked:#?}");
}

#[tokio::test]
async fn a_token_that_the_hub_does_not_take_is_not_the_miner_s_fault() {
    let scene = Scene::with(|hub| hub.token = Some("old".into())).await;
    scene.hub.misbehave(|_| Mischief::NeedsToken("new"));
    scene.begin().await;
    let tried = || async { !attempts(&scene.world, ROUND).await.is_empty() };
    scene.world.until("it was tried", tried).await;
    assert_eq!(attempts(&scene.world, ROUND).await, [("hub_token".to_owned(), false)]);
    assert_eq!(scene.world.scheduler.refusals(), []);
}

#[tokio::test]
async fn attempts_are_some_blocks_apart_and_end() {
    let change = |hub: &mut HubConfig| {
        hub.attempts = 2;
        hub.tries = 1;
    };
    let scene = Scene::with(change).await;
    let world = &scene.world;
    scene.hub.misbehave(|_| Mischief::Status(500, Vec::new()));
    scene.begin().await;
    for attempts in [1, 2, 2, 2, 2] {
        sleep(A_WHILE).await;
        assert_eq!(
            scene.hub.requests().len(),
            attempts,
            "in block {}",
            world.scheduler.view().unwrap().block
        );
        next_block(world).await;
    }
    // What another gateway knows too.
    world.gateway("data2", hub_config(&scene.hub, change)).await;
    next_block(world).await;
    sleep(A_WHILE).await;
    assert_eq!(scene.hub.requests().len(), 2);
    assert_eq!(world.scheduler.refusals(), []);
}

#[tokio::test]
async fn a_branch_that_is_named_like_a_commit_leads_nowhere_else() {
    let scene = Scene::new().await;
    let other = scene.hub.commit(REPO, &[(SAFE, bytes(&miner(2)))]).unwrap();
    scene.hub.misbehave(move |request| match request.path.contains("/revision/") {
        true => Mischief::Says(format!(r#"{{"sha":"{other}"}}"#)),
        false => Mischief::None,
    });
    scene.begin().await;
    until_stored(&scene.world, 1).await;
    assert_eq!(stored(&scene.world, &scene.miner, SAFE), bytes(&scene.miner));
}

#[tokio::test]
async fn a_file_that_takes_longer_than_it_may_is_given_up_and_leaves_nothing() {
    let scene = Scene::with(|hub| {
        hub.file_timeout = Duration::from_millis(300);
        hub.attempts = 1;
    })
    .await;
    scene.hub.misbehave(|request| match request.elsewhere {
        true => Mischief::Trickle(Duration::from_millis(2)),
        false => Mischief::None,
    });
    scene.begin().await;
    let tried = || async { !attempts(&scene.world, ROUND).await.is_empty() };
    scene.world.until("it was tried", tried).await;
    assert_eq!(attempts(&scene.world, ROUND).await, [("hub_too_slow".to_owned(), false)]);
    scene.world.until_no_traces().await;
    assert_eq!(scene.world.scheduler.submissions(), []);
    assert_eq!(scene.world.scheduler.refusals(), []);
}

#[tokio::test]
async fn a_limit_on_bytes_holds_a_file_back() {
    type Limit = fn(&mut HubConfig) -> &mut u64;
    let limits: [Limit; 2] =
        [|hub| &mut hub.bytes_per_second, |hub| &mut hub.bytes_per_second_per_miner];
    for limit in limits {
        let scene = Scene::with(|hub| {
            // It would take two minutes.
            *limit(hub) = 2_000;
            hub.file_timeout = Duration::from_secs(1);
            hub.attempts = 1;
        })
        .await;
        scene.begin().await;
        let tried = || async { !attempts(&scene.world, ROUND).await.is_empty() };
        scene.world.until("it was tried", tried).await;
        assert_eq!(attempts(&scene.world, ROUND).await, [("hub_too_slow".to_owned(), false)]);
        assert_eq!(scene.world.scheduler.submissions(), []);
    }
}

#[tokio::test]
async fn what_is_known_of_an_upload_is_not_forgotten_for_a_place_that_is_none() {
    let scene = Scene::new().await;
    scene
        .world
        .change(|view| {
            let line = &mut view.round.as_mut().unwrap().miners[0];
            (line.outcome, line.reason) = ("refused".into(), "non_finite".into());
            (line.hub_repo, line.hub_revision) = ("nobody/here".into(), "0123abc".into());
        })
        .await;
    let tried = || async { !attempts(&scene.world, ROUND).await.is_empty() };
    scene.world.until("it was tried", tried).await;
    assert_eq!(attempts(&scene.world, ROUND).await, [("hub_missing".to_owned(), true)]);
    sleep(A_WHILE).await;
    assert_eq!(scene.world.scheduler.refusals(), []);
}
