//! `connito miner …` as a miner calls it: the program, its options, its wallet, and a real gateway.
#![cfg(test)]

#[expect(dead_code, unused_imports, reason = "the gateway's own tests use the rest of it")]
#[path = "../../../svc-gateway/tests/it/common/mod.rs"]
mod common;
#[expect(dead_code, reason = "the client's own tests use the rest of it")]
#[path = "../../client/tests/it/proxy.rs"]
mod proxy;

use std::{path::PathBuf, process::Stdio};

use common::{Miner, ROUND, World, published, vectors};
use proxy::{Cut, Proxy};
use serde_json::{Value, json};
use svc_gateway::Config;
use tokio::process::Command;

/// What a call of the program ended with.
struct Ended {
    good: bool,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{}\n{}", self.out, self.err))
    }
}

/// The program, with nothing of the environment that could mean something to it.
fn connito(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_connito"));
    command.arg("miner").args(args).stdin(Stdio::null()).kill_on_drop(true);
    for name in ["AUTH_TOKEN", "CONNITO_CONFIG", "CONNITO_GATEWAY", "CONNITO_WALLET_PASSWORD"] {
        command.env_remove(name);
    }
    command
}

async fn call(args: &[&str]) -> Ended {
    let output = connito(args).output().await.unwrap();
    Ended {
        good: output.status.success(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Writes the miner's wallet, and returns the folder of wallets.
fn wallet(world: &World, miner: &Miner) -> String {
    let wallets = world.disk.path().join("wallets");
    let file = wallets.join("default/hotkeys/default");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let key = json!({
        "ss58Address": miner.hotkey,
        "privateKey": format!("0x{}", hex::encode(miner.keys.secret.to_bytes())),
    });
    std::fs::write(file, key.to_string()).unwrap();
    wallets.to_str().unwrap().to_owned()
}

/// The miner's file where something may be left beside it.
fn own_copy(world: &World, miner: &Miner) -> PathBuf {
    let path = world.disk.path().join(miner.file.file_name().unwrap());
    std::fs::copy(&miner.file, &path).unwrap();
    path
}

#[tokio::test]
async fn a_miner_sees_where_the_validator_stands_without_a_wallet() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let text = call(&["status", "--gateway", &world.url]).await;
    assert!(text.good, "{}", text.err);
    for part in ["block 340: Submission, 15 blocks of it left", "round 336, submissions are taken"]
    {
        assert!(text.out.contains(part), "{}", text.out);
    }
    let data = call(&["status", "--gateway", &world.url, "--json"]).await.json();
    assert_eq!((&data["round"], &data["uploads_open"]), (&json!(ROUND), &json!(true)));
}

#[tokio::test]
async fn a_miner_downloads_a_slice_and_goes_on_with_what_was_there() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let wallets = wallet(&world, &miner);
    let whole = published(&world, checkpoint::SliceId::Shared, checkpoint::Format::Pt);
    let out = world.disk.path().join("shared.pt");
    let hash = world.manifest.slice(checkpoint::SliceId::Shared).unwrap().model_hash;
    std::fs::write(out.with_extension("pt.part"), &whole[..1000]).unwrap();
    std::fs::write(out.with_extension("pt.etag"), format!("\"{hash}-shared-pt\"")).unwrap();
    let out = out.to_str().unwrap();
    let args = ["download", "--gateway", &world.url, "--wallet-path", &wallets];
    let asked = ["--slice", "shared", "--format", "pt", "--out", out, "--json"];
    let done = call(&[&args[..], &asked].concat()).await;
    assert!(done.good, "{}", done.err);
    let data = done.json();
    assert_eq!((&data["resumed_from"], &data["bytes"]), (&json!(1000), &json!(whole.len())));
    assert_eq!(std::fs::read(out).unwrap(), whole);
    assert!(done.err.contains("1000 B of "), "{}", done.err);

    let none = call(&[&args[..], &["--slice", "77", "--out", out]].concat()).await;
    assert!(!none.good && none.out.is_empty());
    for part in ["no_slice", "what to do: "] {
        assert!(none.err.contains(part), "{}", none.err);
    }
}

#[tokio::test]
async fn a_miner_submits_once_and_asks_again_without_harm() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let wallets = wallet(&world, &miner);
    let (file, hash) = (own_copy(&world, &miner), miner.hash.to_hex());
    let args = ["submit", "--gateway", &world.url, "--wallet-path", &wallets, "--json"];
    let args = [&args[..], &["--hash", &hash, file.to_str().unwrap()]].concat();
    let done = call(&args).await;
    assert!(done.good, "{}", done.err);
    assert!(done.err.contains(&format!("model hash {hash}")), "{}", done.err);
    let data = done.json();
    assert_eq!((&data["result"], &data["transport"]), (&json!("stored"), &json!("tus")));
    assert_eq!(data["key"], format!("submissions/{ROUND}/{}/miner0_g0.pt", miner.hotkey));
    let again = call(&args).await;
    assert!(again.good, "{}", again.err);
    assert_eq!(again.json()["transport"], "earlier");
    assert_eq!(world.scheduler.submissions().len(), 1);
}

