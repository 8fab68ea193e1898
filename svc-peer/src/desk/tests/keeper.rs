//! A merge that only keeps bytes, and its desk on a port.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use domain::{Hotkey, RoundId};
use futures::{StreamExt as _, stream};
use kit::{Certificate, GrpcServer, Shutdown};
use merge::{Claim, Data, Digest, Exchange, Said, Statement, Verified};
use store::Store;

use crate::{
    call::Caller,
    chunks::Garbage,
    config::Config,
    desk::Desk,
    discovery::Discovery,
    error::Refused,
    guests::{Limits, Open},
    lines::Lines,
    merging::{Merging, Outgoing, Taking},
    nonces::Nonces,
    peer_api,
    testing::{hotkey, signer, verified},
};

pub(crate) const ROUND: RoundId = RoundId(336);
pub(crate) const ASKER: u8 = 1;
pub(crate) const ASKED: u8 = 2;
pub(crate) const STRANGER: u8 = 3;

/// An exchange with one claim of the validator about this chunk.
pub(crate) fn tells(seed: u8, chunk: u32) -> Exchange<Verified> {
    let what = Statement::Claim(Claim { statement: Digest([seed; 32]), chunk });
    let said = Said { round: ROUND, author: hotkey(seed), what };
    Exchange { incarnation: 1, group: None, had: None, statements: vec![verified(seed, said)] }
}

/// The slice that the tests are about.
pub(crate) fn piece() -> Data {
    Data::Piece { giver: hotkey(ASKER), slice: 3 }
}

/// Its first chunk, counted in the whole vector.
pub(crate) const FIRST: u32 = 10;

/// Chunks of different lengths.
pub(crate) fn chunks(count: u32) -> Vec<Bytes> {
    (0..count).map(|n| vec![n as u8; 1000 + n as usize].into()).collect()
}

pub(crate) fn list(chunks: &[Bytes]) -> Arc<[Digest]> {
    chunks.iter().map(|chunk| Digest::of(chunk)).collect()
}

/// What is kept of some data, from chunk [`FIRST`] on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    pub(crate) list: Vec<Digest>,
    pub(crate) chunks: Vec<Bytes>,
    /// How many chunks there should be.
    pub(crate) whole: u32,
    /// After the chunks nothing more comes, and no end.
    pub(crate) stuck: bool,
    /// After the chunks the disk fails.
    pub(crate) broken: bool,
}

type Shelf = Arc<Mutex<BTreeMap<Data, Kept>>>;

/// Keeps bytes.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    shelf: Shelf,
    pub(crate) heard: Mutex<Vec<(Hotkey, Exchange<Verified>)>>,
}

impl Keeper {
    pub(crate) fn put(&self, data: Data, kept: Kept) {
        self.shelf.lock().unwrap().insert(data, kept);
    }

    pub(crate) fn kept(&self, data: &Data) -> Option<Kept> {
        self.shelf.lock().unwrap().get(data).cloned()
    }
}

#[tonic::async_trait]
impl Merging for Keeper {
    async fn exchange(
        &self,
        from: &Hotkey,
        exchange: Exchange<Verified>,
    ) -> Result<Exchange<Verified>, Refused> {
        let mut heard = self.heard.lock().unwrap();
        heard.push((from.clone(), exchange));
        Ok(tells(ASKED, heard.len() as u32))
    }

    async fn offer(
        &self,
        _: &Hotkey,
        data: &Data,
        wanted: Range<u32>,
    ) -> Result<Outgoing, Refused> {
        let kept = self.kept(data).ok_or(Refused::NotHere)?;
        let end = kept.chunks.len().min((wanted.end - FIRST) as usize);
        let chunks = kept.chunks[(wanted.start - FIRST) as usize..end].to_vec();
        let more = match (kept.broken, kept.stuck) {
            (true, _) => stream::iter([Err(io::Error::other("the disk fails"))]).boxed(),
            (false, true) => stream::pending().boxed(),
            (false, false) => stream::empty().boxed(),
        };
        let chunks = stream::iter(chunks.into_iter().map(Ok)).chain(more).boxed();
        Ok(Outgoing { list: kept.list.into(), chunks })
    }

