//! Runtimes before and after the embedded one: what a validator needs works on them too.

use codec::Encode as _;
use devchain::Genesis;
use subxt::dynamic::{self, Value};

use crate::{client::*, runtimes};

async fn runs_on(file: &str) {
    let Some(raw) = runtimes::saved(file) else { return };
    let genesis = Genesis {
        metadata: Some(raw),
        refuse_early: false,
        rate_limit: 0,
        tempo: 10,
        burn: TAO,
        balances: vec![(public("Rich"), 10 * TAO)],
        ..genesis()
    };
    let (chain, client) = start(genesis).await;

    let events = client.follow("Alice", &set_weights(&[2, 3], &[1, 3], 0)).await.unwrap();
    assert_eq!(events, ["SubtensorModule.WeightsSet", "System.ExtrinsicSuccess"]);
    assert_eq!(chain.weights(0).await.unwrap(), [(2, 21845), (3, 65535)]);
    client.follow("Carol", &set_commitment(&[b"hello"])).await.unwrap();
    let commitment = chain.commitment(public("Carol"), None).await.unwrap().unwrap();
    assert_eq!(commitment.data, b"hello");
    client.follow("Carol", &serve_axon(0x0102_0304, 8091, 4)).await.unwrap();
    assert_eq!(chain.axon(public("Carol")).await.unwrap(), Some(([1, 2, 3, 4], 8091).into()));

    let keys = || vec![Value::u128(NETUID.into())];
    let size: u16 = client.item("SubtensorModule", "SubnetworkN", keys()).await;
    assert_eq!(size, 4);
    chain.produce_blocks(20).await.unwrap();
    let incentive: Vec<u16> = client.item("SubtensorModule", "Incentive", keys()).await;
    assert_eq!(incentive[2..], [16383, 49151]);

    let hotkey = || Value::from_bytes(public("Eve"));
    let register = vec![Value::u128(NETUID.into()), hotkey()];
    let register = dynamic::transaction("SubtensorModule", "burned_register", register);
    client.follow("Rich", &register).await.unwrap();
    let stake = vec![hotkey(), Value::u128(NETUID.into()), Value::u128(TAO.into())];
    let stake = dynamic::transaction("SubtensorModule", "add_stake", stake);
    client.follow("Rich", &stake).await.unwrap();
    assert_eq!(chain.balance(public("Rich")).await.unwrap(), 8 * TAO);

    // There was commit-reveal by hash already.
    chain.set_commit_reveal(true).await.unwrap();
    chain.produce_block().await.unwrap();
    let row =
        (public("Alice"), NETUID, [3u16].as_slice(), [1u16].as_slice(), [7u16].as_slice(), 0u64);
    use blake2::{Blake2b, Digest as _, digest::consts::U32};
    let hash: [u8; 32] = Blake2b::<U32>::digest(row.encode()).into();
    let args = vec![Value::u128(NETUID.into()), Value::from_bytes(hash)];
    let commit = dynamic::transaction("SubtensorModule", "commit_weights", args);
    client.follow("Alice", &commit).await.unwrap();
    let epoch = chain.epoch().await.unwrap() + 1;
    while chain.epoch().await.unwrap() < epoch {
        chain.produce_block().await.unwrap();
    }
    let one = |n: u16| Value::unnamed_composite([Value::u128(n.into())]);
    let args = vec![Value::u128(NETUID.into()), one(3), one(1), one(7), Value::u128(0)];
    let reveal = dynamic::transaction("SubtensorModule", "reveal_weights", args);
    client.follow("Alice", &reveal).await.unwrap();
    assert_eq!(chain.weights(0).await.unwrap(), [(3, 65535)]);
}

#[tokio::test]
async fn a_validator_lives_on_spec_218() {
    runs_on("raonet_spec218_v15.scale").await;
}

#[tokio::test]
async fn a_validator_lives_on_spec_240() {
    runs_on("subtensor_devnet_spec240_v15.scale").await;
}

#[tokio::test]
async fn a_validator_lives_on_spec_393() {
    runs_on("subtensor_finney_spec393_v16.scale").await;
}

#[tokio::test]
async fn a_validator_lives_on_spec_424() {
    runs_on("subtensor_finney_spec424_v16.scale").await;
}