#[tokio::test]
async fn what_is_wrong_with_a_file_is_told_before_anybody_is_asked() {
    let nobody = "127.0.0.1:1";
    let file = vectors().join("model/hostile_nan.pt");
    let nan = call(&["submit", "--gateway", nobody, file.to_str().unwrap()]).await;
    assert!(!nan.good && nan.err.contains("reason: non_finite"), "{}", nan.err);

    let file = vectors().join("model/miner0_g0.pt");
    let other = "07".repeat(24);
    let args = ["submit", "--gateway", nobody, "--hash", &other, "--json", file.to_str().unwrap()];
    let wrong = call(&args).await;
    assert!(!wrong.good, "{}", wrong.out);
    assert_eq!(wrong.json()["reason"], "hash_mismatch");

    let missing = call(&["submit", "--gateway", nobody, "/none.pt"]).await;
    assert!(!missing.good && missing.err.contains("/none.pt"), "{}", missing.err);
}

#[tokio::test]
async fn a_refusal_ends_with_its_reason_and_what_to_do_about_it() {
    let (miner, stranger) = (Miner::new(1, "miner0_g0.pt"), Miner::new(2, "miner1_g0.pt"));
    let world = World::new(&[&miner]).await;
    let (wallets, file) = (wallet(&world, &stranger), own_copy(&world, &stranger));
    let args = ["submit", "--gateway", &world.url, "--wallet-path", &wallets];
    let refused = call(&[&args[..], &[file.to_str().unwrap()]].concat()).await;
    assert!(!refused.good && refused.out.is_empty());
    for part in ["reason: not_on_roster", "what to do: this hotkey is not a miner of the round"] {
        assert!(refused.err.contains(part), "{}", refused.err);
    }

    let nowhere = ["submit", "--gateway", "127.0.0.1:1", "--wallet-path", &wallets];
    let nowhere = call(&[&nowhere[..], &["--tries", "2", file.to_str().unwrap()]].concat()).await;
    assert!(!nowhere.good && nowhere.err.contains("reason: unreachable"), "{}", nowhere.err);
    let none = ["submission", "--gateway", &world.url, "--wallet-path", "/none"];
    let none = call(&none).await;
    assert!(!none.good && none.err.contains("/none/default/hotkeys/default"), "{}", none.err);
}

#[tokio::test]
async fn a_token_comes_by_the_environment() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let config = Config { auth_token: Some("secret".into()), ..Config::default() };
    let world = World::with(&[&miner], config).await;
    let args = ["status", "--gateway", &world.url];
    let without = call(&args).await;
    assert!(!without.good && without.err.contains("set AUTH_TOKEN"), "{}", without.err);
    let with = connito(&args).env("AUTH_TOKEN", "secret").output().await.unwrap();
    assert!(with.status.success());
}

#[tokio::test]
async fn a_submission_whose_process_is_killed_goes_on_with_the_next_one() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let (wallets, file) = (wallet(&world, &miner), own_copy(&world, &miner));
    let proxy = Proxy::start(&world.url).await;
    let mut first = Some(Cut::Up(200_000));
    proxy.cut(move || Some(first.take().unwrap_or(Cut::Down(0))));
    let args = ["submit", "--wallet-path", &wallets, "--json", file.to_str().unwrap()];
    let through = [&args[..], &["--gateway", &proxy.url, "--tries", "1000"]].concat();
    let mut killed = connito(&through).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    world.until("it is in mid-upload", || async { proxy.cuts() > 1 }).await;
    killed.kill().await.unwrap();
    let note = file.with_file_name(format!("miner0_g0.pt.{}.upload", world.validator));
    assert!(note.exists());

    let done = call(&[&args[..], &["--gateway", &world.url]].concat()).await;
    assert!(done.good, "{}", done.err);
    let data = done.json();
    assert!(data["resumed_from"].as_u64().unwrap() > 100_000, "{data}");
    assert!(!note.exists());
    assert_eq!(world.scheduler.submissions().len(), 1);
}
