//! When epochs end, by the rule of each runtime, and what they do.

use devchain::{Genesis, GenesisNeuron, Production};
use subxt::dynamic::{self, Value};

use crate::{client::*, runtimes};

async fn item(client: &Client, entry: &str) -> u64 {
    client.item("SubtensorModule", entry, vec![Value::u128(NETUID.into())]).await
}

fn tempo(blocks: u16) -> Genesis {
    Genesis { tempo: blocks, production: Production::Manual, ..genesis() }
}

#[tokio::test]
async fn without_a_counter_epochs_follow_from_the_block_number() {
    let (chain, client) = start(tempo(10)).await;
    for _ in 0..40 {
        let told = chain.next_epoch().await.unwrap().unwrap();
        let head = chain.produce_block().await.unwrap();
        let block = u64::from(head.number);
        let place = (block + u64::from(NETUID) + 1) % 11;
        assert_eq!(chain.epoch().await.unwrap(), (block + u64::from(NETUID) + 1) / 11);
        let ran = place == 10;
        assert_eq!(item(&client, "LastMechansimStepBlock").await == block, ran, "{block}");
        assert_eq!(item(&client, "BlocksSinceLastStep").await == 0, ran, "{block}");
        assert_eq!(block == told, ran, "{block}, but {told} was told");
    }
}

#[tokio::test]
async fn with_a_counter_epochs_end_a_tempo_after_the_last_or_when_asked_for() {
    let Some(raw) = runtimes::stateful() else { return };
    let (chain, client) = start(Genesis { metadata: Some(raw), ..tempo(10) }).await;
    let answer = async || {
        let args = vec![Value::u128(NETUID.into())];
        let call = dynamic::runtime_api_call::<_, Option<u64>>(
            "SubnetInfoRuntimeApi",
            "get_next_epoch_start_block",
            args,
        );
        client.at().await.runtime_apis().call(call).await.unwrap()
    };
    assert_eq!(answer().await, Some(10));
    chain.produce_blocks(10).await.unwrap();
    assert_eq!((item(&client, "LastEpochBlock").await, answer().await), (10, Some(20)));
    assert_eq!((item(&client, "SubnetEpochIndex").await, chain.epoch().await.unwrap()), (1, 1));
    chain.produce_blocks(3).await.unwrap();
    assert_eq!(item(&client, "BlocksSinceLastStep").await, 3);

    chain.trigger_epoch().await.unwrap();
    chain.produce_block().await.unwrap();
    assert_eq!((item(&client, "LastEpochBlock").await, answer().await), (14, Some(24)));
    assert_eq!(item(&client, "SubnetEpochIndex").await, 2);
    assert_eq!(item(&client, "PendingEpochAt").await, 0);

    chain.set_tempo(5).await.unwrap();
    chain.produce_block().await.unwrap();
    assert_eq!(answer().await, Some(20), "another tempo begins the epoch again");
    chain.set_tempo(0).await.unwrap();
    chain.produce_blocks(20).await.unwrap();
    assert_eq!((answer().await, item(&client, "SubnetEpochIndex").await), (None, 2));
}

#[tokio::test]
async fn an_epoch_gives_the_permits_to_those_with_the_most_stake_where_the_genesis_says_so() {
    for by_stake in [false, true] {
        let stakes = [("Alice", 1), ("Bob", 30), ("Carol", 20), ("Dave", 30)];
        let neuron = |(name, tao): (&str, u64)| GenesisNeuron {
            stake: tao * TAO,
            ..GenesisNeuron::miner(public(name))
        };
        let genesis = Genesis {
            neurons: stakes.into_iter().map(neuron).collect(),
            permits_by_stake: by_stake,
            max_validators: 2,
            stake_threshold: 2 * TAO,
            ..tempo(10)
        };
        let (chain, client) = start(genesis).await;
        chain.trigger_epoch().await.unwrap();
        chain.produce_block().await.unwrap();
        let keys = vec![Value::u128(NETUID.into())];
        let permits: Vec<bool> = client.item("SubtensorModule", "ValidatorPermit", keys).await;
        assert_eq!(permits, [false, by_stake, false, by_stake]);
    }
}
