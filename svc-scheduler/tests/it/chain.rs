//! A chain service that tells a subnet's story block by block, with blocks that are taken back where
//! a test asks for it, and may misbehave in one way.

mod service;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use domain::ModelHash;
use kit::{GrpcServer, Shutdown, Tls};
use proto::{
    chain::v1::{
        self as chain, chain_service_server::ChainServiceServer, submit_intent_request::Payload,
    },
    common::v1::Degradation,
};
use service::Handler;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::Status;

use crate::world::LONG;

/// How the service misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not at all.
    Honest,
    /// Sends every block twice, and an old one after it.
    Stutters,
    /// Cannot read what lies on chain.
    Blind,
    /// Takes every intent and lands none.
    NeverLands,
    /// Takes no weights, for good.
    RefusesWeights,
    /// Loses every intent once, before it has landed.
    Forgetful,
    /// Its endpoints do not agree, until [`FakeChain::agree`].
    Disagrees,
    /// Tells with every answer that an archive node had to be asked.
    TellsDegradations,
    /// Has never seen weights of the validator under test.
    NeverPaid,
    /// Loses the seeds of all validators.
    Seedless,
}

/// What has happened on the chain.
#[derive(Debug, Clone, Default)]
struct Story {
    head: u64,
    /// Ancestors of the blocks that were taken back, in order.
    forks: Vec<u64>,
    told: Vec<Degradation>,
    disagrees: bool,
    /// What the other validator reveals at the end of a cycle: hash, version, and its stake.
    reveals: Option<(ModelHash, u64, u64)>,
}

impl Story {
    /// The block at this height, of the branch that counts now.
    fn block(&self, number: u64) -> chain::Block {
        let hash = |number: u64| {
            let mut hash = vec![number as u8; 32];
            hash[31] = self.forks.iter().filter(|ancestor| number > **ancestor).count() as u8;
            hash.into()
        };
        chain::Block { number, hash: hash(number), parent_hash: hash(number.saturating_sub(1)) }
    }

    /// The same as somebody has seen it who holds a block of it; `None` where it was never told.
    fn when(&self, known: &chain::Block) -> Option<Self> {
        let seen = |forks: usize| Self {
            head: known.number,
            forks: self.forks[..forks].to_vec(),
            ..self.clone()
        };
        let mut seen = (0..=self.forks.len()).rev().map(seen);
        seen.find(|story| story.block(known.number).hash == known.hash)
    }

    /// What several endpoints must agree on.
    fn agreed(&self, asked: bool, number: u64) -> Result<(), Status> {
        if asked && self.disagrees {
            let message = format!("disagreement: block {number} has two hashes");
            return Err(Status::failed_precondition(message));
        }
        Ok(())
    }
}

type Key = (u64, String);

/// What was asked of the service.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Every call of SubmitIntent, in order.
    pub(crate) submitted: Vec<(Key, Payload)>,
    /// How often somebody began to watch.
    pub(crate) watchers: usize,
    /// Every block that was sent to a watcher.
    pub(crate) sent: Vec<u64>,
    intents: BTreeMap<Key, (Payload, u32)>,
    forgotten: Vec<Key>,
}

struct Shared {
    seed: u8,
    story: watch::Sender<Story>,
    fault: Fault,
    book: Mutex<Book>,
}

/// The service, which can go away and come back at the same address.
pub(crate) struct FakeChain {
    shared: Arc<Shared>,
    addr: SocketAddr,
    shutdown: Shutdown,
}

impl FakeChain {
    pub(crate) async fn start(seed: u8, fault: Fault, head: u64) -> Self {
        let story = Story { head, disagrees: fault == Fault::Disagrees, ..Story::default() };
        let (story, book) = (watch::Sender::new(story), Mutex::default());
        let shared = Arc::new(Shared { seed, story, fault, book });
        let (addr, shutdown) = serve(&shared, ([127, 0, 0, 1], 0).into()).await;
        Self { shared, addr, shutdown }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Makes blocks up to `head`.
    pub(crate) fn advance(&self, head: u64) {
        self.shared.story.send_modify(|story| story.head = head);
    }

    /// Takes back everything above `ancestor`, and makes other blocks up to `head`.
    pub(crate) fn reorganise(&self, ancestor: u64, head: u64) {
        self.shared.story.send_modify(|story| {
            story.forks.push(ancestor);
            story.head = head;
        });
    }

    /// Has the endpoints agree from now on.
    pub(crate) fn agree(&self) {
        self.shared.story.send_modify(|story| story.disagrees = false);
    }

    /// Has the other validator reveal this model at the end of every cycle, with this stake.
    pub(crate) fn reveal(&self, hash: ModelHash, version: u64, stake: u64) {
        self.shared.story.send_modify(|story| story.reveals = Some((hash, version, stake)));
    }

    /// Tells watchers that something did not go the normal way.
    pub(crate) fn tell(&self, kind: &str, detail: &str, block: u64) {
        let (kind, detail) = (kind.to_owned(), detail.to_owned());
        self.shared.story.send_modify(|story| story.told.push(Degradation { kind, detail, block }));
    }

    pub(crate) fn head(&self) -> u64 {
        self.shared.story.borrow().head
    }

    /// Hash of the block at this height now.
    pub(crate) fn hash(&self, number: u64) -> Vec<u8> {
        self.shared.story.borrow().block(number).hash.to_vec()
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap()
    }

    /// Waits until watchers came this often.
    pub(crate) async fn is_watched(&self, times: usize) {
        let end = Instant::now() + LONG;
        while self.book().watchers < times {
            assert!(Instant::now() < end, "nobody watches");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// What was submitted under `kind`, and whether it was ever anything else.
    pub(crate) fn payload(&self, kind: &str) -> Payload {
        let book = self.book();
        let mut all = book.submitted.iter().filter(|((_, k), _)| k == kind).map(|(_, p)| p);
        let first = all.next().unwrap_or_else(|| panic!("no `{kind}` was submitted")).clone();
        assert!(all.all(|payload| *payload == first), "`{kind}` changed its payload");
        first
    }

    /// Bytes of the commitment that was submitted under `kind`.
    pub(crate) fn commitment(&self, kind: &str) -> Vec<u8> {
        let payload = self.payload(kind);
        let Payload::Commitment(commitment) = payload else { panic!("`{kind}`: {payload:?}") };
        commitment.data.to_vec()
    }

    /// Stops serving: streams end, connections are refused. Blocks go on.
    pub(crate) async fn go_away(&self) {
        assert!(self.shutdown.drain(LONG).await);
    }

    /// Serves again, with the intents that it had.
    pub(crate) async fn come_back(&mut self) {
        (_, self.shutdown) = serve(&self.shared, self.addr).await;
    }
}

impl Drop for FakeChain {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn serve(shared: &Arc<Shared>, addr: SocketAddr) -> (SocketAddr, Shutdown) {
    let server = GrpcServer::bind(addr, &Tls::default()).await.unwrap();
    let (addr, shutdown) = (server.local_addr(), Shutdown::default());
    let handler = Handler { shared: Arc::clone(shared), stop: shutdown.clone() };
    let server = server.add(ChainServiceServer::new(handler));
    let stop = shutdown.clone();
    shutdown.spawn(async move { kit::serve(server, stop).await.unwrap() });
    (addr, shutdown)
}
