//! Calls to the peer services of other validators: found, signed, verified, bounded.
//!
//! Whatever comes back is believed only with the asked validator's signature over it; bytes are not
//! believed at all, and checked by whoever takes them. A call is one attempt.

use std::{future::Future, io, sync::Arc, time::Duration};

use bytes::Bytes;
use domain::{Hotkey, RoundId};
use futures::stream::BoxStream;
use kit::Line;
use merge::{Data, Digest, Verified};
use proto::{
    InvalidField,
    peer::v2::{Chunk, SignedMessage, peer_service_client::PeerServiceClient},
};
use tonic::{Code, Status, Streaming};

use crate::{
    error::{Refused, reason_of},
    lines::{Lines, NoLine},
    message::{Body, Envelope, Exchange, Fetch, Keys, MAX_BODY, MAX_MESSAGE, Push},
    metrics,
    nonces::Nonces,
    part::{Gathering, Part},
    pushing,
    signer::Signer,
};

/// Why a call to another validator gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    NoLine(#[from] NoLine),
    #[error("it answers {:?}: {}", .0.code(), .0.message())]
    Answer(Box<Status>),
    #[error("it did not answer in time")]
    Silent,
    #[error("the stream was cut short")]
    CutShort,
    #[error("its answer is not to be trusted: {0}")]
    Untrusted(#[source] Refused),
    #[error("the certificate that was shown is not the one that it names")]
    OtherCertificate,
    #[error("it sent what is no stream of chunks: {0}")]
    Garbage(#[from] InvalidField),
    #[error("this side cannot ask: {0}")]
    Own(#[source] Refused),
    #[error("the bytes to send cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Answer(Box::new(status))
    }
}

impl CallError {
    /// Stable snake_case name of the reason.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoLine(_) => "not_found",
            Self::Answer(status) => match reason_of(status) {
                "not_a_validator" => "refuses_this_validator",
                "other" => "not_reached",
                _ => "refused",
            },
            Self::Silent => "silent",
            Self::CutShort => "cut_short",
            Self::Untrusted(_) => "untrusted",
            Self::OtherCertificate => "other_certificate",
            Self::Garbage(_) => "garbage",
            Self::Own(_) | Self::Unreadable(_) => "own_fault",
        }
    }

    /// Whether asking again cannot help.
    pub(crate) fn lasts(&self) -> bool {
        match self {
            Self::Untrusted(_) | Self::Garbage(_) => true,
            Self::Answer(status) => matches!(
                status.code(),
                Code::PermissionDenied
                    | Code::FailedPrecondition
                    | Code::InvalidArgument
                    | Code::Unauthenticated
                    | Code::Unimplemented
            ),
            Self::NoLine(_)
            | Self::Silent
            | Self::CutShort
            | Self::OtherCertificate
            | Self::Own(_)
            | Self::Unreadable(_) => false,
        }
    }

    /// Whether the other end was not there, or not for long: it may be elsewhere by now.
    pub(crate) fn unreached(&self) -> bool {
        match self {
            Self::Answer(status) => reason_of(status) == "other",
            Self::Silent | Self::CutShort | Self::OtherCertificate => true,
            Self::NoLine(_)
            | Self::Untrusted(_)
            | Self::Garbage(_)
            | Self::Own(_)
            | Self::Unreadable(_) => false,
        }
    }
}

pub(crate) type Client = PeerServiceClient<kit::Channel>;

