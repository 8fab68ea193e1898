//! What the chain refuses, and by which road.

use devchain::{Genesis, GenesisNeuron, Production};

use crate::client::*;

fn invalid(reason: &str) -> Refused {
    Refused(1010, reason.to_owned())
}

#[tokio::test]
async fn a_changed_byte_anywhere_is_a_bad_signature_or_worse() {
    let (chain, client) = start(genesis()).await;
    let bytes = client.signed("Alice", &set_weights(&[2], &[1], 0), immortal(0)).await;
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let Refused(code, reason) = client.submit(&changed).await.unwrap_err();
        assert!((1001..=1010).contains(&code), "byte {at}: {code} {reason}");
    }
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    let refused = client.submit(&changed).await.unwrap_err();
    assert_eq!(refused, invalid("Transaction has a bad signature"));
    assert_eq!(chain.extrinsics().await.unwrap(), []);
    client.submit(&bytes).await.unwrap();
}

#[tokio::test]
async fn a_signature_for_another_chain_does_not_verify() {
    let (_one, one) = start(genesis()).await;
    let (_two, two) = start(Genesis { seed: [9; 32], ..genesis() }).await;
    let bytes = one.signed("Alice", &set_weights(&[2], &[1], 0), immortal(0)).await;
    let refused = two.submit(&bytes).await.unwrap_err();
    assert_eq!(refused, invalid("Transaction has a bad signature"));
}

#[tokio::test]
async fn a_nonce_that_was_used_is_refused() {
    let (_chain, client) = start(genesis()).await;
    client.follow("Carol", &set_commitment(&[b"data"])).await.unwrap();
    let stale = client.signed("Carol", &set_commitment(&[b"other"]), immortal(0)).await;
    let refused = client.submit(&stale).await.unwrap_err();
    assert_eq!(refused, invalid("Transaction is outdated"));
}