    async fn take(&self, _: &Hotkey, data: &Data) -> Result<Box<dyn Taking>, Refused> {
        let kept = self.kept(data).ok_or(Refused::NotWanted)?;
        Ok(Box::new(Taker { shelf: Arc::clone(&self.shelf), data: data.clone(), kept }))
    }
}

struct Taker {
    shelf: Shelf,
    data: Data,
    kept: Kept,
}

#[tonic::async_trait]
impl Taking for Taker {
    fn range(&self) -> Range<u32> {
        FIRST..FIRST + self.kept.whole
    }

    fn listed(&self) -> usize {
        self.kept.whole as usize
    }

    fn next(&self) -> Option<u32> {
        let here = self.kept.chunks.len() as u32;
        (here < self.kept.whole).then_some(FIRST + here)
    }

    async fn list(&mut self, list: Vec<Digest>) -> Result<(), Refused> {
        self.kept.list = list;
        Ok(())
    }

    async fn chunk(&mut self, bytes: Bytes) -> Result<(), Refused> {
        if self.kept.list.get(self.kept.chunks.len()) != Some(&Digest::of(&bytes)) {
            return Err(Garbage::OtherChunk { chunk: 0 }.into());
        }
        self.kept.chunks.push(bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<bool, Refused> {
        let all = self.next().is_none();
        self.shelf.lock().unwrap().insert(self.data, self.kept);
        Ok(all)
    }
}

/// The asked validator.
pub(crate) struct Peer {
    pub(crate) addr: SocketAddr,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) shutdown: Shutdown,
    /// Ends the round.
    pub(crate) round: Shutdown,
    scheme: &'static str,
}

/// How a peer is made.
pub(crate) struct Setting {
    pub(crate) limits: Limits,
    pub(crate) idle: Duration,
    /// What its server shows.
    pub(crate) shows: Option<Certificate>,
    /// What it says that its server shows.
    pub(crate) names: Option<[u8; 32]>,
}

impl Default for Setting {
    fn default() -> Self {
        let limits = Limits { requests: 100, transfers: 2 };
        Self { limits, idle: Duration::from_secs(60), shows: None, names: None }
    }
}

impl Peer {
    pub(crate) async fn start(setting: Setting) -> Self {
        let Setting { limits, idle, shows, names } = setting;
        let shutdown = Shutdown::default();
        let addr = "127.0.0.1:0".parse().unwrap();
        let server = GrpcServer::bind_public(addr, shows.as_ref()).await.unwrap();
        let addr = server.local_addr();
        let nonces = Nonces::new(Store::in_memory(), rand::random);
        let desk = Arc::new(Desk::new(signer(ASKED, &shutdown).await, nonces, idle, names));
        let (keeper, round) = (Arc::new(Keeper::default()), shutdown.child());
        let others = [hotkey(ASKER), hotkey(ASKED)];
        let merging: Arc<dyn Merging> = keeper.clone();
        desk.open(Open::new(ROUND, hotkey(ASKED), others, limits, merging, round.clone()));
        let server = peer_api::add(server, Arc::clone(&desk));
        let stop = shutdown.clone();
        shutdown.spawn(async move { kit::serve(server, stop).await.unwrap() });
        let scheme = if shows.is_some() { "https" } else { "http" };
        Self { addr, keeper, desk, shutdown, round, scheme }
    }

    /// A validator that calls this one.
    pub(crate) async fn caller(&self) -> Caller {
        self.caller_at(&format!("{}://{}", self.scheme, self.addr), Duration::from_secs(60)).await
    }

    /// A validator that looks for this one at `url`.
    pub(crate) async fn caller_at(&self, url: &str, timeout: Duration) -> Caller {
        let mut config: Config = kit::config::load_with(None, "peer", |_| None).unwrap();
        config.peer_urls = [(hotkey(ASKED), url.to_owned())].into();
        let discovery = Discovery::new(Duration::from_secs(5)).unwrap();
        let axons = [(hotkey(ASKED), String::new())];
        let lines = Lines::new(Arc::new(config), discovery, axons);
        let nonces = Nonces::new(Store::in_memory(), rand::random);
        let signer = signer(ASKER, &self.shutdown).await;
        Caller::new(ROUND, hotkey(ASKER), lines, signer, nonces, timeout)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
