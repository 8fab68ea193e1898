//! Files that miners left on a hub, which gives them in its own way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kit::Common;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use serde_json::Value;
use store::Store;
use svc_gateway::{Config, HubConfig};
use testkit::{HubRequest, Mischief, TestHub};
use tokio::{io::AsyncWriteExt as _, time::sleep};

use crate::common::{Miner, ROUND, World, assert_refused};

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
    Config { hub, upload_lease: Duration::from_secs(2), ..Config::default() }
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
async fn a_miner_whose_place_is_none_is_told_once_and_by_one_gateway() {
    let honest = || vec![(SAFE, bytes(&miner(1)))];
    let nan = Miner::new(1, "hostile_nan.pt");
    let cases: Vec<(&str, Vec<(&str, Vec<u8>)>, &str)> = vec![
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
