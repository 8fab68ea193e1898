//! What other validators are answered: everything they send is hostile until its signature is
//! verified, and bound to one round, sender and receiver, once.
//!
//! The desk checks who says what; what is answered is for the
//! [`Merging`](crate::merging::Merging) of the open round.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use domain::RoundId;
use futures::Stream;
use tokio::sync::watch;
use tracing::{debug, instrument};

use crate::{
    error::Refused,
    guests::Open,
    message::{Body, Envelope, Exchange, Fetch, Keys, MAX_BODY, Push},
    metrics,
    nonces::Nonces,
    part::Part,
    signer::Signer,
    transfer::{self, Incoming},
};

/// A signed message: its body and signature.
pub(crate) type Signed = (Bytes, Bytes);

/// Answers other validators, about one round at a time.
#[derive(Debug)]
pub(crate) struct Desk {
    open: watch::Sender<Option<Arc<Open>>>,
    signer: Signer,
    nonces: Nonces,
    idle: Duration,
    certificate: Option<[u8; 32]>,
}

impl Desk {
    /// No round is open yet. Streams that stand still for `idle` end; `certificate` is the SHA-256
    /// of the one that the server shows.
    pub(crate) fn new(
        signer: Signer,
        nonces: Nonces,
        idle: Duration,
        certificate: Option<[u8; 32]>,
    ) -> Self {
        Self { open: watch::Sender::new(None), signer, nonces, idle, certificate }
    }

    /// Talks about this round from now on, unless a newer one is open.
    pub(crate) fn open(&self, round: Open) {
        self.open.send_if_modified(|open| {
            let newest = open.as_ref().is_none_or(|open| open.round <= round.round);
            if newest {
                *open = Some(Arc::new(round));
            }
            newest
        });
    }

    fn current(&self, id: RoundId) -> Result<Arc<Open>, Refused> {
        match &*self.open.borrow() {
            Some(open) if open.round == id => Ok(Arc::clone(open)),
            Some(open) if open.round > id => Err(Refused::OldRound { newer: open.round.0 }),
            Some(_) | None => Err(Refused::NotStarted),
        }
    }

    /// Reads a message, cheap checks first: the round must be the open one, the receiver this
    /// validator, the sender another validator of the round, the signature the sender's, and the
    /// nonce new.
    async fn admit<M: Body>(&self, (body, signature): &Signed) -> Result<(M, Arc<Open>), Refused> {
        let envelope = Envelope::peek(body)?;
        let open = self.current(envelope.round)?;
        if envelope.receiver != open.me {
            return Err(Refused::WrongReceiver);
        }
        open.knows(&envelope.sender)?;
        let message = M::open(body, signature)?;
        open.count(&envelope.sender)?;
        self.nonces.take(envelope.round, &envelope.sender, envelope.nonce).await?;
        Ok((message, open))
    }

    /// Answers statements with statements.
    #[instrument(skip_all)]
    pub(crate) async fn exchange(&self, signed: Signed) -> Result<Signed, Refused> {
        counted(self.answer(&signed).await)
    }

    async fn answer(&self, signed: &Signed) -> Result<Signed, Refused> {
        let (Exchange { envelope, exchange, .. }, open) = self.admit::<Exchange>(signed).await?;
        let told = exchange.open(&Keys).map_err(Refused::BadStatement)?;
        let answer = open.merging.exchange(&envelope.sender, told).await?;
        let envelope = envelope.answer(self.nonces.fresh());
        self.seal(&Exchange::new(envelope, &answer, self.certificate)).await
    }

    async fn seal(&self, message: &Exchange) -> Result<Signed, Refused> {
        let body = message.encode();
        if body.len() > MAX_BODY {
            return Err(Refused::TooLong);
        }
        let digest = Exchange::digest(&body);
        let signature = self.signer.sign(&message.envelope.sender, digest).await?;
        Ok((body, signature))
    }

    /// Streams chunks.
    #[instrument(skip_all)]
    pub(crate) async fn fetch(
        &self,
        signed: Signed,
    ) -> Result<impl Stream<Item = Result<Part, Refused>> + Send + use<>, Refused> {
        counted(self.send(&signed).await)
    }

    async fn send(
        &self,
        signed: &Signed,
    ) -> Result<impl Stream<Item = Result<Part, Refused>> + Send + use<>, Refused> {
        let (Fetch { envelope, data, first, count }, open) = self.admit::<Fetch>(signed).await?;
        let room = open.room(&envelope.sender)?;
        let outgoing = open.merging.offer(&envelope.sender, &data, first..first + count).await?;
        debug!(?data, first, count, to = %envelope.sender, "sending chunks");
        Ok(transfer::send(outgoing, room, self.idle, &open.stop))
    }

    /// Takes what is brought, and tells whether all of it is here.
    #[instrument(skip_all)]
    pub(crate) async fn push(&self, incoming: Incoming) -> Result<bool, Refused> {
        counted(self.take(incoming).await)
    }

    async fn take(&self, mut incoming: Incoming) -> Result<bool, Refused> {
        let signed = transfer::request(&mut incoming, self.idle).await?;
        let (Push { envelope, data }, open) = self.admit::<Push>(&signed).await?;
        let room = open.room(&envelope.sender)?;
        let taking = open.merging.take(&envelope.sender, &data).await?;
        debug!(?data, from = %envelope.sender, "taking chunks");
        transfer::receive(incoming, taking, room, self.idle, &open.stop).await
    }
}

/// Counts refusals.
fn counted<T>(answer: Result<T, Refused>) -> Result<T, Refused> {
    if let Err(refused) = &answer {
        metrics::refused(refused.reason());
        debug!(reason = refused.reason(), error = %refused, "refused");
    }
    answer
}

#[cfg(test)]
mod tests;
