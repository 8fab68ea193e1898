//! Commit-reveal by timelock: weights that the chain opens by itself.

use codec::Encode as _;
use devchain::{DevChain, Genesis, Production};
use drand::{Beacon, seal};
use scale_decode::DecodeAsType;
use subxt::dynamic::{self, Value};

use crate::{client::*, runtimes};

fn committing() -> Genesis {
    Genesis { commit_reveal: true, tempo: 10, rate_limit: 0, ..genesis() }
}

#[derive(DecodeAsType)]
struct BeaconConfig {
    public_key: Vec<u8>,
    period: u32,
    genesis_time: u32,
}

/// The beacon that the chain says it hears.
async fn beacon(client: &Client) -> Beacon {
    let config: BeaconConfig = client.item("Drand", "BeaconConfig", vec![]).await;
    let key = config.public_key.try_into().unwrap();
    Beacon::new(key, config.genesis_time.into(), config.period.into()).unwrap()
}

async fn stored(client: &Client, pallet: &str, entry: &str) -> u64 {
    client.item(pallet, entry, vec![]).await
}

/// The chain's time in seconds, this many blocks after the newest.
async fn time_in(client: &Client, blocks: u64) -> u64 {
    stored(client, "Timestamp", "Now").await / 1000 + 12 * blocks
}

fn payload(who: &str, dests: &[u16], weights: &[u16]) -> Vec<u8> {
    (public(who).to_vec(), dests, weights, 0u64).encode()
}

fn commit_as(sealed: &[u8], round: u64, version: u16) -> Call {
    let args = vec![
        Value::u128(NETUID.into()),
        Value::u128(0),
        Value::from_bytes(sealed),
        Value::u128(round.into()),
        Value::u128(version.into()),
    ];
    dynamic::transaction("SubtensorModule", "commit_timelocked_mechanism_weights", args)
}

fn commit(sealed: &[u8], round: u64) -> Call {
    commit_as(sealed, round, 4)
}

/// The older form of the call, without a mechanism.
fn commit_plain(sealed: &[u8], round: u64) -> Call {
    let args = vec![
        Value::u128(NETUID.into()),
        Value::from_bytes(sealed),
        Value::u128(round.into()),
        Value::u128(4),
    ];
    dynamic::transaction("SubtensorModule", "commit_timelocked_weights", args)
}

/// Makes blocks until the newest is of this epoch.
async fn reach(chain: &DevChain, epoch: u64) {
    while chain.epoch().await.unwrap() < epoch {
        chain.produce_block().await.unwrap();
    }
}

async fn events(client: &Client) -> Vec<String> {
    let at = client.at().await;
    let events = at.events().fetch().await.unwrap();
    events.iter().map(|e| e.unwrap().event_name().to_owned()).collect()
}

#[tokio::test]
async fn sealed_weights_are_set_when_their_epoch_and_their_round_have_come() {
    for genesis in runtimes::both(committing()) {
        let (chain, client) = start(genesis).await;
        chain.produce_block().await.unwrap();
        let beacon = beacon(&client).await;
        // The SDKs' margin: the round is three blocks after the first of the reveal.
        let ahead = u64::from(chain.next_epoch().await.unwrap().unwrap() as u32 + 3);
        let ahead = ahead - u64::from(chain.head().await.unwrap().number);
        let round = beacon.round_at(time_in(&client, ahead).await);
        let sealed = seal(&beacon, round, &payload("Alice", &[2, 3], &[1, 3]), [1; 32]).unwrap();
        let told = client.follow("Alice", &commit(&sealed, round)).await.unwrap();
        let expected = ["SubtensorModule.TimelockedWeightsCommitted", "System.ExtrinsicSuccess"];
        assert_eq!(told, expected);
        let block = u64::from(chain.head().await.unwrap().number);
        assert_eq!(chain.last_update(0).await.unwrap(), block, "a commit is an update");

        let epoch = chain.epoch().await.unwrap();
        reach(&chain, epoch + 1).await;
        assert_eq!(chain.weights(0).await.unwrap(), [], "the round has not come");
        assert!(stored(&client, "Drand", "LastStoredRound").await < round);
        while chain.weights(0).await.unwrap().is_empty() {
            chain.produce_block().await.unwrap();
            assert_eq!(chain.epoch().await.unwrap(), epoch + 1);
        }
        assert_eq!(chain.weights(0).await.unwrap(), [(2, 21845), (3, 65535)]);
        assert_eq!(chain.last_update(0).await.unwrap(), block, "a reveal is no update");
        let told = events(&client).await;
        assert_eq!(told[..3], ["NewPulse", "WeightsSet", "TimelockedWeightsRevealed"]);
        assert!(stored(&client, "Drand", "LastStoredRound").await >= round);

        let _: Value = client.item("Drand", "Pulses", vec![Value::u128(round.into())]).await;
    }
}

