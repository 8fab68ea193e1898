//! Slots and stake that coldkeys buy.

use devchain::{Genesis, GenesisNeuron};
use subxt::dynamic::{self, Value};

use crate::client::*;

fn register(hotkey: &str) -> Call {
    let args = vec![Value::u128(NETUID.into()), Value::from_bytes(public(hotkey))];
    dynamic::transaction("SubtensorModule", "burned_register", args)
}

fn add_stake(hotkey: &str, rao: u64) -> Call {
    let args = vec![
        Value::from_bytes(public(hotkey)),
        Value::u128(NETUID.into()),
        Value::u128(rao.into()),
    ];
    dynamic::transaction("SubtensorModule", "add_stake", args)
}

fn selling() -> Genesis {
    let balances = vec![(public("Rich"), 10 * TAO), (public("Poor"), TAO / 2)];
    Genesis { burn: TAO, balances, ..genesis() }
}

#[tokio::test]
async fn a_coldkey_buys_a_slot_and_stake_and_its_hotkey_sets_weights() {
    let (chain, client) = start(Genesis { rate_limit: 2, ..selling() }).await;
    let events = client.follow("Rich", &register("Eve")).await.unwrap();
    assert_eq!(events, ["SubtensorModule.NeuronRegistered", "System.ExtrinsicSuccess"]);
    assert_eq!(chain.balance(public("Rich")).await.unwrap(), 9 * TAO);
    let events = client.follow("Rich", &add_stake("Eve", 2 * TAO)).await.unwrap();
    assert_eq!(events, ["SubtensorModule.StakeAdded", "System.ExtrinsicSuccess"]);
    assert_eq!(chain.balance(public("Rich")).await.unwrap(), 7 * TAO);
    let keys = vec![Value::from_bytes(public("Eve")), Value::u128(NETUID.into())];
    let stake: u64 = client.item("SubtensorModule", "TotalHotkeyAlpha", keys).await;
    assert_eq!(stake, 2 * TAO);
    assert_eq!(chain.last_update(4).await.unwrap(), 1, "a registration is an update");
    client.follow("Eve", &set_weights(&[4], &[1], 0)).await.unwrap();
    let again = chain.register(GenesisNeuron::miner(public("Eve"))).await.unwrap();
    assert_eq!(again, 4);
}

#[tokio::test]
async fn registrations_are_refused_for_each_of_the_reasons_of_the_live_chain() {
    let (chain, client) = start(selling()).await;
    let refused = async |who: &str, call: Call, expected: &str| {
        let error = client.follow(who, &call).await.unwrap_err();
        assert!(error.contains(expected), "{who}: {error} instead of {expected}");
    };
    refused("Poor", register("Eve"), "NotEnoughBalanceToStake").await;
    refused("Rich", register("Alice"), "HotKeyAlreadyRegisteredInSubNet").await;
    refused("Rich", add_stake("Eve", TAO), "HotKeyAccountNotExists").await;
    refused("Rich", add_stake("Alice", 1), "AmountTooLow").await;
    refused("Poor", add_stake("Alice", TAO), "NotEnoughBalanceToStake").await;
    assert_eq!(chain.balance(public("Rich")).await.unwrap(), 10 * TAO, "nothing was paid");

    client.follow("Rich", &register("Eve")).await.unwrap();
    for name in ["F", "G", "H", "I", "J"] {
        client.follow("Rich", &register(name)).await.unwrap();
    }
    let full = client.send("Rich", &register("K")).await.unwrap_err();
    assert_eq!(full, Refused(1010, "Custom error: 6".to_owned()), "six in an interval");
    chain.produce_blocks(100).await.unwrap();
    client.follow("Rich", &register("K")).await.unwrap();
}

#[tokio::test]
async fn one_registration_goes_into_a_block() {
    let mut genesis = selling();
    genesis.production = devchain::Production::Manual;
    let (chain, client) = start(genesis).await;
    for (nonce, name) in ["Eve", "Frank"].into_iter().enumerate() {
        let bytes = client.signed("Rich", &register(name), immortal(nonce as u64)).await;
        client.submit(&bytes).await.unwrap();
    }
    chain.produce_block().await.unwrap();
    let journal = chain.extrinsics().await.unwrap();
    let errors: Vec<_> = journal.iter().map(|x| x.error.as_deref()).collect();
    assert_eq!(errors, [None, Some("SubtensorModule::TooManyRegistrationsThisBlock")]);
    chain.produce_block().await.unwrap();
    assert_eq!(chain.balance(public("Rich")).await.unwrap(), 9 * TAO);
}

#[tokio::test]
async fn in_a_full_subnet_the_least_earning_neuron_out_of_immunity_gives_its_slot() {
    let genesis = Genesis { max_uids: 4, immunity_period: 12, tempo: 10, ..selling() };
    let (chain, client) = start(genesis).await;
    client.follow("Alice", &set_weights(&[3], &[1], 0)).await.unwrap();
    client.follow("Bob", &set_weights(&[3], &[1], 0)).await.unwrap();
    chain.trigger_epoch().await.unwrap();
    chain.produce_blocks(12).await.unwrap();
    // Alice owns the subnet, Bob and Dave earn: Carol goes.
    client.follow("Rich", &register("Eve")).await.unwrap();
    assert_eq!(chain.register(GenesisNeuron::miner(public("Eve"))).await.unwrap(), 2);
    // Eve earns nothing either, and is immune: Bob, with a quarter of the stake, is next.
    client.follow("Rich", &register("Frank")).await.unwrap();
    assert_eq!(chain.register(GenesisNeuron::miner(public("Frank"))).await.unwrap(), 1);
    assert_eq!(chain.weights(1).await.unwrap(), [], "the slot is new");
}
