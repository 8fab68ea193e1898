//! Weights: refused for each reason that a stranger can provoke, accepted, committed and revealed.

use proto::chain::v1::{self, IntentState};

use super::{
    Report,
    node::{Neuron, Node},
    number,
};
use crate::rig;

/// What a stranger stakes where the chain asks for less.
const SOME_STAKE: u64 = 1_000 * rig::RAO;

async fn refused(neuron: &mut Neuron, report: &mut Report, reason: &str, shares: &[(u32, f64)]) {
    let round = neuron.next_round();
    let request = rig::weights(round, shares);
    let key = request.key.clone();
    neuron.service.client.submit_intent(request).await.unwrap();
    let over = |intent: &v1::Intent| intent.state() == IntentState::Failed;
    // The chain's rate limit comes before some of its other rules.
    let intent = neuron.until(key, over, 1).await;
    let found = (intent.reason.as_str(), intent.advice.as_str(), intent.attempts);
    assert_eq!(found, (reason, "never", 0), "{intent:?}");
    report.shown(&format!("weights are refused for {reason}"));
}

pub(super) async fn of_a_stranger_are_refused(neuron: &mut Neuron, report: &mut Report) {
    let at = neuron.finalized().await;
    let neurons = u32::try_from(neuron.metagraph(at).await.neurons.len()).unwrap();
    if neurons > 0 {
        refused(neuron, report, "not_registered", &[(0, 1.0)]).await;
    } else {
        report.skipped("not_registered", "nobody is in this subnet, and one weight is too many");
    }
    let many: Vec<_> = (0..=neurons).map(|uid| (uid, 0.5)).collect();
    refused(neuron, report, "too_many_weights", &many).await;
}

/// What the subnet and the neuron are like.
struct Facts {
    uid: u32,
    others: Vec<u32>,
    registered: bool,
    permit: bool,
    rate_limit: u64,
    last_update: u64,
}

async fn facts(neuron: &mut Neuron) -> Facts {
    let at = neuron.finalized().await;
    let metagraph = neuron.metagraph(at).await;
    let me = metagraph.neurons.iter().find(|n| n.hotkey == neuron.address);
    let me = me.cloned().unwrap_or_default();
    let others = metagraph.neurons.iter().map(|n| n.uid).filter(|uid| *uid != me.uid).collect();
    Facts {
        uid: me.uid,
        others,
        registered: !me.hotkey.is_empty(),
        permit: me.validator_permit,
        rate_limit: metagraph.weights_rate_limit,
        last_update: me.last_update,
    }
}

pub(super) async fn are_refused_for_each_reason_and_then_accepted(
    node: &Node,
    neuron: &mut Neuron,
    report: &mut Report,
) {
    if facts(neuron).await.others.len() < 2 {
        node.registers_another().await;
        node.registers_another().await;
    }
    node.hold_epochs(true).await;
    let threshold = node.stake_threshold().await;
    let own = facts(neuron).await;
    assert!(own.registered);
    let other = own.others[0];
    if threshold > 0 {
        refused(neuron, report, "stake_too_low", &[(other, 1.0)]).await;
    } else {
        report.skipped("stake_too_low", "weights take no stake here");
    }
    let stake = vec![
        subxt::dynamic::Value::from_bytes(neuron.hotkey),
        number(node.netuid),
        number(threshold.max(SOME_STAKE)),
    ];
    node.pays("add_stake", stake).await;

    let version: u64 = node.of_subnet("WeightsVersionKey").await;
    if version > 0 {
        neuron.restarts(version - 1).await;
        refused(neuron, report, "version_key", &[(other, 1.0)]).await;
        neuron.restarts(version).await;
    } else {
        report.skipped("version_key", "this subnet takes any version");
    }

    let limit = facts(neuron).await.rate_limit;
    if !node.affords(limit) {
        report.skipped("all other weights", "their rate limit lasts too long here");
        return;
    }
    permit(node, neuron, report).await;
    accepted(node, neuron, report).await;
}

/// From no permit to one, and what is only looked at then.
async fn permit(node: &Node, neuron: &mut Neuron, report: &mut Report) {
    let own = facts(neuron).await;
    if own.permit {
        report.skipped("no_permit", "an epoch has given one already");
    } else if !has_permit_soon(node, neuron, report, own.others[0]).await {
        return;
    }
    let beyond = u32::from(node.of_subnet::<u16>("SubnetworkN").await) + 100;
    refused(neuron, report, "no_such_uid", &[(own.others[0], 0.5), (beyond, 0.5)]).await;
    let least: u16 = node.of_subnet("MinAllowedWeights").await;
    if least > 1 {
        refused(neuron, report, "too_few_weights", &[(own.others[0], 1.0)]).await;
    } else {
        report.skipped("too_few_weights", "one weight is enough here");
    }
    let largest: u16 = node.of_subnet("MaxWeightsLimit").await;
    if largest < u16::MAX {
        let row = [(own.others[0], 1.0), (own.others[1], 0.0001)];
        refused(neuron, report, "max_weight", &row).await;
    } else {
        report.skipped("max_weight", "there is no largest weight here");
    }
}

