//! What other validators are answered: everything they send is hostile until its signature is
//! verified, and bound to one round, sender and receiver, once.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use domain::Hotkey;
use futures::{Stream, stream};
use tracing::{debug, instrument};

use crate::{
    error::Refused,
    members::Members,
    messages::{Body, Confirm, Envelope, Hello, Kind, MAX_BODY, SliceRequest, What},
    metrics,
    reduce::{self, Slices},
    round::Round,
    rounds::Rounds,
};

/// A signed message: its body and signature.
pub(crate) type Signed = (Bytes, Bytes);

/// A part of a streamed slice.
#[derive(Debug)]
pub(crate) enum Part {
    /// Little-endian float32 values.
    Data(Bytes),
    /// The end: digest of all data, and the signature over the request and it.
    End { digest: [u8; 32], signature: Bytes },
}

/// Answers other validators.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    rounds: Arc<Rounds>,
}

impl Desk {
    /// Answers for these rounds.
    pub(crate) fn new(rounds: Arc<Rounds>) -> Self {
        Self { rounds }
    }

    /// Reads a message, cheap checks first: the round must be the current one, the receiver this
    /// validator, the sender another validator of the round, the signature the sender's, and the
    /// nonce new. Every refusal is counted.
    async fn admit<M: Body>(&self, (body, signature): &Signed) -> Result<(M, Arc<Round>), Refused> {
        let admitted = self.check::<M>(body, signature).await;
        if let Err(refused) = &admitted {
            metrics::refused(refused.reason());
            debug!(reason = refused.reason(), error = %refused, "message refused");
        }
        admitted
    }

    async fn check<M: Body>(
        &self,
        body: &Bytes,
        signature: &Bytes,
    ) -> Result<(M, Arc<Round>), Refused> {
        if body.len() > MAX_BODY {
            return Err(proto::InvalidField::new("body", "too long").into());
        }
        let unverified = M::decode(body)?;
        let envelope = unverified.envelope();
        let round = self.rounds.current(envelope.round)?;
        if envelope.receiver != round.plan.hotkey {
            return Err(Refused::WrongReceiver);
        }
        if !round.plan.validators.contains_key(&envelope.sender) {
            return Err(Refused::NotAValidator);
        }
        let message = M::open(body, signature)?;
        let Envelope { round: id, sender, nonce, .. } = message.envelope();
        round.count(sender, self.rounds.config().max_requests)?;
        self.rounds.nonces().take(*id, sender, *nonce).await?;
        Ok((message, round))
    }

    fn reply(&self, asked: &Envelope) -> Envelope {
        Envelope {
            round: asked.round,
            sender: asked.receiver.clone(),
            receiver: asked.sender.clone(),
            nonce: self.rounds.nonces().fresh(),
            in_reply_to: Some(asked.nonce),
        }
    }

    /// Answers a hello with this validator's own.
    #[instrument(skip_all)]
    pub(crate) async fn hello(&self, signed: Signed) -> Result<Signed, Refused> {
        let (hello, round) = self.admit::<Hello>(&signed).await?;
        let wait = self.rounds.config().answer_wait;
        let offer = round.wait(wait, "still adding up", |shown| shown.offer.clone()).await?;
        let envelope = self.reply(&hello.envelope);
        let met = round.hear_hello(hello).await;
        self.rounds.signer().seal(&Hello { envelope, offer, met }).await
    }

    /// Answers a digest with this validator's own.
    #[instrument(skip_all)]
    pub(crate) async fn confirm(&self, signed: Signed) -> Result<Signed, Refused> {
        let (confirm, round) = self.admit::<Confirm>(&signed).await?;
        let envelope = self.reply(&confirm.envelope);
        round.hear_digest(confirm.envelope.sender, confirm.digest);
        let wait = self.rounds.config().answer_wait;
        let digest = round.wait(wait, "still reducing", |shown| shown.digest).await?;
        self.rounds.signer().seal(&Confirm { envelope, digest }).await
    }

