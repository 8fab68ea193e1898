//! A chain that is put away and taken out again.

use devchain::{DevChain, Genesis, StartError, StateError, Taken, with_spec_version};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use crate::client::*;

async fn load(state: &[u8], genesis: Genesis) -> Result<DevChain, StateError> {
    match DevChain::load(state, genesis, anywhere()).await {
        Ok(chain) => Ok(chain),
        Err(StartError::State(error)) => Err(error),
        Err(other) => panic!("not about the state: {other}"),
    }
}

/// A chain that has seen something, with finality two blocks behind.
async fn lived() -> (DevChain, Client) {
    let (chain, client) = start(manual(2)).await;
    let commit = set_commitment(&[b"data"]);
    client.submit(&client.signed("Carol", &commit, immortal(0)).await).await.unwrap();
    chain.produce_blocks(2).await.unwrap();
    chain.reorganise(1, Taken::Back).await.unwrap();
    chain.upgrade(with_spec_version(devchain::METADATA, 366).unwrap()).await.unwrap();
    // An ordinary client signs for the runtime of the newest finalized block.
    chain.produce_blocks(3).await.unwrap();
    let weights = set_weights(&[2], &[1], 0);
    client.submit(&client.signed("Alice", &weights, immortal(0)).await).await.unwrap();
    chain.produce_block().await.unwrap();
    chain.set_stake(1, 5 * TAO).await.unwrap();
    (chain, client)
}

#[tokio::test]
async fn a_loaded_chain_is_the_same_chain_and_goes_on() {
    let (chain, _client) = lived().await;
    let state = chain.save().await.unwrap();
    let loaded = load(&state, manual(2)).await.unwrap();
    assert_eq!(loaded.genesis_hash(), chain.genesis_hash());
    assert_eq!(loaded.head().await, chain.head().await);
    assert_eq!(loaded.finalized().await, chain.finalized().await);
    assert_eq!(loaded.extrinsics().await, chain.extrinsics().await);
    assert_eq!(loaded.all_included().await, chain.all_included().await);
    assert_eq!(loaded.weights(0).await, chain.weights(0).await);
    for block in 0..=7 {
        assert_eq!(loaded.block_hash(block).await, chain.block_hash(block).await);
        let carol = public("Carol");
        assert_eq!(
            loaded.commitment(carol, Some(block)).await,
            chain.commitment(carol, Some(block)).await
        );
    }
    assert_eq!(loaded.save().await.unwrap(), state, "nothing is lost on the way");
    // Both make the same next block of what was staged, and the same nonces count.
    assert_eq!(loaded.produce_block().await, chain.produce_block().await);
    let client = Client::connect(&loaded.url()).await;
    let again = client.signed("Alice", &remark(b"again"), immortal(0)).await;
    assert_eq!(client.submit(&again).await.unwrap_err().0, 1010, "the nonce was used");
    client.send("Carol", &set_commitment(&[b"more"])).await.unwrap();
    loaded.produce_block().await.unwrap();
    assert_eq!(loaded.extrinsics().await.unwrap().len(), 3);
}

#[tokio::test]
async fn what_was_not_final_can_still_be_taken_back_after_loading() {
    let (chain, _client) = lived().await;
    let loaded = load(&chain.save().await.unwrap(), manual(2)).await.unwrap();
    assert!(loaded.reorganise(3, Taken::Back).await.is_err());
    loaded.reorganise(1, Taken::Back).await.unwrap();
    let journal = loaded.extrinsics().await.unwrap();
    assert_eq!(journal.len(), 2);
    assert_ne!(journal[1].block_hash, chain.extrinsics().await.unwrap()[1].block_hash);
}

#[tokio::test]
async fn bytes_that_are_not_a_saved_chain_are_refused_by_name() {
    let (chain, _client) = lived().await;
    let state = chain.save().await.unwrap();
    let refused = async |state: &[u8]| load(state, manual(0)).await.unwrap_err();
    for foreign in [&b""[..], b"devchai", b"garbage that is not a chain"] {
        assert_eq!(refused(foreign).await, StateError::Foreign);
    }
    let mut later = state.clone();
    later[8] = 9;
    assert_eq!(refused(&later).await, StateError::Version(9));
    for cut in [10, 12, 50, state.len() / 2, state.len() - 1] {
        assert_eq!(refused(&state[..cut]).await, StateError::Damaged, "{cut}");
    }
    let mut flipped = state.clone();
    flipped[state.len() / 2] ^= 1;
    assert_eq!(refused(&flipped).await, StateError::Damaged);
    let other = Genesis { netuid: 7, ..manual(0) };
    let error = load(&state, other).await.unwrap_err();
    assert_eq!(error, StateError::Subnet { saved: NETUID, asked: 7 });
}

/// Bytes of someone who knows the format and gives them a digest that fits.
#[tokio::test]
async fn a_forged_state_is_refused_or_is_a_chain_and_never_a_panic() {
    let (chain, _client) = lived().await;
    let state = chain.save().await.unwrap();
    let body = state[..state.len() - 32].to_vec();
    let mut runner = TestRunner::deterministic();
    // Past the metadata, where the blocks and the states are.
    let place = body.len() - 20_000..body.len();
    let changes = prop::collection::vec((place, any::<u8>()), 1..4);
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..60 {
        let mut forged = body.clone();
        for (at, byte) in changes.new_tree(&mut runner).unwrap().current() {
            forged[at] = byte;
        }
        let digest: [u8; 32] = {
            use blake2::Digest as _;
            blake2::Blake2b::<blake2::digest::consts::U32>::digest(&forged).into()
        };
        forged.extend(digest);
        match DevChain::load(&forged, manual(0), anywhere()).await {
            Ok(chain) => {
                taken += 1;
                // It may end, where its state does not fit its metadata. It does so in order.
                let _ = chain.produce_block().await;
                within(chain.stop()).await;
            }
            Err(StartError::State(StateError::Broken(_) | StateError::Subnet { .. })) => {
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 0 && taken > 0, "{refused} refused, {taken} taken");
}
