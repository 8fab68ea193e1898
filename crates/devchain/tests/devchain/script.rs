//! Knobs that a file turns.

use std::{path::Path, time::Duration};

use devchain::{DevChain, Genesis, METADATA, Production, Script, ScriptError};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use crate::client::*;

fn parse(text: &str) -> Result<Script, ScriptError> {
    Script::parse(text, Path::new("."))
}

fn refused(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// The example of the page about this chain.
fn example() -> String {
    let page = include_str!("../../../../docs/devchain.md");
    let (_, example) = page.split_once("```toml\n").unwrap();
    example.split_once("```").unwrap().0.to_owned()
}

#[tokio::test]
async fn the_example_of_the_page_does_what_the_page_says() {
    let production = Production::Interval(Duration::from_millis(100));
    let genesis = Genesis { production, finality_lag: 3, ..genesis() };
    let (chain, client) = start(genesis).await;
    let node = chain.add_node(anywhere()).await.unwrap();
    let behind = Client::connect(&node.url()).await;
    let script = parse(&example()).unwrap();
    assert_eq!(script.len(), 9);
    script.check(2).unwrap();
    within(chain.play(&script)).await.unwrap();
    chain.set_paused(true);
    let head = chain.head().await;
    let number = u64::from(head.unwrap().number);
    assert_eq!(behind.number(None).await, number - 3, "it is behind");
    let version = client.ask("state_getRuntimeVersion", &[]).await.unwrap();
    assert_eq!(version["specVersion"], 366);
    assert_eq!(client.finalized().await, number - 3, "finality is back");
    let entry =
        subxt::dynamic::storage::<Vec<subxt::dynamic::Value>, [u8; 32]>("SubtensorModule", "Keys");
    let keys = [NETUID, 4].map(|n| subxt::dynamic::Value::u128(n.into())).to_vec();
    let at = client.api.at_block(subxt::utils::H256(head.unwrap().hash)).await.unwrap();
    let hotkey = at.storage().fetch(entry, keys).await.unwrap().decode().unwrap();
    assert_eq!(hotkey, public("Charlie"), "a newcomer");
}

/// The rows of the page's tables of knobs are knobs, with arguments that are taken.
#[test]
fn every_knob_of_the_page_is_a_knob() {
    let page = include_str!("../../../../docs/devchain.md");
    let (_, knobs) = page.split_once("## Knobs of a node").unwrap();
    let (knobs, _) = knobs.split_once("## What a reorganisation does").unwrap();
    let mut count = 0;
    for row in knobs.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (knob, _) = row.split_once('`').unwrap();
        // Addresses are cut short on the page, and the file is not there.
        let knob = knob.replace("5…", "5FLSigC9HGRKVhB9FiEo4Y3koPsNmBmLJbpXg2mp1hXcS59Y");
        match parse(&format!("[[at]]\nblock = 1\n{knob}\n")) {
            Ok(script) => assert_eq!(script.len(), 1),
            Err(ScriptError::File { path, .. }) => assert!(path.ends_with("file.scale")),
            Err(error) => panic!("{knob}: {error}"),
        }
        count += 1;
    }
    assert!(count >= 30, "{count}");
}