    /// Streams a slice of this validator's own gradient to the member that reduces it, or of the
    /// reduced vector to any member.
    #[instrument(skip_all, fields(what = what.as_str()))]
    pub(crate) async fn slice(
        &self,
        what: What,
        signed: Signed,
    ) -> Result<impl Stream<Item = Result<Part, Refused>> + Send + use<>, Refused> {
        let (request, round) = self.admit::<SliceRequest>(&signed).await?;
        let ready = self.ready(what, &request, &round).await;
        if let Err(refused) = &ready {
            metrics::refused(refused.reason());
        }
        let (values, range) = ready?;
        let sending = Sending {
            values,
            range,
            chunk: (self.rounds.config().chunk_bytes / 4).max(1),
            hash: blake3::Hasher::new(),
            request: signed.0,
            me: round.plan.hotkey.clone(),
            rounds: Arc::clone(&self.rounds),
        };
        Ok(stream::try_unfold(Some(sending), Sending::next))
    }

    async fn ready(
        &self,
        what: What,
        request: &SliceRequest,
        round: &Round,
    ) -> Result<(Arc<Vec<f32>>, std::ops::Range<usize>), Refused> {
        if request.what != what {
            return Err(proto::InvalidField::new("what", "not what the call is for").into());
        }
        let wait = self.rounds.config().answer_wait;
        let members = round.wait(wait, "members not agreed", |shown| shown.members.clone()).await?;
        same(&members, &request.members)?;
        let (owner, whose) = match what {
            What::Gradient => (&request.envelope.sender, "the asker's"),
            What::Reduced => (&round.plan.hotkey, "this validator's"),
        };
        if members.index_of(owner) != Some(request.slice) {
            return Err(Refused::ForeignSlice { slice: request.slice, whose });
        }
        match what {
            What::Gradient => {
                let gradient = round.now().gradient.ok_or(Refused::NoGradient)?;
                let slices = Slices { len: gradient.len(), parts: members.all().len() };
                Ok((gradient, slices.range(request.slice)))
            }
            What::Reduced => {
                let wait = round.wait(wait, "slice not reduced", |shown| shown.reduced.clone());
                let reduced = wait.await?;
                let all = 0..reduced.len();
                Ok((reduced, all))
            }
        }
    }
}

fn same(members: &Members, theirs: &BTreeSet<Hotkey>) -> Result<(), Refused> {
    if members.are(theirs) {
        return Ok(());
    }
    let ours: Vec<&str> = members.all().iter().map(Hotkey::as_str).collect();
    Err(Refused::MembersDiffer { ours: ours.join(", ") })
}

/// A slice on its way.
struct Sending {
    values: Arc<Vec<f32>>,
    range: std::ops::Range<usize>,
    chunk: usize,
    hash: blake3::Hasher,
    request: Bytes,
    me: Hotkey,
    rounds: Arc<Rounds>,
}

impl Sending {
    /// The next part, made when the receiver has room for it; `None` after the end.
    async fn next(this: Option<Self>) -> Result<Option<(Part, Option<Self>)>, Refused> {
        let Some(mut this) = this else { return Ok(None) };
        let end = this.range.end.min(this.range.start.saturating_add(this.chunk));
        let values = this.values.get(this.range.start..end).unwrap_or_default();
        if !values.is_empty() {
            let data = reduce::to_bytes(values);
            this.hash.update(&data);
            metrics::bytes_sent(data.len());
            this.range.start = end;
            return Ok(Some((Part::Data(data), Some(this))));
        }
        let digest: [u8; 32] = this.hash.finalize().into();
        let signed = Kind::Chunk.digest(&[&this.request, &digest]);
        let signature = this.rounds.signer().sign(&this.me, signed).await?;
        Ok(Some((Part::End { digest, signature }, None)))
    }
}
