//! Calls to the peer services of other validators: found, signed, verified, bounded.
//!
//! Whatever comes back is believed only with the asked validator's signature over it. A call is one
//! attempt; [`Caller::insist`] makes it many, until a deadline.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
};

use domain::Hotkey;
use proto::peer::v1::{
    SignedConfirm, SignedHello, SliceRequest as WireSliceRequest, chunk::Part,
    peer_service_client::PeerServiceClient,
};
use tokio::{sync::Mutex, time::Instant};
use tonic::{Code, Status};
use tracing::debug;

use crate::{
    config::Config,
    discovery::{Discovery, DiscoveryError},
    error::{Refused, reason_of},
    messages::{self, Body, Confirm, Envelope, Hello, Kind, Offer, SliceRequest, What},
    metrics,
    nonces::Nonces,
    plan::Plan,
    reduce::{self, Reader},
    signer::Signer,
};

/// The protocol's largest chunk, in bytes of data.
const MAX_CHUNK: usize = 1 << 20;

/// Why a call to another validator gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("not found: {0}")]
    Discovery(#[from] DiscoveryError),
    #[error("its URL is unusable: {0}")]
    Url(String),
    #[error("it answers {:?}: {}", .0.code(), .0.message())]
    Answer(Box<Status>),
    #[error("it did not answer in time")]
    Silent,
    #[error("the stream was cut short")]
    CutShort,
    #[error("its answer is not to be trusted: {0}")]
    Untrusted(#[source] Refused),
    #[error("this side cannot ask: {0}")]
    Own(#[source] Refused),
    #[error("it sent {what}")]
    Garbage { what: &'static str },
    #[error("it sent a gradient with a {0}")]
    NonFinite(#[from] reduce::NonFinite),
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
            Self::Discovery(_) | Self::Url(_) => "not_found",
            Self::Answer(status) => match reason_of(status) {
                "not_a_validator" => "refuses_this_validator",
                "members_differ" => "members_differ",
                "other" => "not_reached",
                _ => "refused",
            },
            Self::Silent => "silent",
            Self::CutShort => "cut_short",
            Self::Untrusted(_) => "untrusted",
            Self::Own(_) => "own_fault",
            Self::Garbage { .. } => "garbage",
            Self::NonFinite(_) => "non_finite",
        }
    }

    /// Whether asking again cannot help.
    pub(crate) fn lasts(&self) -> bool {
        match self {
            Self::Untrusted(_) | Self::Garbage { .. } | Self::NonFinite(_) => true,
            Self::Answer(status) => matches!(
                status.code(),
                Code::PermissionDenied
                    | Code::FailedPrecondition
                    | Code::InvalidArgument
                    | Code::Unauthenticated
                    | Code::Unimplemented
            ),
            Self::Discovery(_) | Self::Url(_) | Self::Silent | Self::CutShort | Self::Own(_) => {
                false
            }
        }
    }
}

type Client = PeerServiceClient<kit::Channel>;

/// A slice that came whole, with its sender's signature.
#[derive(Debug)]
pub(crate) struct Pulled {
    /// The values, all finite.
    pub(crate) values: Vec<f32>,
    /// BLAKE3 of their bytes.
    pub(crate) digest: [u8; 32],
}

/// Calls the other validators of one round.
#[derive(Debug)]
pub(crate) struct Caller {
    plan: Arc<Plan>,
    config: Arc<Config>,
    tls: kit::Tls,
    discovery: Discovery,
    signer: Signer,
    nonces: Nonces,
    clients: BTreeMap<Hotkey, Mutex<Option<Client>>>,
}

impl Caller {
    /// A caller for the round of `plan`.
    pub(crate) fn new(
        plan: Arc<Plan>,
        config: Arc<Config>,
        tls: kit::Tls,
        discovery: Discovery,
        signer: Signer,
        nonces: Nonces,
    ) -> Self {
        let clients = plan.validators.keys().map(|h| (h.clone(), Mutex::default())).collect();
        Self { plan, config, tls, discovery, signer, nonces, clients }
    }

    async fn find(&self, member: &Hotkey) -> Result<Client, CallError> {
        let url = match self.config.peer_urls.get(member) {
            Some(url) => url.clone(),
            None => {
                let axon = self.plan.validators.get(member).map_or("", String::as_str);
                self.discovery.find(axon).await?
            }
        };
        // The certificates of `common.tls` are for the services of one validator: plain URLs, as of
        // most other validators, go without.
        let plain = kit::Tls::default();
        let tls = if url.starts_with("https://") { &self.tls } else { &plain };
        let channel = kit::channel_with(&url, tls, self.config.call_timeout)
            .map_err(|error| CallError::Url(format!("{error:#}")))?;
        Ok(PeerServiceClient::new(channel)
            .max_decoding_message_size(self.config.max_message_bytes)
            .max_encoding_message_size(self.config.max_message_bytes))
    }

    /// Calls `member`, and forgets where it is when it could not be reached: it may have moved.
    async fn call<T, F>(
        &self,
        member: &Hotkey,
        call: impl FnOnce(Client) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let Some(slot) = self.clients.get(member) else {
            return Err(DiscoveryError::NoAxon.into());
        };
        let client = {
            let mut slot = slot.lock().await;
            match &*slot {
                Some(client) => client.clone(),
                None => slot.insert(self.find(member).await?).clone(),
            }
        };
        let answer = tokio::time::timeout(self.config.call_timeout, call(client)).await;
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

    fn envelope(&self, receiver: &Hotkey) -> Envelope {
        Envelope {
            round: self.plan.round,
            sender: self.plan.hotkey.clone(),
            receiver: receiver.clone(),
            nonce: self.nonces.fresh(),
            in_reply_to: None,
        }
    }

    /// Says hello, and returns the verified answer.
    pub(crate) async fn hello(
        &self,
        to: &Hotkey,
        offer: Offer,
        met: BTreeSet<Hotkey>,
    ) -> Result<Hello, CallError> {
        let hello = Hello { envelope: self.envelope(to), offer, met };
        let (body, signature) = self.signer.seal(&hello).await.map_err(CallError::Own)?;
        let request = SignedHello { body, signature };
        let answer =
            self.call(to, async |mut client| client.hello(request).await).await?.into_inner();
        Hello::open_answer(&hello.envelope, &answer.body, &answer.signature)
            .map_err(CallError::Untrusted)
    }

    /// Tells a digest, and returns the other's.
    pub(crate) async fn confirm(
        &self,
        to: &Hotkey,
        digest: [u8; 32],
    ) -> Result<[u8; 32], CallError> {
        let confirm = Confirm { envelope: self.envelope(to), digest };
        let (body, signature) = self.signer.seal(&confirm).await.map_err(CallError::Own)?;
        let request = SignedConfirm { body, signature };
        let answer =
            self.call(to, async |mut client| client.confirm(request).await).await?.into_inner();
        Confirm::open_answer(&confirm.envelope, &answer.body, &answer.signature)
            .map(|confirm| confirm.digest)
            .map_err(CallError::Untrusted)
    }

    /// Pulls a slice of `len` values from `from`: all of them, finite and signed for, or nothing.
    pub(crate) async fn pull(
        &self,
        from: &Hotkey,
        what: What,
        slice: usize,
        len: usize,
        members: &BTreeSet<Hotkey>,
    ) -> Result<Pulled, CallError> {
        let envelope = self.envelope(from);
        let request = SliceRequest { envelope, slice, members: members.clone(), what };
        let (body, signature) = self.signer.seal(&request).await.map_err(CallError::Own)?;
        let wire = WireSliceRequest { body: body.clone(), signature };
        let mut stream = self
            .call(from, async |mut client| match what {
                What::Gradient => client.get_gradient(wire).await,
                What::Reduced => client.get_reduced(wire).await,
            })
            .await?
            .into_inner();

        let mut reader = Reader::default();
        let end = loop {
            let next = tokio::time::timeout(self.config.call_timeout, stream.message());
            let chunk = next.await.map_err(|_| CallError::Silent)??.ok_or(CallError::CutShort)?;
            match chunk.part {
                Some(Part::Data(bytes)) => {
                    if bytes.is_empty() || bytes.len() > MAX_CHUNK {
                        return Err(CallError::Garbage {
                            what: "a chunk of a size that is not allowed",
                        });
                    }
                    if reader.bytes() + bytes.len() > len * 4 {
                        return Err(CallError::Garbage { what: "more than was asked for" });
                    }
                    reader.push(&bytes);
                    metrics::bytes_received(bytes.len());
                }
                Some(Part::End(end)) => break end,
                None => return Err(CallError::Garbage { what: "an empty chunk" }),
            }
        };
        let digest = reader.digest();
        if end.digest != digest[..] {
            return Err(CallError::Garbage { what: "a digest that is not of its data" });
        }
        let signed = Kind::Chunk.digest(&[&body, &digest]);
        messages::verify(from, &signed, &end.signature).map_err(CallError::Untrusted)?;
        if reader.bytes() != len * 4 {
            return Err(CallError::Garbage { what: "less than was asked for" });
        }
        let values = reader.into_values();
        reduce::finite(&values)?;
        Ok(Pulled { values, digest })
    }

    /// Calls again and again, with growing pauses, until it works, cannot work, or is too late.
    pub(crate) async fn insist<T, F>(
        &self,
        until: Instant,
        mut call: impl FnMut() -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let mut last = CallError::Silent;
        let pace = self.plan.pace(self.config.hello_interval);
        let mut pause = pace / 4;
        loop {
            match tokio::time::timeout_at(until, call()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) if error.lasts() => return Err(error),
                Ok(Err(error)) => last = error,
                Err(_) => return Err(last),
            }
            debug!(error = %last, ?pause, "asking again");
            let next = Instant::now() + pause;
            if next >= until {
                return Err(last);
            }
            tokio::time::sleep_until(next).await;
            pause = (pause * 2).min(pace * 4);
        }
    }
}
