//! The commitments as of the blocks that rounds are made of.

use devchain::{Genesis, Taken};
use kit::Common;
use proto::chain::v1::{self, Source};
use store::Store;
use svc_chain::Config;

use crate::{
    net,
    rig::{self, Running},
};

/// Phases of five blocks: snapshots are due at 20 and 25 blocks into a cycle, and at 45 and 50,
/// where the next one begins.
fn common() -> Common {
    Common { phases: vec![5, 5, 10, 5, 5, 5, 5, 5, 5], ..rig::common() }
}

const CYCLE: u64 = 50;

async fn start(config: Config, store: &Store) -> Running {
    let mut service = Running::launch_with(config, common(), store).await;
    service.ready().await;
    service
}

async fn commitments(
    service: &mut Running,
    number: u64,
    agreed: bool,
) -> Result<v1::GetCommitmentsResponse, tonic::Status> {
    let request = v1::GetCommitmentsRequest { at: rig::at_number(number), agreed };
    service.client.get_commitments(request).await.map(tonic::Response::into_inner)
}

/// The first block that a snapshot is due of after this one.
fn due_after(number: u64) -> u64 {
    let due = |number: &u64| [0, 20, 25, 45].contains(&(number % CYCLE));
    (number + 1..).find(due).unwrap()
}

async fn has_snapshot(service: &mut Running, number: u64) {
    net::until_status(service, "the snapshot is taken", |s| s.snapshots.contains(&number)).await;
}

fn config(nodes: &[devchain::DevNode]) -> Config {
    Config { max_lag: 20, ..net::config(nodes) }
}

