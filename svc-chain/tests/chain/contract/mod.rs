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
    shown: usize,
    skipped: usize,
}

impl Report {
    fn shown(&mut self, what: &str) {
        eprintln!("shown: {what}");
        self.shown += 1;
    }

    fn skipped(&mut self, what: &str, why: &str) {
        eprintln!("skipped: {what}: {why}");
        self.skipped += 1;
    }
}

/// Shows all of the contract that a node can show.
async fn holds_on(node: &Node) -> Report {
    let mut report = Report::default();
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

/// Both settings of commit-reveal on the chain's own node.
async fn holds_on_own(label: &str, genesis: impl Fn() -> Genesis) {
    for (commit_reveal, refuse_early) in [(false, true), (true, false)] {
        eprintln!("{label}, commit-reveal {commit_reveal}:");
        let node = Node::own(Genesis { commit_reveal, refuse_early, ..genesis() }).await;
        let report = holds_on(&node).await;
        // Plain weights on one, hash commits on the other, and nothing is left out beside these.
        assert_eq!(report.skipped, 1, "{label}: {report:?}");
    }
}

#[tokio::test]
async fn the_contract_holds_on_the_node_at_hand() {
    match Node::foreign().await {
        Some(node) => {
            let report = holds_on(&node).await;
            assert!(report.shown >= 8, "{report:?}");
        }
        None => holds_on_own("the embedded runtime", node::genesis).await,
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
    for file in files {
        let metadata = std::fs::read(&file).unwrap();
        let genesis = || Genesis { metadata: Some(metadata.clone()), ..node::genesis() };
        holds_on_own(&file.display().to_string(), genesis).await;
    }
}
