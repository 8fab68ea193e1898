//! Calls to other validators about models: found, signed, verified, bounded. The only place that
//! knows how another validator is reached.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use domain::{ExpertGroup, Hotkey, ModelHash, RoundId};
use proto::peer::v2::{self as wire, chunk::Part, model_service_client::ModelServiceClient};
use tokio::sync::Mutex;
use tonic::Status;

use super::message::{Holdings, HoldingsRequest, ModelFile, ShardRequest};
use crate::{
    calls::CallError,
    config::Config,
    discovery::{Discovery, DiscoveryError},
    error::reason_of,
    messages::{Body, Envelope},
    metrics,
    nonces::Nonces,
    signer::Signer,
};

type Client = ModelServiceClient<kit::Channel>;

/// What a [`Line`] is made with.
#[derive(Debug, Clone)]
pub(crate) struct Plumbing {
    pub(crate) config: Arc<Config>,
    pub(crate) tls: kit::Tls,
    pub(crate) discovery: Discovery,
    pub(crate) signer: Signer,
    pub(crate) nonces: Nonces,
}

/// Calls the holders of one model.
#[derive(Debug)]
pub(crate) struct Line {
    plumbing: Plumbing,
    round: RoundId,
    me: Hotkey,
    model: ModelHash,
    axons: BTreeMap<Hotkey, String>,
    clients: BTreeMap<Hotkey, Mutex<Option<Client>>>,
}

/// Chunks of a file on their way.
#[derive(Debug)]
pub(crate) struct Shard {
    stream: tonic::Streaming<wire::Chunk>,
    idle: Duration,
}

impl Line {
    /// Calls of `me` in `round` about `model`, to validators with these axons.
    pub(crate) fn new(
        plumbing: Plumbing,
        round: RoundId,
        me: Hotkey,
        model: ModelHash,
        axons: BTreeMap<Hotkey, String>,
    ) -> Self {
        let clients = axons.keys().map(|hotkey| (hotkey.clone(), Mutex::default())).collect();
        Self { plumbing, round, me, model, axons, clients }
    }

    async fn find(&self, holder: &Hotkey) -> Result<Client, CallError> {
        let Plumbing { config, tls, discovery, .. } = &self.plumbing;
        let url = match config.peer_urls.get(holder) {
            Some(url) => url.clone(),
            None => discovery.find(self.axons.get(holder).map_or("", String::as_str)).await?,
        };
        let plain = kit::Tls::default();
        let tls = if url.starts_with("https://") { tls } else { &plain };
        let channel = kit::channel_with(&url, tls, config.call_timeout)
            .map_err(|error| CallError::Url(format!("{error:#}")))?;
        Ok(ModelServiceClient::new(channel)
            .max_decoding_message_size(config.max_message_bytes)
            .max_encoding_message_size(config.max_message_bytes))
    }

    /// Calls `holder`, and forgets where it is when it could not be reached: it may have moved.
    async fn call<T, F>(
        &self,
        holder: &Hotkey,
        call: impl FnOnce(Client) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let slot = self.clients.get(holder).ok_or(DiscoveryError::NoAxon)?;
        let client = {
            let mut slot = slot.lock().await;
            match &*slot {
                Some(client) => client.clone(),
                None => slot.insert(self.find(holder).await?).clone(),
            }
        };
        let timeout = self.plumbing.config.call_timeout;
        let answer = tokio::time::timeout(timeout, call(client)).await;
        let unreached = match &answer {
            Ok(Ok(_)) => false,
            Ok(Err(status)) => reason_of(status) == "other",
            Err(_) => true,
        };
        if unreached {
            *slot.lock().await = None;
        }
        Ok(answer.map_err(|_| CallError::Silent)??)
    }

    async fn sealed<M: Body + Sync>(&self, message: &M) -> Result<wire::SignedMessage, CallError> {
        let sealed = self.plumbing.signer.seal(message).await;
        let (body, signature) = sealed.map_err(CallError::Own)?;
        Ok(wire::SignedMessage { body, signature })
    }

    fn envelope(&self, receiver: &Hotkey) -> Envelope {
        Envelope {
            round: self.round,
            sender: self.me.clone(),
            receiver: receiver.clone(),
            nonce: self.plumbing.nonces.fresh(),
            in_reply_to: None,
        }
    }

    /// Asks which files of the model `holder` has. The answer comes with its signed bytes.
    pub(crate) async fn holdings(
        &self,
        holder: &Hotkey,
        group: ExpertGroup,
    ) -> Result<(Holdings, (Bytes, Bytes)), CallError> {
        let asked = HoldingsRequest { envelope: self.envelope(holder), group, model: self.model };
        let request = self.sealed(&asked).await?;
        let answer = self.call(holder, async |mut client| client.get_holdings(request).await);
        let wire::SignedMessage { body, signature } = answer.await?.into_inner();
        let holdings = Holdings::open_answer(&asked.envelope, &body, &signature)
            .map_err(CallError::Untrusted)?;
        if holdings.model != self.model {
            return Err(CallError::Garbage { what: "holdings of another model" });
        }
        Ok((holdings, (body, signature)))
    }

    /// The digests of a file's chunks, joined; not checked against its root.
    pub(crate) async fn list(&self, holder: &Hotkey, file: &ModelFile) -> Result<Bytes, CallError> {
        let mut stream = self.open(holder, file, 0, 0).await?;
        let expected = file.chunks() as usize * 32;
        let mut digests = BytesMut::new();
        loop {
            let Some(Part::List(list)) = stream.part().await? else {
                return Err(CallError::Garbage { what: "something else than a list" });
            };
            if digests.len() + list.digests.len() > expected {
                return Err(CallError::Garbage { what: "a list that is too long" });
            }
            digests.extend_from_slice(&list.digests);
            if list.last {
                return Ok(digests.freeze());
            }
            if list.digests.is_empty() {
                return Err(CallError::Garbage { what: "an empty part of a list" });
            }
        }
    }

    /// Opens a stream of chunks of a file.
    pub(crate) async fn open(
        &self,
        holder: &Hotkey,
        file: &ModelFile,
        first: u32,
        count: u32,
    ) -> Result<Shard, CallError> {
        let (envelope, name) = (self.envelope(holder), file.name.clone());
        let request = ShardRequest { envelope, model: self.model, name, first, count };
        let request = self.sealed(&request).await?;
        let answer = self.call(holder, async |mut client| client.get_shard(request).await).await?;
        Ok(Shard { stream: answer.into_inner(), idle: self.plumbing.config.call_timeout })
    }
}

impl Shard {
    async fn part(&mut self) -> Result<Option<Part>, CallError> {
        let next = tokio::time::timeout(self.idle, self.stream.message()).await;
        match next.map_err(|_| CallError::Silent)?? {
            Some(wire::Chunk { part: Some(part) }) => Ok(Some(part)),
            Some(wire::Chunk { part: None }) => Err(CallError::Garbage { what: "an empty chunk" }),
            None => Ok(None),
        }
    }

    /// The next chunk, not checked.
    pub(crate) async fn next(&mut self) -> Result<Bytes, CallError> {
        match self.part().await? {
            Some(Part::Data(bytes)) => {
                metrics::model_bytes_received(bytes.len());
                Ok(bytes)
            }
            Some(Part::List(_)) => Err(CallError::Garbage { what: "a list among chunks" }),
            None => Err(CallError::CutShort),
        }
    }
}