#[tokio::test]
async fn a_snapshot_is_served_when_no_node_has_the_state_any_more_and_after_a_restart() {
    let (chain, nodes) = net::chain(2, rig::genesis()).await;
    let store = Store::in_memory();
    let mut service = start(config(&nodes), &store).await;
    let seed = r#"{"s":7}"#;
    let intent = rig::carried_out(&mut service.client, rig::commitment(1, "seed", seed)).await;
    let number = due_after(intent.block);
    has_snapshot(&mut service, number).await;
    let later = rig::commitment(2, "signed_hash", r#"{"m":"x"}"#);
    assert_eq!(rig::carried_out(&mut service.client, later).await.state(), v1::IntentState::Done);
    for node in &nodes {
        node.set_keep_states(Some(3));
    }
    chain.wait_for_block(u32::try_from(number).unwrap() + 10).await.unwrap();
    let hash = chain.block_hash(u32::try_from(number).unwrap()).await.unwrap().unwrap();
    for restarted in [false, true] {
        if restarted {
            service.kill();
            service = start(config(&nodes), &store).await;
        }
        for agreed in [false, true] {
            let answer = commitments(&mut service, number, agreed).await.unwrap();
            assert_eq!(answer.source(), Source::Snapshot);
            assert_eq!(answer.agreed_by, 2);
            assert_eq!(answer.block.as_ref().unwrap().hash, hash.to_vec());
            assert_eq!(answer.commitments[0].data, seed.as_bytes());
            assert_eq!(answer.commitments[0].block, intent.block);
        }
        let at = rig::at_hash(&hash);
        let by_hash = v1::GetCommitmentsRequest { at, agreed: true };
        let by_hash = service.client.get_commitments(by_hash).await.unwrap().into_inner();
        assert_eq!(by_hash.source(), Source::Snapshot);
        let gone = commitments(&mut service, number + 1, false).await.unwrap_err();
        assert!(gone.message().starts_with("state_discarded"), "{gone:?}");
    }
    service.stop().await;
}

#[tokio::test]
async fn a_snapshot_of_a_block_that_is_taken_back_is_taken_again() {
    let genesis = Genesis { finality_lag: 40, ..rig::genesis() };
    let (chain, nodes) = net::chain(1, genesis).await;
    let mut service = start(config(&nodes), &Store::in_memory()).await;
    let request = rig::commitment(1, "seed", r#"{"s":7}"#);
    let key = request.key.clone();
    service.client.submit_intent(request).await.unwrap();
    let included = rig::until(&mut service.client, key, |intent| intent.block > 0).await;
    let number = due_after(included.block);
    has_snapshot(&mut service, number).await;
    let before = commitments(&mut service, number, false).await.unwrap();
    assert_eq!((before.source(), before.commitments.len()), (Source::Snapshot, 1));

    let head = u64::from(chain.head().await.unwrap().number);
    let depth = u32::try_from(head - included.block + 1).unwrap();
    chain.reorganise(depth, Taken::Later(40)).await.unwrap();
    let hash = chain.block_hash(u32::try_from(number).unwrap()).await.unwrap().unwrap();
    let after = net::until("the snapshot is taken again", || {
        let mut client = service.client.clone();
        async move {
            let at = rig::at_number(number);
            let request = v1::GetCommitmentsRequest { at, agreed: true };
            let answer = client.get_commitments(request).await.ok()?.into_inner();
            let there = answer.block.as_ref().is_some_and(|block| block.hash == hash.to_vec());
            (there && answer.source() == Source::Snapshot).then_some(answer)
        }
    })
    .await;
    assert_eq!(after.commitments, [], "what was committed was taken back with the block");
    service.stop().await;
}

#[tokio::test]
async fn a_snapshot_that_was_missed_is_recovered_from_an_archive_and_that_is_said_once() {
    let (chain, nodes) = net::chain(2, rig::genesis()).await;
    let (pruned, archive) = (&nodes[0], &nodes[1]);
    let store = Store::in_memory();
    let mut service = start(config(&nodes[..1]), &store).await;
    let seed = r#"{"s":7}"#;
    let intent = rig::carried_out(&mut service.client, rig::commitment(1, "seed", seed)).await;
    // Down while the block was fresh, and the node has forgotten it since.
    service.kill();
    let number = due_after(intent.block + 1);
    pruned.set_keep_states(Some(3));
    chain.wait_for_block(u32::try_from(number).unwrap() + 6).await.unwrap();
    let mut service = start(config(&nodes[..1]), &store).await;
    let gone = commitments(&mut service, number, false).await.unwrap_err();
    assert!(gone.message().starts_with("state_discarded"), "{gone:?}");
    service.kill();

    let with_archive = Config { archive_endpoints: vec![archive.url()], ..config(&nodes[..1]) };
    let mut service = start(with_archive, &store).await;
    let recovered = commitments(&mut service, number, true).await.unwrap();
    assert_eq!(recovered.source(), Source::Archive);
    assert_eq!(recovered.commitments[0].data, seed.as_bytes());
    assert_eq!(recovered.degradations[0].kind, "archive_used");
    let kept = commitments(&mut service, number, true).await.unwrap();
    assert_eq!((kept.source(), kept.degradations.len()), (Source::Snapshot, 0));
    assert_eq!(kept.commitments, recovered.commitments);
    let status = net::status(&mut service.client).await;
    assert_eq!(net::degradations(&status, "archive_used").len(), 1);
    service.stop().await;
}

#[tokio::test]
async fn a_snapshot_of_one_endpoints_word_does_not_pass_for_two() {
    let (_chain, nodes) = net::chain(2, rig::genesis()).await;
    let mut service = start(config(&nodes), &Store::in_memory()).await;
    nodes[1].set_lie(Some(devchain::Lie::Commitments));
    let intent =
        rig::carried_out(&mut service.client, rig::commitment(1, "seed", r#"{"s":7}"#)).await;
    let number = due_after(intent.block);
    has_snapshot(&mut service, number).await;
    let one = commitments(&mut service, number, false).await.unwrap();
    assert_eq!((one.source(), one.agreed_by), (Source::Snapshot, 1));
    let two = commitments(&mut service, number, true).await.unwrap_err();
    assert!(two.message().starts_with("disagreement"), "{two:?}");
    // Once it says the truth, the snapshot is made good.
    nodes[1].set_lie(None);
    net::until("two agree on it", || {
        let mut client = service.client.clone();
        async move {
            let request = v1::GetCommitmentsRequest { at: rig::at_number(number), agreed: true };
            let answer = client.get_commitments(request).await.ok()?.into_inner();
            (answer.source() == Source::Snapshot && answer.agreed_by == 2).then_some(())
        }
    })
    .await;
    service.stop().await;
}