/// Whether an epoch gives the permit, after weights without one were refused.
async fn has_permit_soon(
    node: &Node,
    neuron: &mut Neuron,
    report: &mut Report,
    other: u32,
) -> bool {
    let round = neuron.next_round();
    let request = rig::weights(round, &[(other, 0.5)]);
    let key = request.key.clone();
    neuron.service.client.submit_intent(request).await.unwrap();
    let over = |intent: &v1::Intent| intent.state() == IntentState::Failed;
    let refused = neuron.until(key, over, 1).await;
    // An epoch may have come first: then another rule refused them.
    match refused.reason.as_str() {
        "no_permit" => report.shown("weights are refused for no_permit"),
        "too_few_weights" | "max_weight" => {
            report.skipped("no_permit", "an epoch has just given one");
        }
        reason => panic!("{reason}: {refused:?}"),
    }
    node.hold_epochs(false).await;
    let tempo = u64::from(node.of_subnet::<u16>("Tempo").await);
    if tempo == 0 || !node.affords(2 * tempo) {
        report.skipped("weights with a permit", "epochs are too long here");
        return false;
    }
    let begun = node.height().await;
    while !facts(neuron).await.permit {
        if node.height().await > begun + 2 * tempo + 20 {
            report.skipped("weights with a permit", "no epoch gives this stake one");
            return false;
        }
        tokio::time::sleep(node.block_time).await;
    }
    true
}

/// A row that the subnet takes of this neuron.
fn acceptable(own: &Facts) -> Vec<(u32, f64)> {
    if own.permit {
        // Halves are below every limit that a test can meet.
        vec![(own.others[0], 0.5), (own.others[1], 0.5)]
    } else {
        // All of it to itself: no permit is asked for.
        vec![(own.uid, 1.0)]
    }
}

/// Plain weights, where the subnet takes such.
async fn accepted(node: &Node, neuron: &mut Neuron, report: &mut Report) {
    if node.of_subnet::<bool>("CommitRevealWeightsEnabled").await {
        report.skipped("plain weights", "commit-reveal is on");
        return;
    }
    let own = facts(neuron).await;
    let row = acceptable(&own);
    let on_chain: Vec<_> = row.iter().map(|(uid, _)| (*uid, 65535)).collect();
    let round = neuron.next_round();
    let request = rig::weights(round, &row);
    let key = request.key.clone();
    neuron.service.client.submit_intent(request).await.unwrap();
    let done = |intent: &v1::Intent| intent.state() == IntentState::Done;
    let first = neuron.until(key, done, own.rate_limit).await;
    assert_eq!((first.attempts, first.mode.as_str()), (1, "plain"), "{first:?}");
    assert!(first.block >= own.last_update + own.rate_limit, "{first:?}");
    assert_eq!(neuron.row_at(first.block).await, on_chain);
    assert!(neuron.row_at(first.block - 1).await.is_empty());
    report.shown("weights are accepted, and read back as of their block and the one before");

    if own.rate_limit == 0 {
        report.skipped("rate_limited", "there is no rate limit here");
        return;
    }
    waits_for_the_rate_limit(neuron, report, own.rate_limit, first.block, &row).await;
}

async fn waits_for_the_rate_limit(
    neuron: &mut Neuron,
    report: &mut Report,
    limit: u64,
    mut last: u64,
    row: &[(u32, f64)],
) {
    // On a slow machine the limit may be over before the next weights are there.
    for _ in 0..5 {
        let round = neuron.next_round();
        let again = rig::weights(round, row);
        let key = again.key.clone();
        neuron.service.client.submit_intent(again).await.unwrap();
        let done = |intent: &v1::Intent| intent.state() == IntentState::Done;
        let noted = |intent: &v1::Intent| intent.reason == "rate_limited" || done(intent);
        let waits = neuron.until(key.clone(), noted, 0).await;
        let second = neuron.until(key, done, limit).await;
        assert!(second.block >= last + limit, "{last} {second:?}");
        assert_eq!(second.attempts, 1, "nothing was sent in vain");
        if !done(&waits) {
            assert_eq!((waits.advice.as_str(), waits.attempts), ("when_allowed", 0), "{waits:?}");
            return report.shown("weights wait for the block where the rate limit allows them");
        }
        last = second.block;
    }
    report.skipped("rate_limited", "the limit is over before anything can be sent");
}

pub(super) async fn committed_by_hash_are_revealed(
    node: &Node,
    neuron: &mut Neuron,
    report: &mut Report,
) {
    const WHAT: &str = "weights committed by hash";
    if !node.of_subnet::<bool>("CommitRevealWeightsEnabled").await {
        return report.skipped(WHAT, "commit-reveal is off");
    }
    let tempo = u64::from(node.of_subnet::<u16>("Tempo").await);
    let period: u64 = node.of_subnet("RevealPeriodEpochs").await;
    let blocks = (period + 1) * (tempo + 1);
    let own = facts(neuron).await;
    if !node.affords(blocks + own.rate_limit) {
        return report.skipped(WHAT, "epochs are too long here");
    }
    let row = acceptable(&own);
    let on_chain: Vec<_> = row.iter().map(|(uid, _)| (*uid, 65535)).collect();
    let round = neuron.next_round();
    let request = rig::weights(round, &row);
    let key = request.key.clone();
    neuron.service.client.submit_intent(request).await.unwrap();
    let over = |i: &v1::Intent| [IntentState::Done, IntentState::Failed].contains(&i.state());
    let committed = neuron.until(key, over, own.rate_limit).await;
    let found = (committed.state(), committed.mode.as_str(), committed.attempts);
    assert_eq!(found, (IntentState::Done, "hash_commit", 1), "{committed:?}");
    assert!(neuron.row_at(committed.block).await.is_empty(), "nobody knows them yet");
    let key = Some(v1::IntentKey { round, kind: "reveal".to_owned() });
    let revealed = neuron.until(key, over, blocks).await;
    assert_eq!(revealed.state(), IntentState::Done, "{revealed:?}");
    assert_eq!(neuron.row_at(revealed.block).await, on_chain);
    report.shown("weights committed by hash are revealed in their epoch");
}
