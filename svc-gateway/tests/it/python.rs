//! The routes as Python's `requests` drives them, which is what today's miners are written with.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
};

use checkpoint::{Format, SliceId};
use domain::ExpertGroup;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use svc_gateway::Config;
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::common::{Miner, ROUND, World, published};

fn python() -> PathBuf {
    if let Some(python) = env::var_os("CONNITO_PYTHON") {
        return python.into();
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
    if own.exists() { own } else { "python3".into() }
}

/// Runs a script of `tests/python` with a task, and gives what it prints. Without Python and its packages the
/// test fails: `make setup` brings them.
async fn run(script: &str, task: &Value) -> Value {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python");
    let python = python();
    let mut child = Command::new(&python)
        .arg(scripts.join(script))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {}: {e}; run `make setup`", python.display()));
    let mut input = child.stdin.take().unwrap();
    input.write_all(task.to_string().as_bytes()).await.unwrap();
    drop(input);
    let output = child.wait_with_output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}\nwithout its packages: `make setup`");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a script must know of the world.
fn task(world: &World, miner: &Miner, number: u8, token: Option<&str>, how: &str) -> Value {
    let folder = world.disk.path().join("python");
    std::fs::create_dir_all(&folder).unwrap();
    json!({
        "url": world.url,
        "validator": world.validator,
        "seed": hex::encode([number; 32]),
        "file": miner.file,
        "model_hash": miner.hash,
        "round": ROUND,
        "folder": folder,
        "token": token,
        "how": how,
    })
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[tokio::test]
async fn a_miner_in_python_downloads_submits_and_reads_its_receipts() {
    let miner = Miner::new(7, "miner1_g0.safetensors");
    let config = Config { auth_token: Some("secret".into()), ..Config::default() };
    let world = World::with(&[&miner], config).await;
    let status = format!("{}/status", world.url);
    world
        .until("the gateway knows where the chain stands", || async {
            let response = world.http.get(&status).bearer_auth("secret").send().await;
            response.is_ok_and(|response| response.status() == 200)
        })
        .await;
    let got = run("miner.py", &task(&world, &miner, 7, Some("secret"), "form")).await;

    let slices = [SliceId::Group(ExpertGroup(0)), SliceId::Shared];
    let files = slices.into_iter().flat_map(|slice| {
        [Format::Pt, Format::Safetensors].map(|format| (slice.file_name(format), slice, format))
    });
    for (found, (name, slice, format)) in got["downloads"].as_array().unwrap().iter().zip(files) {
        assert_eq!(found["name"], name);
        assert_eq!(found["sha256"], sha256(&published(&world, slice, format)));
    }
    let states: Vec<&Value> =
        got["receipts"].as_array().unwrap().iter().map(|receipt| &receipt["state"]).collect();
    assert_eq!(states[0], "pending");
    assert_eq!(states[2], "stored");
    let key = format!("submissions/{ROUND}/{}/miner1_g0.safetensors", miner.hotkey);
    assert_eq!(got["stored"]["stored_path"], key);
    let stored = std::fs::read(world.disk.path().join("artifacts").join(key)).unwrap();
    assert_eq!(stored, std::fs::read(&miner.file).unwrap());
    assert_eq!(world.scheduler.submissions().len(), 1);
    let told = vec![(miner.hotkey.to_string(), "hash_mismatch".to_owned())];
    world.until("the refusal is told", || async { world.scheduler.refusals() == told }).await;
}

#[tokio::test]
async fn a_miner_in_python_sends_its_file_in_pieces_and_goes_on_where_it_was() {
    let miner = Miner::new(8, "miner2_g0.pt");
    // Its receipts are asked for again and again.
    let config = Config { burst_per_hotkey: 1000, ..Config::default() };
    let world = World::with(&[&miner], config).await;
    let got = run("miner.py", &task(&world, &miner, 8, None, "tus")).await;
    let states: Vec<&Value> =
        got["receipts"].as_array().unwrap().iter().map(|receipt| &receipt["state"]).collect();
    assert_eq!(states[2..], ["receiving", "stored"]);
    let key = format!("submissions/{ROUND}/{}/miner2_g0.pt", miner.hotkey);
    assert_eq!(got["stored"]["stored_path"], key);
    let stored = std::fs::read(world.disk.path().join("artifacts").join(key)).unwrap();
    assert_eq!(stored, std::fs::read(&miner.file).unwrap());
    assert_eq!(world.scheduler.submissions().len(), 1);
}
