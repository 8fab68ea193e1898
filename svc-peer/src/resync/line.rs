//! Calls to other validators about models: signed, verified, bounded.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use domain::{ExpertGroup, Hotkey, ModelHash, RoundId};
use merge::Digest;
use proto::{
    InvalidField,
    peer::v2::{self as wire, model_service_client::ModelServiceClient},
};
use tonic::Status;

use super::message::{Holdings, HoldingsRequest, ModelFile, ShardRequest};
use crate::{
    call::CallError,
    config::Config,
    discovery::Discovery,
    lines::Lines,
    message::{Body, Envelope, MAX_MESSAGE},
    metrics,
    nonces::Nonces,
    part::{Gathering, Part},
    signer::Signer,
};

type Client = ModelServiceClient<kit::Channel>;

/// What a [`Line`] is made with.
#[derive(Debug, Clone)]
pub(crate) struct Plumbing {
    pub(crate) config: Arc<Config>,
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
    lines: Lines,
}

/// Chunks of a file on their way.
#[derive(Debug)]
pub(crate) struct Shard {
    stream: tonic::Streaming<wire::Chunk>,
    idle: Duration,
}

fn garbage(what: &'static str) -> CallError {
    InvalidField::new("part", what).into()
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
        let lines = Lines::new(Arc::clone(&plumbing.config), plumbing.discovery.clone(), axons);
        Self { plumbing, round, me, model, lines }
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
        let line = self.lines.get(holder).await?;
        let client = ModelServiceClient::new(line.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let answer = tokio::time::timeout(self.plumbing.config.call_timeout, call(client)).await;
        let answer = match answer {
            Ok(answer) => answer.map_err(CallError::from),
            Err(_) => Err(CallError::Silent),
        };
        if answer.as_ref().is_err_and(CallError::unreached) {
            self.lines.forget(holder, &line).await;
        }
        answer
    }

    async fn sealed<M: Body + Sync>(&self, message: &M) -> Result<wire::SignedMessage, CallError> {
        let body = message.encode();
        let signature = self.plumbing.signer.sign(&self.me, M::digest(&body)).await;
        Ok(wire::SignedMessage { body, signature: signature.map_err(CallError::Own)? })
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
            return Err(garbage("holdings of another model"));
        }
        Ok((holdings, (body, signature)))
    }

    /// The digests of a file's chunks; not checked against its root.
    pub(crate) async fn list(
        &self,
        holder: &Hotkey,
        file: &ModelFile,
    ) -> Result<Vec<Digest>, CallError> {
        let mut stream = self.open(holder, file, 0, 0).await?;
        let mut gathering = Gathering::new(file.chunks() as usize);
        loop {
            let part = stream.part().await?.ok_or(CallError::CutShort)?;
            if let Some(list) = gathering.take(part)? {
                return Ok(list);
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
        let chunk = next.map_err(|_| CallError::Silent)??;
        Ok(chunk.map(Part::from_wire).transpose()?)
    }

    /// The next chunk, not checked.
    pub(crate) async fn next(&mut self) -> Result<Bytes, CallError> {
        match self.part().await? {
            Some(Part::Data(bytes)) => {
                metrics::model_bytes_received(bytes.len());
                Ok(bytes)
            }
            Some(Part::List { .. }) => Err(garbage("a list among chunks")),
            None => Err(CallError::CutShort),
        }
    }
}
