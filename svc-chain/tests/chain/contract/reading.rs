//! The connection, the runtime, the metagraph, and what is served and committed.

use proto::chain::v1::{self, IntentState};
use subxt::rpcs::rpc_params;

use super::{
    Report,
    node::{Neuron, Node},
};
use crate::rig;

pub(super) async fn connects_and_is_known(node: &Node, neuron: &mut Neuron, report: &mut Report) {
    let identity = neuron.service.client.get_identity(v1::GetIdentityRequest {}).await.unwrap();
    let identity = identity.into_inner();
    assert_eq!(identity.hotkey, neuron.address);
    assert_eq!((identity.uid, identity.netuid), (None, node.netuid.into()));
    let genesis: String = node.rpc.request("chain_getBlockHash", rpc_params![0]).await.unwrap();
    assert_eq!(format!("0x{}", hex::encode(&identity.genesis_hash)), genesis);
    report.shown("it connects, and knows the chain by its first block");

    let version: serde_json::Value =
        node.rpc.request("state_getRuntimeVersion", rpc_params![]).await.unwrap();
    let status = neuron.service.client.get_status(v1::GetStatusRequest {}).await.unwrap();
    let status = status.into_inner();
    assert_eq!(u64::from(status.spec_version), version["specVersion"].as_u64().unwrap());
    assert_eq!(status.missing, Vec::<String>::new());
    assert!(status.best.unwrap().number >= status.finalized.unwrap().number);
    assert!(neuron.service.is_ready());
    report.shown("the runtime has all that is used");
}

pub(super) async fn registration_is_seen(node: &Node, neuron: &mut Neuron, report: &mut Report) {
    let before = neuron.finalized().await;
    node.registers(neuron.hotkey).await;
    let (client, mut seen) = (neuron.service.client.clone(), None);
    while seen.is_none() {
        let at = neuron.finalized().await;
        seen = neuron.seen_at(at).await;
    }
    let seen = seen.unwrap();
    assert!(neuron.seen_at(before).await.is_none(), "it was not there before");
    assert_eq!((seen.coldkey, seen.stake, seen.axon.as_str()), (node.coldkey(), 0, ""));
    assert!(seen.registered_at > before && !seen.validator_permit);
    assert_eq!(seen.last_update, seen.registered_at, "a registration is an update");
    let identity = client.clone().get_identity(v1::GetIdentityRequest {}).await.unwrap();
    assert_eq!(identity.into_inner().uid, Some(seen.uid));
    report.shown("a registration is seen in the metagraph, and not before its block");
}

pub(super) async fn an_axon_is_served_once(node: &Node, neuron: &mut Neuron, report: &mut Report) {
    let round = neuron.next_round();
    let served = neuron.carried_out(rig::axon(round, "8.8.8.8", 8091)).await;
    assert_eq!((served.state(), served.attempts), (IntentState::Done, 1), "{served:?}");
    let seen = neuron.seen_at(served.block).await.unwrap();
    assert_eq!(seen.axon, "8.8.8.8:8091");
    assert_eq!(neuron.seen_at(served.block - 1).await.unwrap().axon, "");
    let round = neuron.next_round();
    let same = neuron.carried_out(rig::axon(round, "8.8.8.8", 8091)).await;
    assert_eq!((same.state(), same.attempts), (IntentState::Done, 0), "{same:?}");
    report.shown("an axon is served once");

    let limit: u64 = node.of_subnet("ServingRateLimit").await;
    let round = neuron.next_round();
    let moved = rig::axon(round, "8.8.4.4", 8091);
    let key = moved.key.clone();
    neuron.service.client.submit_intent(moved).await.unwrap();
    if node.affords(limit) {
        let done = |intent: &v1::Intent| intent.state() == IntentState::Done;
        let moved = neuron.until(key, done, limit).await;
        assert!(moved.block >= served.block + limit, "{served:?} {moved:?}");
        assert_eq!(neuron.seen_at(moved.block).await.unwrap().axon, "8.8.4.4:8091");
        report.shown("another axon waits for the chain's rate limit, and is served");
    } else {
        let limited = |intent: &v1::Intent| intent.reason == "rate_limited";
        let waits = neuron.until(key, limited, 0).await;
        assert!(waits.not_before >= served.block + limit, "{waits:?}");
        report.skipped("another axon is served", "its rate limit lasts too long here");
    }

    let round = neuron.next_round();
    let home = neuron.carried_out(rig::axon(round, "127.0.0.1", 8091)).await;
    if home.state() == IntentState::Done {
        report.skipped("a loopback axon is refused", "this chain allows it");
    } else {
        assert_eq!(home.reason, "bad_address", "{home:?}");
        report.shown("a loopback axon is refused");
    }
}

pub(super) async fn commitments_are_read_back_as_of_past_blocks(
    neuron: &mut Neuron,
    report: &mut Report,
) {
    let mut written = Vec::new();
    for (kind, data) in [("seed", "first"), ("signed_hash", "second"), ("model_hash", "third")] {
        let round = neuron.next_round();
        let intent = neuron.carried_out(rig::commitment(round, kind, data)).await;
        assert_eq!((intent.state(), intent.attempts), (IntentState::Done, 1), "{intent:?}");
        written.push((intent.block, data));
    }
    for (n, (block, data)) in written.iter().enumerate() {
        assert_eq!(committed_at(neuron, *block).await, Some((*block, (*data).to_owned())));
        let before = n.checked_sub(1).map(|n| (written[n].0, written[n].1.to_owned()));
        assert_eq!(committed_at(neuron, block - 1).await, before, "before block {block}");
    }
    report.shown("commitments are read back as of the blocks before and after them");
}

/// What the neuron has committed as of a block, and when.
async fn committed_at(neuron: &mut Neuron, block: u64) -> Option<(u64, String)> {
    let request = v1::GetCommitmentsRequest { at: rig::at_number(block), agreed: false };
    let all = neuron.service.client.get_commitments(request).await.unwrap().into_inner();
    let own = all.commitments.into_iter().find(|commitment| commitment.hotkey == neuron.address);
    own.map(|own| (own.block, String::from_utf8(own.data.to_vec()).unwrap()))
}
