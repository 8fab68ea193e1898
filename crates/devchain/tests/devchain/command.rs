//! The chain as a command.

use std::path::Path;

use clap::Parser as _;
use devchain::{Args, development_key, run};
use tokio_util::sync::CancellationToken;

use crate::client::*;

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

fn args(list: &[&str]) -> Result<Args, clap::Error> {
    let list = std::iter::once("devchain").chain(list.iter().copied());
    Command::try_parse_from(list).map(|command| command.args)
}

/// Three free ports in a row.
fn ports() -> u16 {
    for _ in 0..100 {
        let first = std::net::TcpListener::bind(anywhere()).unwrap();
        let port = first.local_addr().unwrap().port();
        let next = |n: u16| std::net::TcpListener::bind(("127.0.0.1", port.checked_add(n)?)).ok();
        if next(1).is_some() && next(2).is_some() {
            return port;
        }
    }
    panic!("no three free ports in a row");
}

async fn connect(port: u16) -> Client {
    let url = format!("ws://127.0.0.1:{port}");
    within(async {
        while subxt::rpcs::RpcClient::from_insecure_url(&url).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    Client::connect(&url).await
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn a_whole_network_runs_is_saved_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (wallets, state) = (folder.path().join("wallets"), folder.path().join("chain.state"));
    let script = folder.path().join("script.toml");
    std::fs::write(&script, "[[at]]\nblock = 2\nnode = 2\nlag = 1\n").unwrap();
    let port = ports();
    let listen = format!("127.0.0.1:{port}");
    let first = args(&[
        "--listen",
        &listen,
        "--block-time",
        "60ms",
        "--validators",
        "2",
        "--wallets",
        text(&wallets),
        "--nodes",
        "2",
        "--finality-lag",
        "1",
        "--keep-states",
        "100",
        "--script",
        text(&script),
        "--save",
        text(&state),
    ])
    .unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(first, stop.clone()));
    let mut clients = Vec::new();
    for n in 0..3 {
        clients.push(connect(port + n).await);
    }
    for client in &clients {
        assert_eq!(client.block_hash(0).await, clients[0].block_hash(0).await);
    }
    let keys = ["Alice", "Bob"].map(|name| development_key(name).unwrap());
    assert_eq!(keys[0].public.to_bytes(), public("Alice"));
    // The validators may set weights, and their wallets have their keys.
    clients[2].follow("Alice", &set_weights(&[1], &[1], 0)).await.unwrap();
    for (n, key) in keys.iter().enumerate() {
        let wallet = wallets.join(format!("validator-{n}/hotkeys/default"));
        let wallet = std::fs::read_to_string(wallet).unwrap();
        assert!(wallet.contains(&hex::encode(key.secret.to_bytes())));
    }
    stop.cancel();
    within(running).await.unwrap().unwrap();

    let loaded =
        args(&["--listen", &listen, "--load", text(&state), "--block-time", "1h"]).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(loaded, stop.clone()));
    let client = connect(port).await;
    assert!(client.number(None).await > 0);
    let again = client.signed("Alice", &remark(b"again"), immortal(0)).await;
    assert_eq!(client.submit(&again).await.unwrap_err().0, 1010, "the nonce was used");
    stop.cancel();
    within(running).await.unwrap().unwrap();
}

#[test]
fn arguments_that_make_no_sense_together_are_refused() {
    for list in [
        &["--block-time", "250"][..],
        &["--block-time-ms", "250"],
        &["--wallets", "somewhere"],
        &["--load", "file", "--validators", "2"],
        &["--load", "file", "--seed", "00"],
        &["--endow", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"],
    ] {
        assert!(args(list).is_err(), "{list:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_shows_before_anything_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("garbage");
    std::fs::write(&garbage, [0xff; 64]).unwrap();
    let bad_script = folder.path().join("script.toml");
    std::fs::write(&bad_script, "[[at]]\nblock = 1\nnode = 1\nlag = 1\n").unwrap();
    for (list, part) in [
        (["--load", text(&garbage)], "not the state of a development chain"),
        (["--script", text(&garbage)], "is not text"),
        (["--script", text(&bad_script)], "node 1 of 1"),
        (["--script", "/no/such/script"], "/no/such/script"),
        (["--block-time", "1ms"], "below"),
        (["--metadata", text(&garbage)], "metadata"),
        (["--validators", "300"], "300 neurons"),
    ] {
        let args = args(&[&["--listen", "127.0.0.1:0"][..], &list[..]].concat()).unwrap();
        let error = within(run(args, CancellationToken::new())).await.unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(part), "{list:?}: {error}");
    }
}
