//! Validators that give models to others, and misbehave in one way each.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use checkpoint::ChunkDigests;
use domain::{GlobalVersion, Hotkey};
use futures::{Stream, StreamExt as _, stream};
use kit::{GrpcServer, Shutdown, Tls};
use proto::peer::v2::{
    self as wire,
    chunk::Part,
    model_service_server::{ModelService, ModelServiceServer},
};
use svc_peer::{
    message::{Body, Envelope},
    resync::message::{CHUNK, Holdings, HoldingsRequest, ModelFile, ShardRequest},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::{
    network::{hotkey, keypair},
    sealing::sealed,
};

/// What a holder does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// Gives what it has.
    Honest,
    /// Its server dies once it has given so many chunks.
    Dies(u64),
    /// Gives nothing more after so many chunks, until it is let go on.
    Stalls(u64),
    /// Changes a byte of every chunk of the model.
    Garbage,
    /// Gives lists of digests that it has not signed.
    OtherList,
}

/// A validator that has the model in a folder.
pub(crate) struct Holder {
    pub(crate) hotkey: Hotkey,
    pub(crate) addr: SocketAddr,
    /// Bytes of chunks that it has given.
    pub(crate) served: Arc<AtomicU64>,
    go: watch::Sender<bool>,
    shutdown: Shutdown,
}

#[derive(Clone)]
struct Desk {
    seed: u8,
    folder: PathBuf,
    version: u64,
    deed: Deed,
    given: Arc<AtomicU64>,
    served: Arc<AtomicU64>,
    go: watch::Receiver<bool>,
    shutdown: Shutdown,
}

/// The files that a model is made of, as an honest holder signs them.
pub(crate) fn files(folder: &Path) -> Vec<ModelFile> {
    let names = ["manifest.json", "model_full.safetensors", "optimizer_0.safetensors"];
    let there = names.into_iter().filter(|name| folder.join(name).exists());
    there
        .map(|name| {
            let list = list(&folder.join(name));
            ModelFile { name: name.to_owned(), len: list.len(), chunk: CHUNK, root: list.root() }
        })
        .collect()
}

fn list(path: &Path) -> ChunkDigests {
    ChunkDigests::of(CHUNK as usize, &std::fs::read(path).unwrap()).unwrap()
}

impl Holder {
    pub(crate) async fn start(seed: u8, folder: &Path, version: u64, deed: Deed) -> Self {
        let server =
            GrpcServer::bind("127.0.0.1:0".parse().unwrap(), &Tls::default()).await.unwrap();
        let addr = server.local_addr();
        let (go, seen) = watch::channel(false);
        let shutdown = Shutdown::default();
        let served = Arc::new(AtomicU64::new(0));
        let desk = Desk {
            seed,
            folder: folder.to_owned(),
            version,
            deed,
            given: Arc::default(),
            served: Arc::clone(&served),
            go: seen,
            shutdown: shutdown.clone(),
        };
        let server = server
            .grace(std::time::Duration::ZERO)
            .add(ModelServiceServer::new(desk).max_encoding_message_size(4 << 20));
        let stop = shutdown.clone();
        shutdown.spawn(async move { kit::serve(server, stop).await.unwrap() });
        Self { hotkey: hotkey(seed), addr, served, go, shutdown }
    }

    /// Lets a holder that stalls go on.
    pub(crate) fn go_on(&self) {
        self.go.send_replace(true);
    }

    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Desk {
    /// A chunk, or what this holder gives for it.
    async fn chunk(self, name: String, index: u32) -> Result<wire::Chunk, Status> {
        let given = self.given.fetch_add(1, Ordering::SeqCst);
        match self.deed {
            Deed::Dies(most) if given >= most => {
                self.shutdown.cancel();
                std::future::pending::<()>().await;
            }
            Deed::Stalls(most) if given >= most => {
                let mut go = self.go.clone();
                go.wait_for(|go| *go).await.map_err(|_| Status::unavailable("over"))?;
            }
            Deed::Honest | Deed::Dies(_) | Deed::Stalls(_) | Deed::Garbage | Deed::OtherList => {}
        }
        let all = std::fs::read(self.folder.join(&name)).unwrap();
        let mut bytes = all.chunks(CHUNK as usize).nth(index as usize).unwrap().to_vec();
        if self.deed == Deed::Garbage && name != "manifest.json" {
            bytes[0] ^= 1;
        }
        self.served.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(wire::Chunk { part: Some(Part::Data(bytes.into())) })
    }
}

type Chunks = std::pin::Pin<Box<dyn Stream<Item = Result<wire::Chunk, Status>> + Send>>;

#[tonic::async_trait]
impl ModelService for Desk {
    type GetShardStream = Chunks;

    async fn get_holdings(
        &self,
        request: Request<wire::SignedMessage>,
    ) -> Result<Response<wire::SignedMessage>, Status> {
        let wire::SignedMessage { body, signature } = request.into_inner();
        let asked = HoldingsRequest::open(&body, &signature).unwrap();
        let holdings = Holdings {
            envelope: Envelope {
                round: asked.envelope.round,
                sender: hotkey(self.seed),
                receiver: asked.envelope.sender,
                nonce: keypair(self.seed).public.to_bytes()[..16].try_into().unwrap(),
                in_reply_to: Some(asked.envelope.nonce),
            },
            version: GlobalVersion(self.version),
            model: asked.model,
            files: files(&self.folder),
        };
        let (body, signature) = sealed(self.seed, &holdings);
        Ok(Response::new(wire::SignedMessage { body, signature }))
    }

    async fn get_shard(
        &self,
        request: Request<wire::SignedMessage>,
    ) -> Result<Response<Chunks>, Status> {
        let wire::SignedMessage { body, signature } = request.into_inner();
        let asked = ShardRequest::open(&body, &signature).unwrap();
        if asked.count == 0 {
            let list = list(&self.folder.join(&asked.name));
            let mut digests = list.digests().as_flattened().to_vec();
            if self.deed == Deed::OtherList {
                digests[0] ^= 1;
            }
            let list = wire::ChunkList { digests: Bytes::from(digests), last: true };
            let only = wire::Chunk { part: Some(Part::List(list)) };
            return Ok(Response::new(Box::pin(stream::iter([Ok(only)]))));
        }
        let desk = self.clone();
        let chunks = stream::iter(asked.first..asked.first + asked.count)
            .then(move |index| desk.clone().chunk(asked.name.clone(), index));
        Ok(Response::new(Box::pin(chunks)))
    }
}
