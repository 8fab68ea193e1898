//! What other validators are answered about models. As for merges, everything is hostile until its
//! signature is verified, and is for one receiver, once.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use domain::{GlobalVersion, Hotkey, ModelHash, RoundId};
use futures::{Stream, stream};
use merge::Digest;
use proto::InvalidField;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::debug;

use super::{
    holdings::{Held, Holdings},
    message::{self, HoldingsRequest, ShardRequest},
    roster::{Roster, Rosters},
};
use crate::{
    config::Config,
    error::Refused,
    message::{Body, Envelope, MAX_BODY},
    metrics,
    nonces::Nonces,
    part::Part,
    signer::Signer,
};

/// What a validator has asked for in a round, and what it gets right now.
#[derive(Debug)]
struct Asker {
    round: RoundId,
    requests: u32,
    streams: Arc<Semaphore>,
}

/// Answers other validators.
#[derive(Debug)]
pub(crate) struct ModelDesk {
    rosters: Arc<Rosters>,
    holdings: Arc<Holdings>,
    signer: Signer,
    nonces: Nonces,
    config: Arc<Config>,
    askers: Mutex<BTreeMap<Hotkey, Asker>>,
}

impl ModelDesk {
    /// Gives what `holdings` has to whom `rosters` names.
    pub(crate) fn new(
        rosters: Arc<Rosters>,
        holdings: Arc<Holdings>,
        signer: Signer,
        nonces: Nonces,
        config: Arc<Config>,
    ) -> Self {
        Self { rosters, holdings, signer, nonces, config, askers: Mutex::default() }
    }

    /// Reads a message, cheap checks first. Every refusal is counted.
    async fn admit<M: Body>(&self, body: &Bytes, signature: &Bytes) -> Result<M, Refused> {
        let admitted = self.check::<M>(body, signature).await;
        if let Err(refused) = &admitted {
            metrics::refused(refused.reason());
            debug!(reason = refused.reason(), error = %refused, "message refused");
        }
        admitted
    }

    async fn check<M: Body>(&self, body: &Bytes, signature: &Bytes) -> Result<M, Refused> {
        if body.len() > MAX_BODY {
            return Err(InvalidField::new("body", "too long").into());
        }
        let unverified = M::decode(body)?;
        let Envelope { round, sender, receiver, .. } = unverified.envelope();
        let roster = self.rosters.now()?;
        roster.admits(*round, sender, receiver)?;
        let message = M::open(body, signature)?;
        let Envelope { round, sender, nonce, .. } = message.envelope();
        self.asker(&roster, sender, |asker| {
            asker.requests += 1;
            if asker.requests > self.config.max_requests { Err(Refused::TooMany) } else { Ok(()) }
        })?;
        self.nonces.take(*round, sender, *nonce).await?;
        Ok(message)
    }

    fn asker<T>(&self, now: &Roster, sender: &Hotkey, with: impl FnOnce(&mut Asker) -> T) -> T {
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        let asker = askers.entry(sender.clone()).or_insert_with(|| Asker {
            round: now.round,
            requests: 0,
            streams: Arc::new(Semaphore::new(self.config.resync.max_streams)),
        });
        if asker.round != now.round {
            (asker.round, asker.requests) = (now.round, 0);
        }
        with(asker)
    }

    /// Says which files of a model are here.
    pub(crate) async fn holdings(
        &self,
        body: &Bytes,
        signature: &Bytes,
    ) -> Result<(Bytes, Bytes), Refused> {
        let asked = self.admit::<HoldingsRequest>(body, signature).await?;
        let held = self.holdings.get(&asked.model).await?;
        let held = held.filter(|held| held.group == asked.group);
        let files = held.iter().flat_map(|held| &held.files).map(|held| held.file.clone());
        let answer = message::Holdings {
            envelope: asked.envelope.answer(self.nonces.fresh()),
            version: held.as_ref().map_or(GlobalVersion(0), |held| held.version),
            model: asked.model,
            files: files.collect(),
        };
        let body = answer.encode();
        let digest = message::Holdings::digest(&body);
        let signature = self.signer.sign(&answer.envelope.sender, digest).await?;
        Ok((body, signature))
    }

    /// Gives a file's digests, or chunks of it.
    pub(crate) async fn shard(
        &self,
        body: &Bytes,
        signature: &Bytes,
    ) -> Result<impl Stream<Item = Result<Part, Refused>> + Send + use<>, Refused> {
        let ShardRequest { envelope, model, name, first, count } =
            self.admit(body, signature).await?;
        let held = self.holdings.get(&model).await?.ok_or(Refused::NoModel)?;
        let file = held.file(&name).ok_or(Refused::NoModel)?;
        let chunks = file.file.chunks();
        let end = first.checked_add(count).filter(|end| *end <= chunks);
        let end = end.ok_or_else(|| InvalidField::new("count", "beyond the end of the file"))?;
        let streams = self.asker(&self.rosters.now()?, &envelope.sender, |asker| {
            Arc::clone(&asker.streams).try_acquire_owned()
        });
        let streams = streams.map_err(|_| Refused::TooMany)?;
        let list = if count == 0 { parts(file.list.digests()) } else { Vec::new() };
        let holdings = Arc::clone(&self.holdings);
        let sending =
            Sending { holdings, model, held, name, left: first..end, list, _streams: streams };
        Ok(stream::try_unfold(sending, Sending::next))
    }
}

/// The parts of a list, the first one last.
fn parts(digests: &[[u8; 32]]) -> Vec<Part> {
    let digests: Vec<Digest> = digests.iter().copied().map(Digest).collect();
    let mut parts: Vec<Part> = Part::of_list(&digests).collect();
    parts.reverse();
    parts
}

/// What is on its way.
struct Sending {
    holdings: Arc<Holdings>,
    model: ModelHash,
    held: Arc<Held>,
    name: String,
    left: Range<u32>,
    list: Vec<Part>,
    _streams: OwnedSemaphorePermit,
}

impl Sending {
    /// The next part, read when the receiver has room for it.
    async fn next(mut self) -> Result<Option<(Part, Self)>, Refused> {
        if let Some(part) = self.list.pop() {
            return Ok(Some((part, self)));
        }
        let Some(index) = self.left.next() else { return Ok(None) };
        let file = self.held.file(&self.name).ok_or(Refused::NoModel)?;
        let bytes = self.holdings.chunk(&self.model, &self.held, file, index).await?;
        metrics::model_bytes_sent(bytes.len());
        Ok(Some((Part::Data(bytes), self)))
    }
}
