//! The runtime changes while an intent is under way: it lands exactly once, and who watches the
//! chain goes on.

use std::time::Duration;

use devchain::{DevChain, Genesis, METADATA, Production, with_spec_version};
use proto::chain::v1::{Finality, IntentState};
use store::Store;
use svc_chain::Config;

use crate::{
    net::{self, Watched},
    rig::{self, Running},
};

/// How far an intent is when the runtime changes.
#[derive(Debug, Clone, Copy)]
enum When {
    BeforeItIsSent,
    InThePool,
    IncludedAndNotFinal,
    /// Sent for the new runtime, before the change is final.
    AfterTheChange,
}

fn genesis() -> Genesis {
    Genesis {
        production: Production::Interval(Duration::from_millis(60)),
        finality_lag: 8,
        rate_limit: 0,
        ..rig::genesis()
    }
}

async fn blocks(chain: &DevChain, more: u32) {
    let head = chain.head().await.unwrap();
    chain.wait_for_block(head.number + more).await.unwrap();
}

/// Takes the chain to another runtime while weights of a round are under way.
async fn upgraded(chain: &DevChain, service: &mut Running, round: u64, to: &[u8], when: When) {
    let request = rig::weights(round, &[(2, 1.0), (1, round as f64 / 100.0)]);
    let key = request.key.clone();
    let before = chain.extrinsics().await.unwrap().len();
    let state = match when {
        When::BeforeItIsSent | When::AfterTheChange => None,
        When::InThePool => Some(IntentState::Submitted),
        When::IncludedAndNotFinal => Some(IntentState::Included),
    };
    if matches!(when, When::InThePool) {
        chain.hold_pool(true).await.unwrap();
    }
    if let Some(state) = state {
        service.client.submit_intent(request.clone()).await.unwrap();
        rig::until(&mut service.client, key.clone(), |i| i.state() == state).await;
    }
    chain.upgrade(to.to_vec()).await.unwrap();
    match when {
        When::BeforeItIsSent => {
            service.client.submit_intent(request).await.unwrap();
        }
        When::AfterTheChange => {
            blocks(chain, 1).await;
            chain.hold_pool(true).await.unwrap();
            service.client.submit_intent(request).await.unwrap();
            rig::until(&mut service.client, key.clone(), |i| i.attempts > 0).await;
            blocks(chain, 4).await;
        }
        When::InThePool | When::IncludedAndNotFinal => blocks(chain, 2).await,
    }
    chain.hold_pool(false).await.unwrap();
    let intent = rig::finished(&mut service.client, key).await;
    assert_eq!(intent.state(), IntentState::Done, "{when:?}: {intent:?}");
    let attempts = match when {
        When::IncludedAndNotFinal | When::AfterTheChange => 1..=1,
        When::InThePool => 2..=2,
        // Signed for the one runtime or for the other.
        When::BeforeItIsSent => 1..=2,
    };
    assert!(attempts.contains(&intent.attempts), "{when:?}: {intent:?}");
    blocks(chain, 10).await;
    let journal = chain.extrinsics().await.unwrap();
    assert_eq!(journal.len(), before + 1, "{when:?}: {journal:?}");
    assert_eq!(journal[before].hash.to_vec(), intent.extrinsic_hash);
    assert_eq!(journal[before].error, None);
}

/// Goes through changes of the runtime, one after the other, with intents at every stage.
async fn goes_through(first: Option<Vec<u8>>, changes: Vec<(u32, Vec<u8>)>) {
    let (chain, nodes) = net::chain(1, Genesis { metadata: first, ..genesis() }).await;
    let config = Config { max_lag: 20, ..net::config(&nodes) };
    let mut service = Running::start(config, &Store::in_memory()).await;
    let mut watched = Watched::start(&mut service, Finality::Best).await;
    let mut watched_final = Watched::start(&mut service, Finality::Finalized).await;
    let stages =
        [When::BeforeItIsSent, When::InThePool, When::IncludedAndNotFinal, When::AfterTheChange];
    let stages = stages.into_iter().cycle();
    for (round, ((spec, metadata), when)) in (1..).zip(changes.into_iter().zip(stages)) {
        upgraded(&chain, &mut service, round, &metadata, when).await;
        let status = net::status(&mut service.client).await;
        assert_eq!((status.spec_version, status.missing), (spec, Vec::new()));
        let head = chain.head().await.unwrap().number;
        watched.reaches(head.into()).await;
    }
    watched.is_of(&chain).await;
    let final_one = chain.finalized().await.unwrap().number;
    watched_final.reaches(final_one.into()).await;
    assert_eq!((watched.depths.len(), watched_final.depths.len()), (0, 0));
    assert!(service.is_ready(), "it was never started again");
    service.stop().await;
}

#[tokio::test]
async fn an_intent_lands_once_at_whatever_stage_the_runtime_changes() {
    let later = |spec| (spec, with_spec_version(METADATA, spec).unwrap());
    goes_through(None, (366..374).map(later).collect()).await;
}

#[tokio::test]
async fn an_intent_lands_once_while_the_chain_goes_through_the_saved_runtimes() {
    let Some(folder) = std::env::var_os("CONNITO_METADATA_DIR").map(std::path::PathBuf::from)
    else {
        eprintln!("skipped: CONNITO_METADATA_DIR is not set");
        return;
    };
    let saved = |spec: u32| {
        let file = folder.join(format!("subtensor_finney_spec{spec}_v16.scale"));
        std::fs::read(file).unwrap()
    };
    for first in 0..4 {
        // The stages begin with another one each time.
        let mut changes: Vec<_> =
            (0..first).map(|n| (366 + n, with_spec_version(METADATA, 366 + n).unwrap())).collect();
        changes.extend([(393, saved(393)), (424, saved(424))]);
        goes_through(None, changes).await;
    }
}