#[tokio::test]
async fn a_round_that_comes_before_the_epoch_opens_nothing_early() {
    let (chain, client) = start(committing()).await;
    chain.produce_block().await.unwrap();
    let beacon = beacon(&client).await;
    let round = beacon.round_at(time_in(&client, 1).await);
    let sealed = seal(&beacon, round, &payload("Alice", &[2], &[1]), [1; 32]).unwrap();
    client.follow("Alice", &commit_plain(&sealed, round)).await.unwrap();
    let epoch = chain.epoch().await.unwrap();
    while chain.epoch().await.unwrap() == epoch {
        assert_eq!(chain.weights(0).await.unwrap(), []);
        chain.produce_block().await.unwrap();
    }
    assert_eq!(chain.weights(0).await.unwrap(), [(2, 65535)]);
}

#[tokio::test]
async fn a_beacon_that_is_away_for_the_whole_epoch_loses_the_weights_and_a_late_one_does_not() {
    let (chain, client) = start(committing()).await;
    chain.produce_block().await.unwrap();
    let beacon = beacon(&client).await;
    let round = beacon.round_at(time_in(&client, 1).await);
    let sealed = seal(&beacon, round, &payload("Alice", &[2], &[1]), [1; 32]).unwrap();

    chain.set_pulses(false).await.unwrap();
    client.follow("Alice", &commit(&sealed, round)).await.unwrap();
    let epoch = chain.epoch().await.unwrap();
    reach(&chain, epoch + 1).await;
    chain.produce_blocks(5).await.unwrap();
    assert_eq!(chain.weights(0).await.unwrap(), [], "no pulse came");
    chain.set_pulses(true).await.unwrap();
    chain.produce_block().await.unwrap();
    assert_eq!(chain.weights(0).await.unwrap(), [(2, 65535)], "it caught up in the same epoch");

    let again = beacon.round_at(time_in(&client, 1).await);
    let sealed = seal(&beacon, again, &payload("Alice", &[3], &[1]), [1; 32]).unwrap();
    client.follow("Alice", &commit(&sealed, again)).await.unwrap();
    chain.set_pulses(false).await.unwrap();
    reach(&chain, chain.epoch().await.unwrap() + 2).await;
    chain.set_pulses(true).await.unwrap();
    chain.produce_blocks(3).await.unwrap();
    assert_eq!(chain.weights(0).await.unwrap(), [(2, 65535)], "the weights never came");
}

#[tokio::test]
async fn a_chain_that_hears_of_rounds_late_opens_late() {
    let (chain, client) = start(committing()).await;
    // Four rounds are a block.
    chain.pulse_lag(16).await.unwrap();
    chain.produce_blocks(6).await.unwrap();
    let beacon = beacon(&client).await;
    let last = stored(&client, "Drand", "LastStoredRound").await;
    assert_eq!(last, beacon.round_at(time_in(&client, 0).await) - 16);
    let ahead = chain.next_epoch().await.unwrap().unwrap() + 1 - 6;
    let round = beacon.round_at(time_in(&client, ahead).await);
    let sealed = seal(&beacon, round, &payload("Alice", &[2], &[1]), [1; 32]).unwrap();
    client.follow("Alice", &commit(&sealed, round)).await.unwrap();
    reach(&chain, chain.epoch().await.unwrap() + 1).await;
    let mut late = 0;
    while chain.weights(0).await.unwrap().is_empty() {
        chain.produce_block().await.unwrap();
        late += 1;
    }
    assert_eq!(late, 4);
}

#[tokio::test]
async fn rounds_of_the_past_other_versions_and_too_many_commits_are_refused() {
    for genesis in runtimes::both(committing()) {
        let (chain, client) = start(genesis).await;
        chain.produce_blocks(3).await.unwrap();
        let last = stored(&client, "Drand", "LastStoredRound").await;
        let past = client.send("Alice", &commit(b"sealed", last - 1)).await.unwrap_err();
        assert_eq!(past, Refused(1010, "Custom error: 15".to_owned()));
        client.follow("Alice", &commit(b"sealed", last + 8)).await.unwrap();
        let round = last + 1000;
        let error = client.follow("Alice", &commit_as(b"sealed", round, 3)).await.unwrap_err();
        assert!(error.contains("IncorrectCommitRevealVersion"), "{error}");
        let error = client.follow("Stranger", &commit(b"sealed", round)).await.unwrap_err();
        assert!(error.contains("HotKeyNotRegisteredInSubNet"), "{error}");
        chain.set_tempo(1000).await.unwrap();
        chain.produce_block().await.unwrap();
        for _ in 0..10 {
            client.follow("Bob", &commit(b"sealed", round)).await.unwrap();
        }
        let error = client.follow("Bob", &commit(b"sealed", round)).await.unwrap_err();
        assert!(error.contains("TooManyUnrevealedCommits"), "{error}");
        chain.set_commit_reveal(false).await.unwrap();
        chain.produce_block().await.unwrap();
        let error = client.follow("Alice", &commit(b"sealed", round)).await.unwrap_err();
        assert!(error.contains("CommitRevealDisabled"), "{error}");
    }
}

