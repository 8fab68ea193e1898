//! What this service promises on any node of the chain: on a development chain that is started
//! here, on every saved runtime, and on a node that `CONNITO_SUBTENSOR_WS` names.
//!
//! On a foreign node the test brings its own hotkeys. `CONNITO_SUBTENSOR_COLDKEY_URI` pays for them
//! (`//Alice` without it), in the subnet `CONNITO_SUBTENSOR_NETUID` (102 without it). What the node
//! at hand cannot show is printed as skipped, with the reason.

mod node;
mod reading;
mod weights;

use devchain::Genesis;
use subxt::ext::scale_value::Value;

use self::node::Node;

/// Says that a part of the contract was shown, or why the node at hand cannot show it.
#[derive(Debug, Default)]
struct Report {
    on: String,
    shown: usize,
    skipped: usize,
}

impl Report {
    fn shown(&mut self, what: &str) {
        eprintln!("{}: shown: {what}", self.on);
        self.shown += 1;
    }

    fn skipped(&mut self, what: &str, why: &str) {
        eprintln!("{}: skipped: {what}: {why}", self.on);
        self.skipped += 1;
    }
}

/// Shows all of the contract that a node can show.
async fn holds_on(node: &Node, on: String) -> Report {
    let mut report = Report { on, ..Report::default() };
    let mut neuron = node.newcomer().await;
    reading::connects_and_is_known(node, &mut neuron, &mut report).await;
    weights::of_a_stranger_are_refused(&mut neuron, &mut report).await;
    reading::registration_is_seen(node, &mut neuron, &mut report).await;
    reading::an_axon_is_served_once(node, &mut neuron, &mut report).await;
    reading::commitments_are_read_back_as_of_past_blocks(&mut neuron, &mut report).await;
    weights::are_refused_for_each_reason_and_then_accepted(node, &mut neuron, &mut report).await;
    weights::committed_by_hash_are_revealed(node, &mut neuron, &mut report).await;
    neuron.service.stop().await;
    report
}

fn number(value: impl Into<u128>) -> Value {
    Value::u128(value.into())
}

/// Shows it on own chains of a runtime, with commit-reveal off and on.
async fn holds_on_own(label: &str, genesis: Genesis) {
    for (commit_reveal, refuse_early) in [(false, true), (true, false)] {
        let genesis = Genesis { commit_reveal, refuse_early, ..genesis.clone() };
        let node = Node::own(genesis).await;
        let report = holds_on(&node, format!("{label}, commit-reveal {commit_reveal}")).await;
        // Plain weights on one, hash commits on the other; older runtimes ask for no stake.
        let skipped = 1 + usize::from(node.stake_threshold().await == 0);
        assert_eq!(report.skipped, skipped, "{report:?}");
    }
}

#[tokio::test]
async fn the_contract_holds_on_the_node_at_hand() {
    match Node::foreign().await {
        Some(node) => {
            let report = holds_on(&node, node.url.clone()).await;
            assert!(report.shown >= 8, "{report:?}");
        }
        None => holds_on_own("the embedded runtime", node::genesis()).await,
    }
}

#[tokio::test]
async fn the_contract_holds_on_every_saved_runtime() {
    let Some(folder) = std::env::var_os("CONNITO_METADATA_DIR") else {
        eprintln!("skipped: CONNITO_METADATA_DIR is not set");
        return;
    };
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "scale"));
    files.sort();
    assert!(!files.is_empty());
    let each = files.into_iter().map(async |file| {
        let metadata = Some(std::fs::read(&file).unwrap());
        let name = file.file_name().unwrap().to_string_lossy();
        holds_on_own(&name, Genesis { metadata, ..node::genesis() }).await;
    });
    futures::future::join_all(each).await;
}
