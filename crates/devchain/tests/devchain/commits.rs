//! Commit-reveal by hash.

use codec::Encode as _;
use devchain::{DevChain, Genesis, GenesisNeuron};
use subxt::dynamic::{self, Value};

use crate::{client::*, runtimes};

const SALT: [u16; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

/// BLAKE2b-256 of what will be revealed.
fn hash(who: &str, dests: &[u16], weights: &[u16], salt: &[u16], version_key: u64) -> [u8; 32] {
    use blake2::{Blake2b, Digest as _, digest::consts::U32};
    let row = (public(who), NETUID, dests, weights, salt, version_key).encode();
    Blake2b::<U32>::digest(row).into()
}

fn call(name: &str, args: Vec<Value>) -> Call {
    let netuid = Value::u128(NETUID.into());
    dynamic::transaction("SubtensorModule", name, [vec![netuid], args].concat())
}

fn row(values: &[u16]) -> Value {
    Value::unnamed_composite(values.iter().map(|v| Value::u128((*v).into())))
}

fn commit(hash: [u8; 32]) -> Call {
    call("commit_weights", vec![Value::from_bytes(hash)])
}

fn commit_of(mecid: u8, hash: [u8; 32]) -> Call {
    call("commit_mechanism_weights", vec![Value::u128(mecid.into()), Value::from_bytes(hash)])
}

fn reveal(dests: &[u16], weights: &[u16], salt: &[u16]) -> Call {
    let args = vec![row(dests), row(weights), row(salt), Value::u128(0)];
    call("reveal_weights", args)
}

fn reveal_of(mecid: u8, dests: &[u16], weights: &[u16]) -> Call {
    let mecid = Value::u128(mecid.into());
    let args = vec![mecid, row(dests), row(weights), row(&SALT), Value::u128(0)];
    call("reveal_mechanism_weights", args)
}

fn committing() -> Genesis {
    Genesis { commit_reveal: true, tempo: 10, rate_limit: 0, ..genesis() }
}

/// Makes blocks until the newest is of this epoch.
async fn reach(chain: &DevChain, epoch: u64) {
    while chain.epoch().await.unwrap() < epoch {
        chain.produce_block().await.unwrap();
    }
}

fn refused(number: u8) -> Refused {
    Refused(1010, format!("Custom error: {number}"))
}

#[tokio::test]
async fn weights_are_revealed_in_the_epoch_after_their_commit_and_in_no_other() {
    for genesis in runtimes::both(committing()) {
        let (chain, client) = start(genesis).await;
        chain.produce_block().await.unwrap();
        let made = commit(hash("Alice", &[2, 3], &[1, 3], &SALT, 0));
        let events = client.follow("Alice", &made).await.unwrap();
        assert_eq!(events, ["SubtensorModule.WeightsCommitted", "System.ExtrinsicSuccess"]);
        let block = u64::from(chain.head().await.unwrap().number);
        assert_eq!(chain.last_update(0).await.unwrap(), block, "a commit is an update");

        let revealed = reveal(&[2, 3], &[1, 3], &SALT);
        assert_eq!(client.send("Alice", &revealed).await.unwrap_err(), refused(17), "too early");
        let epoch = chain.epoch().await.unwrap() + 1;
        reach(&chain, epoch).await;
        let other = reveal(&[2, 3], &[3, 1], &SALT);
        assert_eq!(client.send("Alice", &other).await.unwrap_err(), refused(16), "not committed");
        let copied = client.send("Bob", &revealed).await.unwrap_err();
        assert_eq!(copied, refused(16), "another's commit");
        let events = client.follow("Alice", &revealed).await.unwrap();
        let expected = [
            "SubtensorModule.WeightsSet",
            "SubtensorModule.WeightsRevealed",
            "System.ExtrinsicSuccess",
        ];
        assert_eq!(events, expected);
        assert_eq!(chain.weights(0).await.unwrap(), [(2, 21845), (3, 65535)]);
        assert_eq!(chain.last_update(0).await.unwrap(), block, "a reveal is no update");
        assert_eq!(client.send("Alice", &revealed).await.unwrap_err(), refused(16), "once");

        client.follow("Alice", &commit(hash("Alice", &[2], &[1], &SALT, 0))).await.unwrap();
        let epoch = chain.epoch().await.unwrap() + 2;
        reach(&chain, epoch).await;
        let late = client.send("Alice", &reveal(&[2], &[1], &SALT)).await.unwrap_err();
        assert_eq!(late, refused(17), "too late");
    }
}

#[tokio::test]
async fn a_commit_says_when_it_may_be_revealed() {
    for genesis in runtimes::both(Genesis { reveal_period: 3, ..committing() }) {
        let stateful = genesis.metadata.is_some();
        let (chain, client) = start(genesis).await;
        chain.produce_blocks(3).await.unwrap();
        let digest = hash("Alice", &[2], &[1], &SALT, 0);
        client.follow("Alice", &commit(digest)).await.unwrap();
        let (block, epoch) = (4, chain.epoch().await.unwrap());
        let keys = vec![Value::u128(NETUID.into()), Value::from_bytes(public("Alice"))];
        let stored: Vec<([u8; 32], u64, u64, u64)> =
            client.item("SubtensorModule", "WeightCommits", keys).await;
        if stateful {
            assert_eq!(stored, [(digest, epoch, block, 0)]);
            continue;
        }
        let [(_, made, first, last)] = stored[..] else { panic!("{stored:?}") };
        assert_eq!((made, last - first), (block, 10));
        reach(&chain, epoch + 3).await;
        assert_eq!(u64::from(chain.head().await.unwrap().number), first);
    }
}

#[tokio::test]
async fn ten_commits_wait_and_an_older_one_is_gone_when_a_newer_is_revealed() {
    let (chain, client) = start(committing()).await;
    chain.set_tempo(100).await.unwrap();
    chain.produce_block().await.unwrap();
    for salt in 0..10 {
        client.follow("Alice", &commit(hash("Alice", &[2], &[1], &[salt], 0))).await.unwrap();
    }
    let full = client.follow("Alice", &commit([9; 32])).await.unwrap_err();
    assert!(full.contains("TooManyUnrevealedCommits"), "{full}");
    reach(&chain, chain.epoch().await.unwrap() + 1).await;
    client.follow("Alice", &reveal(&[2], &[1], &[8])).await.unwrap();
    let gone = client.send("Alice", &reveal(&[2], &[1], &[7])).await.unwrap_err();
    assert_eq!(gone, refused(16));
    client.follow("Alice", &reveal(&[2], &[1], &[9])).await.unwrap();
}

#[tokio::test]
async fn commits_have_the_rate_limit_that_weights_have_without_them() {
    let (chain, client) = start(Genesis { rate_limit: 4, ..committing() }).await;
    client.follow("Alice", &commit([1; 32])).await.unwrap();
    assert_eq!(client.send("Alice", &commit([2; 32])).await.unwrap_err(), refused(6));
    chain.produce_blocks(3).await.unwrap();
    client.follow("Alice", &commit([2; 32])).await.unwrap();

    let genesis = Genesis { stake_threshold: 2000 * TAO, ..committing() };
    let (_chain, client) = start(genesis).await;
    assert_eq!(client.send("Bob", &commit([1; 32])).await.unwrap_err(), refused(1));
    let revealed = reveal(&[2], &[1], &SALT);
    assert_eq!(client.send("Bob", &revealed).await.unwrap_err(), refused(1));
}

/// Every row breaks its own rule and all the rules after it, so the order shows as well.
#[tokio::test]
async fn commits_and_reveals_are_checked_in_the_order_of_the_live_chain() {
    let genesis = Genesis {
        refuse_early: false,
        rate_limit: 5,
        neurons: vec![
            GenesisNeuron::validator(public("Alice"), TAO),
            GenesisNeuron { last_update: 3, ..GenesisNeuron::validator(public("Bob"), TAO) },
        ],
        ..committing()
    };
    let (chain, client) = start(Genesis { commit_reveal: false, ..genesis.clone() }).await;
    for (who, call, expected) in [
        ("Stranger", commit_of(1, [1; 32]), "MechanismDoesNotExist"),
        ("Stranger", commit([1; 32]), "CommitRevealDisabled"),
        ("Stranger", reveal(&[9], &[1, 1], &SALT), "CommitRevealDisabled"),
    ] {
        let error = client.follow(who, &call).await.unwrap_err();
        assert!(error.contains(expected), "{who}: {error} instead of {expected}");
    }
    drop(chain);

    let (chain, client) = start(genesis).await;
    chain.produce_blocks(3).await.unwrap();
    for (who, call, expected) in [
        ("Stranger", commit([1; 32]), "HotKeyNotRegisteredInSubNet"),
        ("Bob", commit([1; 32]), "CommittingWeightsTooFast"),
        ("Alice", reveal(&[1], &[1], &SALT), "NoWeightsCommitFound"),
    ] {
        let error = client.follow(who, &call).await.unwrap_err();
        assert!(error.contains(expected), "{who}: {error} instead of {expected}");
    }
    client.follow("Alice", &commit(hash("Alice", &[1, 1], &[1, 1], &SALT, 0))).await.unwrap();
    let wrong = client.follow("Alice", &reveal(&[1], &[1], &SALT)).await.unwrap_err();
    assert!(wrong.contains("InvalidRevealCommitHashNotMatch"), "{wrong}");
    let bad = reveal(&[1, 1], &[1, 1], &SALT);
    let early = client.follow("Alice", &bad).await.unwrap_err();
    assert!(early.contains("RevealTooEarly"), "{early}");

    // What the ordinary checks refuse stays committed, and can be revealed in vain again.
    let epoch = chain.epoch().await.unwrap();
    reach(&chain, epoch + 1).await;
    for _ in 0..2 {
        let error = client.follow("Alice", &bad).await.unwrap_err();
        assert!(error.contains("DuplicateUids"), "{error}");
    }
    reach(&chain, epoch + 2).await;
    let late = client.follow("Alice", &bad).await.unwrap_err();
    assert!(late.contains("ExpiredWeightCommit"), "{late}");
    let late = client.follow("Alice", &reveal(&[1], &[1], &SALT)).await.unwrap_err();
    assert!(late.contains("NoWeightsCommitFound"), "{late}");
}

#[tokio::test]
async fn mechanism_zero_is_the_subnet_itself() {
    let (chain, client) = start(committing()).await;
    let digest = hash("Alice", &[2], &[1], &SALT, 0);
    client.follow("Alice", &commit_of(0, digest)).await.unwrap();
    reach(&chain, chain.epoch().await.unwrap() + 1).await;
    client.follow("Alice", &reveal_of(0, &[2], &[1])).await.unwrap();
    assert_eq!(chain.weights(0).await.unwrap(), [(2, 65535)]);
}
