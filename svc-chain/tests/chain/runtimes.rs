//! Runtimes of every age, and one that changes under way.

use devchain::{Genesis, METADATA};
use proto::chain::v1::{self, Finality};
use store::Store;

use crate::{
    net::{self, Watched},
    rig::{self, Running},
};

/// The metadata with one name in it changed for another of the same length.
fn renamed(from: &str, to: &str) -> Vec<u8> {
    devchain::with_renamed(METADATA, from, to).unwrap()
}

async fn metagraph(service: &mut Running, at: Option<v1::At>) -> v1::Metagraph {
    let request = v1::GetMetagraphRequest { at };
    service.client.get_metagraph(request).await.unwrap().into_inner()
}

fn busy_genesis(metadata: Option<Vec<u8>>) -> Genesis {
    let mut genesis = Genesis { metadata, weights_version: 7, ..rig::genesis() };
    genesis.neurons[0].coldkey = [5; 32];
    genesis.neurons[1].last_update = 3;
    genesis.neurons[2].axon = Some("8.8.8.8:8091".parse().unwrap());
    genesis
}

#[tokio::test]
async fn the_metagraph_from_storage_is_the_one_of_the_runtime_call() {
    let mut both = Vec::new();
    for metadata in [None, Some(renamed("get_selective_metagraph", "get_selective_metagrapx"))] {
        let chain = rig::start(busy_genesis(metadata)).await;
        chain.wait_for_block(1).await.unwrap();
        let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
        let mut metagraph = metagraph(&mut service, rig::at_number(1)).await;
        assert_eq!(metagraph.neurons.len(), 3);
        // Another metadata makes other blocks.
        metagraph.block_hash = Default::default();
        both.push(metagraph);
        service.stop().await;
    }
    assert_eq!(both[0], both[1]);
    assert_eq!(both[0].neurons[2].axon, "8.8.8.8:8091");
}

#[tokio::test]
async fn an_upgrade_in_mid_cycle_is_gone_through_without_a_restart() {
    let (chain, nodes) = net::chain(2, rig::genesis()).await;
    let config = svc_chain::Config { max_lag: 20, ..net::config(&nodes) };
    let mut service = Running::start(config, &Store::in_memory()).await;
    let mut watched = Watched::start(&mut service, Finality::Best).await;
    watched.reaches(3).await;
    let before = chain.head().await.unwrap();
    chain.upgrade(devchain::with_spec_version(METADATA, 366).unwrap()).await.unwrap();
    net::until_status(&mut service, "the new runtime is seen", |s| s.spec_version == 366).await;
    let head = u64::from(chain.head().await.unwrap().number);
    watched.reaches(head + 3).await;
    watched.is_of(&chain).await;
    for number in [u64::from(before.number), head] {
        assert_eq!(metagraph(&mut service, rig::at_number(number)).await.neurons.len(), 3);
    }
    let status = net::status(&mut service.client).await;
    assert_eq!(status.missing, Vec::<String>::new());
    assert!(service.is_ready());
    let written = rig::carried_out(&mut service.client, rig::weights(7, &[(2, 1.0)])).await;
    assert_eq!(written.state(), v1::IntentState::Done, "{written:?}");
    service.stop().await;
}

#[tokio::test]
async fn an_upgrade_that_takes_something_away_is_named_and_what_still_works_goes_on() {
    let (chain, nodes) = net::chain(1, rig::genesis()).await;
    let mut service = Running::start(net::config(&nodes), &Store::in_memory()).await;
    net::until("it is ready", || async { service.is_ready().then_some(()) }).await;
    let lacking = renamed("ServingRateLimit", "ServingRateLimix");
    chain.upgrade(devchain::with_spec_version(&lacking, 366).unwrap()).await.unwrap();
    let status = net::until_status(&mut service, "it is named", |status| {
        status.missing.iter().any(|missing| missing.contains("SubtensorModule.ServingRateLimit"))
    })
    .await;
    let noticed = net::degradations(&status, "runtime_lacks");
    assert!(noticed[0].contains("ServingRateLimit") && noticed[0].contains("366"), "{noticed:?}");
    net::until("it is not ready", || async { (!service.is_ready()).then_some(()) }).await;
    let head = u64::from(chain.head().await.unwrap().number);
    assert_eq!(metagraph(&mut service, rig::at_number(head)).await.neurons.len(), 3);
    // The next upgrade brings it back.
    chain.upgrade(devchain::with_spec_version(METADATA, 367).unwrap()).await.unwrap();
    net::until("it is ready again", || async { service.is_ready().then_some(()) }).await;
    service.stop().await;
}

#[tokio::test]
async fn every_saved_runtime_can_be_read() {
    let Some(folder) = std::env::var_os("CONNITO_METADATA_DIR") else {
        eprintln!("skipped: CONNITO_METADATA_DIR is not set");
        return;
    };
    let mut read = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.ends_with(".scale") {
            continue;
        }
        let metadata = std::fs::read(&path).unwrap();
        let chain = rig::start(busy_genesis(Some(metadata))).await;
        chain.wait_for_block(1).await.unwrap();
        let mut service = Running::start(rig::config(&chain), &Store::in_memory()).await;
        let metagraph = metagraph(&mut service, rig::at_number(1)).await;
        let stakes: Vec<_> = metagraph.neurons.iter().map(|neuron| neuron.stake).collect();
        assert_eq!(stakes, [1000 * rig::RAO, 500 * rig::RAO, 0], "{name}");
        assert_eq!(metagraph.neurons[2].axon, "8.8.8.8:8091", "{name}");
        assert!(metagraph.neurons[0].validator_permit, "{name}");
        let request = v1::GetCommitmentsRequest { at: rig::at_number(1), agreed: false };
        service.client.get_commitments(request).await.unwrap();
        service.stop().await;
        read += 1;
    }
    assert!(read > 0);
}