#[tokio::test]
async fn a_commit_waits_for_the_rate_limit() {
    let genesis = Genesis { rate_limit: 4, stake_threshold: 2000 * TAO, ..committing() };
    let (chain, client) = start(genesis).await;
    let poor = client.send("Bob", &commit(b"sealed", 1000)).await.unwrap_err();
    assert_eq!(poor, Refused(1010, "Custom error: 1".to_owned()));
    client.follow("Alice", &commit(b"sealed", 1000)).await.unwrap();
    // As on the live chain, this one is said after inclusion only.
    let error = client.follow("Alice", &commit(b"sealed", 1000)).await.unwrap_err();
    assert!(error.contains("CommittingWeightsTooFast"), "{error}");
    chain.produce_blocks(2).await.unwrap();
    client.follow("Alice", &commit(b"sealed", 1000)).await.unwrap();
}

#[tokio::test]
async fn hostile_commits_never_stop_the_chain_nor_the_honest_one_beside_them() {
    for genesis in runtimes::both(Genesis { production: Production::Manual, ..committing() }) {
        let (chain, client) = start(genesis).await;
        chain.produce_block().await.unwrap();
        let beacon = beacon(&client).await;
        let round = beacon.round_at(time_in(&client, 2).await);
        let seal = |bytes: &[u8]| seal(&beacon, round, bytes, [7; 32]).unwrap();
        let honest = seal(&payload("Alice", &[2, 3], &[1, 1]));
        let mut flipped = honest.clone();
        flipped[120] ^= 1;
        let mut lengths = honest.clone();
        lengths[96..104].fill(0xff);
        let hostile: Vec<Vec<u8>> = vec![
            Vec::new(),
            vec![0],
            vec![0xff; drand::MAX_SEALED],
            honest[..honest.len() - 1].to_vec(),
            honest[..100].to_vec(),
            flipped,
            lengths,
            // Another's weights, copied as they are.
            honest.clone(),
            // Nothing, garbage, and a length of all the memory in the world, well sealed.
            seal(&[]),
        ];
        let inside: Vec<Vec<u8>> = vec![
            seal(&[0xff; 40]),
            seal(&[0xfe, 0xff, 0xff, 0xff]),
            seal(&payload("Bob", &[2, 2], &[1, 1])),
            seal(&payload("Bob", &[9000], &[1])),
            seal(&payload("Bob", &[2, 3], &[1])),
        ];
        let mut tx = client.api.tx().await.unwrap();
        // Ten commits at most are taken of one hotkey in an epoch.
        let all = hostile.iter().map(|bytes| ("Bob", bytes));
        let all = all.chain(inside.iter().map(|bytes| ("Carol", bytes)));
        let mut nonces = std::collections::HashMap::new();
        for (who, bytes) in all.chain([("Alice", &honest)]) {
            let nonce = nonces.entry(who).or_insert(0);
            let call = commit(bytes, round);
            let signed = tx.create_signed(&call, &key(who), immortal(*nonce)).await.unwrap();
            signed.submit().await.unwrap();
            *nonce += 1;
        }
        chain.produce_block().await.unwrap();
        assert!(chain.extrinsics().await.unwrap().iter().all(|x| x.error.is_none()));
        reach(&chain, chain.epoch().await.unwrap() + 1).await;
        chain.produce_blocks(2).await.unwrap();
        assert_eq!(chain.weights(0).await.unwrap(), [(2, 65535), (3, 65535)]);
        assert_eq!(chain.weights(1).await.unwrap(), []);
        assert_eq!(chain.weights(2).await.unwrap(), []);

        let huge = vec![0; drand::MAX_SEALED + 1];
        let Refused(code, why) =
            client.send("Alice", &commit(&huge, round + 99)).await.unwrap_err();
        assert_eq!(code, 1002, "{why}");
    }
}
