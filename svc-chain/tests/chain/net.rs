//! A chain with several nodes, and what a service on it tells.

use std::{future::Future, net::SocketAddr, time::Duration};

use devchain::{DevChain, DevNode, Genesis, Production};
use futures::StreamExt as _;
use proto::chain::v1::{self, chain_event::Event};
use svc_chain::Config;
use tokio::time::{sleep, timeout};

use crate::rig::{self, Client, PATIENCE, Running};

/// The live chain twenty times as fast: 12 s, 4 s and 5 s there.
pub(crate) const BLOCK: Duration = Duration::from_millis(600);
const PROBE: Duration = Duration::from_millis(200);
const REQUEST: Duration = Duration::from_millis(250);

/// A chain of so many nodes, the one that makes the blocks first.
pub(crate) async fn chain(count: usize, genesis: Genesis) -> (DevChain, Vec<DevNode>) {
    let chain = rig::start(genesis).await;
    let mut nodes = vec![chain.node()];
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    for _ in 1..count {
        nodes.push(chain.add_node(listen).await.unwrap());
    }
    (chain, nodes)
}

/// A block every 600 ms.
pub(crate) fn genesis() -> Genesis {
    Genesis { production: Production::Interval(BLOCK), ..rig::genesis() }
}

/// A service on these nodes, best first, as fast as the chain.
pub(crate) fn config(nodes: &[DevNode]) -> Config {
    Config {
        grpc_addr: "127.0.0.1:0".parse().unwrap(),
        endpoints: nodes.iter().map(DevNode::url).collect(),
        wallet_path: rig::wallets(),
        coldkey: "validator".to_owned(),
        lease_ttl: Duration::from_secs(1),
        request_timeout: REQUEST,
        probe_interval: PROBE,
        ..Config::defaults()
    }
}

pub(crate) async fn status(client: &mut Client) -> v1::GetStatusResponse {
    client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner()
}

/// Waits until the status is as asked.
pub(crate) async fn until_status(
    service: &mut Running,
    what: &str,
    is: impl Fn(&v1::GetStatusResponse) -> bool,
) -> v1::GetStatusResponse {
    let client = &mut service.client;
    let mut last = None;
    let wait = async {
        loop {
            let status = status(client).await;
            if is(&status) {
                return status;
            }
            last = Some(status);
            sleep(Duration::from_millis(10)).await;
        }
    };
    match timeout(PATIENCE, wait).await {
        Ok(status) => status,
        Err(_) => panic!("{what}: {last:#?}"),
    }
}

/// Waits until something is there.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut find: impl FnMut() -> F,
) -> T {
    let wait = async {
        loop {
            if let Some(found) = find().await {
                return found;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"))
}

/// The endpoint in use.
pub(crate) fn in_use(status: &v1::GetStatusResponse) -> Option<&v1::Endpoint> {
    status.endpoints.iter().find(|endpoint| endpoint.in_use)
}

/// The details of the degradations of a kind.
pub(crate) fn degradations<'a>(status: &'a v1::GetStatusResponse, kind: &str) -> Vec<&'a str> {
    let of_kind = status.degradations.iter().filter(|degradation| degradation.kind == kind);
    of_kind.map(|degradation| degradation.detail.as_str()).collect()
}

/// The chain as a watcher holds it: every block is checked to be linked when it is told.
pub(crate) struct Watched {
    stream: tonic::Streaming<v1::ChainEvent>,
    pub(crate) blocks: Vec<v1::Block>,
    /// Blocks that each reorganisation took back.
    pub(crate) depths: Vec<u64>,
    pub(crate) degradations: Vec<String>,
}

impl Watched {
    pub(crate) async fn start(service: &mut Running, finality: v1::Finality) -> Self {
        let request = v1::WatchBlocksRequest { finality: finality.into(), known: None };
        let stream = service.client.watch_blocks(request).await.unwrap().into_inner();
        Self { stream, blocks: Vec::new(), depths: Vec::new(), degradations: Vec::new() }
    }

    /// Goes on with what is held at a service, maybe at another one.
    pub(crate) async fn resume(&mut self, service: &mut Running, finality: v1::Finality) {
        // Numbers and hashes are what a caller keeps.
        let known = self
            .blocks
            .last()
            .map(|block| v1::Block { parent_hash: Vec::new().into(), ..block.clone() });
        let request = v1::WatchBlocksRequest { finality: finality.into(), known };
        self.stream = service.client.watch_blocks(request).await.unwrap().into_inner();
    }

    /// The next event, as it is told.
    pub(crate) async fn next(&mut self) -> Event {
        let event = timeout(PATIENCE, self.stream.next()).await.expect("the stream goes on");
        event.unwrap().unwrap().event.unwrap()
    }

    pub(crate) fn tip(&self) -> u64 {
        self.blocks.last().map_or(0, |block| block.number)
    }

    /// Takes events until a block of this height or a later one was told.
    pub(crate) async fn reaches(&mut self, number: u64) {
        while self.tip() < number {
            let event = self.next().await;
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Block(block) => {
                if let Some(last) = self.blocks.last() {
                    assert_eq!(block.number, last.number + 1);
                    assert_eq!(block.parent_hash, last.hash, "block {}", block.number);
                }
                self.blocks.push(block);
            }
            Event::Reorganisation(told) => {
                let (ancestor, abandoned) = (told.ancestor.unwrap(), told.abandoned.unwrap());
                assert_eq!(self.blocks.last(), Some(&abandoned));
                self.depths.push(abandoned.number - ancestor.number);
                while self.blocks.last().is_some_and(|block| block.number > ancestor.number) {
                    self.blocks.pop();
                }
                assert!(self.blocks.last().is_none_or(|block| *block == ancestor));
            }
            Event::Degradation(told) => self.degradations.push(told.kind),
        }
    }

    /// Asserts that what is held is what the chain has now.
    pub(crate) async fn is_of(&self, chain: &DevChain) {
        for block in &self.blocks {
            let number = u32::try_from(block.number).unwrap();
            let hash = chain.block_hash(number).await.unwrap().unwrap();
            assert_eq!(block.hash, hash.to_vec(), "block {number}");
        }
    }
}