fn client(line: &Line) -> Client {
    Client::new(line.channel())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Calls the other validators of one round.
#[derive(Debug)]
pub(crate) struct Caller {
    round: RoundId,
    me: Hotkey,
    lines: Lines,
    signer: Signer,
    nonces: Nonces,
    timeout: Duration,
}

impl Caller {
    /// A caller in `round`. An answer, and the next part of a stream, may take `timeout`.
    pub(crate) fn new(
        round: RoundId,
        me: Hotkey,
        lines: Lines,
        signer: Signer,
        nonces: Nonces,
        timeout: Duration,
    ) -> Self {
        Self { round, me, lines, signer, nonces, timeout }
    }

    fn envelope(&self, receiver: &Hotkey) -> Envelope {
        Envelope {
            round: self.round,
            sender: self.me.clone(),
            receiver: receiver.clone(),
            nonce: self.nonces.fresh(),
            in_reply_to: None,
        }
    }

    async fn seal<M: Body>(&self, message: M) -> Result<SignedMessage, CallError> {
        let body = message.encode();
        if body.len() > MAX_BODY {
            return Err(CallError::Own(Refused::TooLong));
        }
        let signature = self.signer.sign(&self.me, M::digest(&body)).await;
        Ok(SignedMessage { body, signature: signature.map_err(CallError::Own)? })
    }

    /// Calls `to`, and forgets where it is when it could not be reached.
    async fn call<T, F>(&self, to: &Hotkey, call: impl FnOnce(Line) -> F) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let line = self.lines.get(to).await?;
        let answer = call(line.clone()).await;
        self.judged(to, &line, answer).await
    }

    async fn judged<T>(
        &self,
        to: &Hotkey,
        line: &Line,
        answer: Result<T, CallError>,
    ) -> Result<T, CallError> {
        if answer.as_ref().is_err_and(CallError::unreached) {
            self.lines.forget(to, line).await;
        }
        answer
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, CallError> {
        Ok(tokio::time::timeout(self.timeout, answer).await.map_err(|_| CallError::Silent)??)
    }

    /// Tells statements, and returns the other's: verified, from the one that was asked, over a
    /// connection with the certificate that it names.
    pub(crate) async fn exchange(
        &self,
        to: &Hotkey,
        exchange: &merge::Exchange<Verified>,
    ) -> Result<merge::Exchange<Verified>, CallError> {
        let asked = self.envelope(to);
        let request = self.seal(Exchange::new(asked.clone(), exchange, None)).await?;
        self.call(to, async |line| {
            let answer = self.in_time(client(&line).exchange(request)).await?.into_inner();
            let answer = Exchange::open_answer(&asked, &answer.body, &answer.signature)
                .map_err(CallError::Untrusted)?;
            if answer.certificate != line.shown() {
                return Err(CallError::OtherCertificate);
            }
            if let Some(certificate) = answer.certificate {
                line.pin(certificate);
            }
            let refused = |error| CallError::Untrusted(Refused::BadStatement(error));
            answer.exchange.open(&Keys).map_err(refused)
        })
        .await
    }

    /// Asks for chunks: `count` of `data` from `first` on, counted in the whole vector.
    pub(crate) async fn fetch(
        &self,
        from: &Hotkey,
        data: &Data,
        first: u32,
        count: u32,
    ) -> Result<ChunkStream, CallError> {
        let envelope = self.envelope(from);
        let request = self.seal(Fetch { envelope, data: data.clone(), first, count }).await?;
        self.call(from, async |line| {
            let stream = self.in_time(client(&line).fetch(request)).await?.into_inner();
            Ok(ChunkStream { stream, left: count, idle: self.timeout })
        })
        .await
    }

    /// Brings all chunks of `data` with the list that they are checked with, and tells whether the
    /// other has all of it now.
    pub(crate) async fn push(
        &self,
        to: &Hotkey,
        data: &Data,
        list: Arc<[Digest]>,
        chunks: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<bool, CallError> {
        let request = self.seal(Push { envelope: self.envelope(to), data: data.clone() }).await?;
        let line = self.lines.get(to).await?;
        let answer = pushing::push(client(&line), request, &list, chunks, self.timeout).await;
        self.judged(to, &line, answer).await
    }
}

/// Chunks as they come: the list first, then each chunk. Only bounds are checked here.
#[derive(Debug)]
pub(crate) struct ChunkStream {
    stream: Streaming<Chunk>,
    left: u32,
    idle: Duration,
}

impl ChunkStream {
    /// The list, of at most so many digests: to be called first, and once.
    pub(crate) async fn list(&mut self, most: usize) -> Result<Vec<Digest>, CallError> {
        let mut gathering = Gathering::new(most);
        loop {
            if let Some(list) = gathering.take(self.part().await?)? {
                return Ok(list);
            }
        }
    }

    /// The next chunk; `None` after as many as were asked for.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        let Part::Data(bytes) = self.part().await? else {
            return Err(InvalidField::new("part", "a second list").into());
        };
        self.left = left;
        metrics::bytes_received(bytes.len());
        Ok(Some(bytes))
    }

    async fn part(&mut self) -> Result<Part, CallError> {
        let next = tokio::time::timeout(self.idle, self.stream.message()).await;
        match next.map_err(|_| CallError::Silent)? {
            Ok(Some(chunk)) => Ok(Part::from_wire(chunk)?),
            Ok(None) => Err(CallError::CutShort),
            Err(status) if reason_of(&status) == "other" => Err(CallError::CutShort),
            Err(status) => Err(status.into()),
        }
    }
}