#[tokio::test]
async fn the_same_bytes_are_taken_once() {
    let mut genesis = genesis();
    genesis.production = Production::Manual;
    let (chain, client) = start(genesis).await;
    let bytes = client.signed("Carol", &set_commitment(&[b"data"]), immortal(0)).await;
    let other = client.signed("Carol", &set_commitment(&[b"other"]), immortal(0)).await;
    client.submit(&bytes).await.unwrap();
    assert_eq!(client.submit(&bytes).await.unwrap_err().0, 1013);
    assert_eq!(client.submit(&other).await.unwrap_err().0, 1014);
    chain.produce_block().await.unwrap();
    assert_eq!(client.submit(&bytes).await.unwrap_err().0, 1012);
    chain.produce_block().await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_mortal_extrinsic_is_taken_while_it_lives() {
    let mut genesis = genesis();
    genesis.production = Production::Manual;
    let (chain, client) = start(genesis).await;
    chain.produce_blocks(3).await.unwrap();
    let bytes = client.signed("Carol", &set_commitment(&[b"data"]), mortal(8, 0)).await;
    // Born at block 3, it lives through block 10: the next block would be its next birth.
    chain.produce_blocks(7).await.unwrap();
    let refused = client.submit(&bytes).await.unwrap_err();
    assert_eq!(refused, invalid("Transaction has an ancient birth block"));
    chain.produce_block().await.unwrap();
    let refused = client.submit(&bytes).await.unwrap_err();
    assert_eq!(refused, invalid("Transaction has a bad signature"), "as on the live chain");

    let bytes = client.signed("Carol", &set_commitment(&[b"data"]), mortal(8, 0)).await;
    chain.produce_blocks(6).await.unwrap();
    client.submit(&bytes).await.unwrap();
    chain.produce_block().await.unwrap();
    assert_eq!(chain.extrinsics().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_unknown_hotkey_may_not_set_weights_or_serve() {
    let (_chain, client) = start(genesis()).await;
    let call = set_weights(&[2], &[1], 0);
    let error = client.follow("Stranger", &call).await.unwrap_err();
    assert!(error.contains("HotKeyNotRegisteredInSubNet"), "{error}");
    let refused = client.send("Stranger", &serve_axon(0x0808_0808, 1, 4)).await.unwrap_err();
    assert_eq!(refused, invalid("Custom error: 10"));
}

#[tokio::test]
async fn early_refusals_have_the_numbers_of_the_live_chain() {
    let mut genesis = genesis();
    genesis.stake_threshold = 2000 * TAO;
    let (_chain, client) = start(genesis).await;
    let call = set_weights(&[2], &[1], 0);
    assert_eq!(client.send("Bob", &call).await.unwrap_err(), invalid("Custom error: 1"));
    client.send("Alice", &call).await.unwrap();
    for (call, number) in [
        (serve_axon(0x0808_0808, 0, 4), 13),
        (serve_axon(0x0808_0808, 1, 5), 255),
        (serve_axon(0, 1, 4), 11),
    ] {
        let refused = client.send("Carol", &call).await.unwrap_err();
        assert_eq!(refused, invalid(&format!("Custom error: {number}")));
    }
}

/// Every row breaks its own rule and all the rules after it, so the order shows as well.
#[tokio::test]
async fn weights_are_checked_in_the_order_of_the_live_chain() {
    let genesis = Genesis {
        refuse_early: false,
        min_allowed_weights: 2,
        max_weight_limit: 40_000,
        weights_version: 7,
        stake_threshold: TAO,
        neurons: vec![
            GenesisNeuron::validator(public("Alice"), 3000 * TAO),
            GenesisNeuron { stake: TAO, ..GenesisNeuron::miner(public("Bob")) },
            GenesisNeuron::validator(public("Carol"), 0),
            GenesisNeuron { last_update: 1, ..GenesisNeuron::validator(public("Dave"), TAO) },
            GenesisNeuron::validator(public("Erin"), TAO),
        ],
        ..genesis()
    };
    let (chain, client) = start(genesis).await;
    chain.produce_block().await.unwrap();
    for (who, call, expected) in [
        ("Stranger", set_weights_of(9, &[9, 9], &[1], 0), "WeightVecNotEqualSize"),
        ("Stranger", set_weights_of(9, &[9; 6], &[1; 6], 0), "MechanismDoesNotExist"),
        ("Stranger", set_mechanism_weights(1, &[9; 6], &[1; 6]), "MechanismDoesNotExist"),
        ("Stranger", set_weights(&[9; 6], &[1; 6], 0), "UidsLengthExceedUidsInSubNet"),
        ("Stranger", set_weights(&[9, 9], &[1, 1], 0), "HotKeyNotRegisteredInSubNet"),
        ("Carol", set_weights(&[9, 9], &[1, 1], 0), "NotEnoughStakeToSetWeights"),
        ("Dave", set_weights(&[9, 9], &[1, 1], 6), "IncorrectWeightVersionKey"),
        ("Dave", set_weights(&[9, 9], &[1, 1], 7), "SettingWeightsTooFast"),
        ("Bob", set_weights(&[9, 9], &[1, 1], 7), "NeuronNoValidatorPermit"),
        ("Alice", set_weights(&[9, 9], &[1, 1], 7), "DuplicateUids"),
        ("Alice", set_weights(&[9], &[1], 7), "UidVecContainInvalidOne"),
        ("Alice", set_weights(&[1], &[1], 7), "WeightVecLengthIsLow"),
        ("Alice", set_weights(&[1, 2], &[2, 1], 7), "MaxWeightExceeded"),
    ] {
        let error = client.follow(who, &call).await.unwrap_err();
        assert!(error.contains(expected), "{who}: {error} instead of {expected}");
    }
    client.follow("Alice", &set_weights(&[1, 2], &[1, 1], 7)).await.unwrap();
    // Weight on oneself takes neither a permit nor a second weight.
    client.follow("Bob", &set_weights(&[1], &[1], 8)).await.unwrap();
}

#[tokio::test]
async fn plain_weights_are_refused_while_commit_reveal_is_on() {
    let (chain, client) = start(Genesis { commit_reveal: true, ..genesis() }).await;
    let call = set_weights(&[2], &[1], 0);
    let error = client.follow("Alice", &call).await.unwrap_err();
    assert!(error.contains("CommitRevealEnabled"), "{error}");
    chain.set_commit_reveal(false).await.unwrap();
    chain.produce_block().await.unwrap();
    client.follow("Alice", &call).await.unwrap();
}