#[test]
fn a_mistake_is_named_with_its_entry() {
    for (text, part) in [
        ("[[at]]\nblock = 1\nlag = 1\n[[at]]\nblock = 2\nlatncy = \"1s\"\n", "entry 2"),
        ("[[at]]\nblock = 1\nlatncy = \"1s\"\n", "latncy"),
        ("[[at]]\nblock = 1\n", "no knob"),
        ("[[at]]\nlag = 1\n", "`block` is missing"),
        ("[[at]]\nblock = -1\nlag = 1\n", "`block`"),
        ("[[at]]\nblock = 4294967296\nlag = 1\n", "`block`"),
        ("[[at]]\nblock = 1\nlag = 1\nmute = true\n", "more than one knob: lag, mute"),
        ("[[at]]\nblock = 1\nnode = 0\nfinality_lag = 1\n", "takes no `node`"),
        ("[[at]]\nblock = 1\nlatency = 5\n", "latency"),
        ("[[at]]\nblock = 1\nlatency = \"soon\"\n", "latency"),
        ("[[at]]\nblock = 1\nlie = \"everything\"\n", "everything"),
        ("[[at]]\nblock = 1\nkeep_states = \"some\"\n", "keep_states"),
        ("[[at]]\nblock = 1\ndrop_connections = false\n", "can only be `true`"),
        ("[[at]]\nblock = 1\nreorganise = { depth = 1 }\n", "extrinsics"),
        ("[[at]]\nblock = 1\nreorganise = { depth = 1, extrinsics = \"back\", x = 1 }\n", "x"),
        ("[[at]]\nblock = 1\nstake = { uid = 0, tao = -1.0 }\n", "stake"),
        ("[[at]]\nblock = 1\nstake = { uid = 70000, tao = 1.0 }\n", "stake"),
        ("[[at]]\nblock = 1\nregister = { hotkey = \"5Gr\" }\n", "5Gr"),
        ("[[at]]\nblock = 1\nregister = { hotkey = 5 }\n", "register"),
        ("[[at]]\nblock = 1\nupgrade = \"no-such-file.scale\"\n", "no-such-file.scale"),
        ("[[at]]\nblock = 1\nupgrade = { spec = 3 }\n", "upgrade"),
        ("[[when]]\nblock = 1\n", "when"),
        ("at = 3", "at"),
        ("at = [3]", "invalid type"),
        ("what is this", "script"),
    ] {
        let error = refused(text);
        assert!(error.contains(part), "{text}: {error}");
    }
    let stray = parse("[[at]]\nblock = 1\nnode = 3\nlag = 1\n").unwrap();
    let error = stray.check(3).unwrap_err();
    assert!(matches!(error, ScriptError::Node { entry: 1, node: 3, nodes: 3 }), "{error}");
}

#[test]
fn garbage_is_refused_and_never_a_panic() {
    let mut runner = TestRunner::deterministic();
    let words = prop::sample::select(vec![
        "[[at]]",
        "[at]",
        "block",
        "node",
        "lag",
        "lie",
        "announce_tip_only",
        "upgrade",
        "reorganise",
        "=",
        "{",
        "}",
        "\n",
        "1",
        "-1",
        "99999999999999999999",
        "1e309",
        "nan",
        "\"back\"",
        "true",
        ",",
        "depth",
        "extrinsics",
        "later",
        ".",
        "[",
        "]",
        "1979-05-27",
        "\u{0}",
        "'",
    ]);
    let strategy = prop::collection::vec(words, 0..40);
    for _ in 0..3000 {
        let text = strategy.new_tree(&mut runner).unwrap().current().join(" ");
        if let Ok(script) = parse(&text) {
            assert!(script.len() < 40);
        }
    }
    let deep = format!("at = {}", "[".repeat(100_000));
    refused(&deep);
    refused(&format!("[[at]]\nblock = 1\nlie = {}", "{a=".repeat(10_000)));
}

#[test]
fn an_upgrade_is_read_and_checked_with_the_script() {
    let folder = tempfile::tempdir().unwrap();
    let text = "[[at]]\nblock = 1\nupgrade = \"new.scale\"\n";
    std::fs::write(folder.path().join("new.scale"), b"no metadata").unwrap();
    let error = Script::parse(text, folder.path()).unwrap_err();
    assert!(matches!(error, ScriptError::Metadata { entry: 1, .. }), "{error}");
    std::fs::write(folder.path().join("new.scale"), METADATA).unwrap();
    assert_eq!(Script::parse(text, folder.path()).unwrap().len(), 1);
}

#[tokio::test]
async fn a_knob_that_cannot_be_turned_does_not_end_the_script() {
    let (chain, _client) = start(manual(0)).await;
    let script = "[[at]]\nblock = 0\nreorganise = { depth = 9, extrinsics = \"lost\" }\n\
        [[at]]\nblock = 0\nproduce = 4\n[[at]]\nblock = 4\nproduce = 1\n";
    within(chain.play(&parse(script).unwrap())).await.unwrap();
    assert_eq!(chain.head().await.unwrap().number, 5);
}

#[tokio::test]
async fn a_script_ends_with_its_chain() {
    let chain = DevChain::start(manual(0), anywhere()).await.unwrap();
    let script = parse("[[at]]\nblock = 1000\nlag = 1\n").unwrap();
    let (playing, stopping) = (chain.play(&script), chain.stop());
    let (played, ()) = within(async { tokio::join!(playing, stopping) }).await;
    assert!(played.is_err());
}

#[test]
fn what_lies_behind_a_loaded_chain_is_left_out() {
    let script = parse("[[at]]\nblock = 3\nlag = 1\n[[at]]\nblock = 2\nlag = 2\n").unwrap();
    assert_eq!(script.clone().after(1).len(), 2);
    assert_eq!(script.clone().after(2).len(), 1);
    assert!(script.after(3).is_empty());
}
