//! What a merge does outside of its machine: signing, calling, reducing. Each ends in one event.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use domain::Hotkey;
use futures::{StreamExt as _, stream, stream::BoxStream};
use merge::{Data, Digest, Event, Exchange, Said, Signature, Signed, Verified};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::{debug, instrument, warn};

use super::{
    handle::{Ask, patience},
    turn,
};
use crate::{
    call::{CallError, Caller},
    chunks::{Chunks, Cut, Writing},
    conduct::Conduct,
    message::Keys,
    reduction::{Reducer, Tally},
    shelf::Shelf,
    signer::Signer,
};

/// What went wrong with a validator last: no blame, but of use to a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    /// Stable snake_case reason.
    pub(crate) reason: &'static str,
    /// What happened.
    pub(crate) detail: String,
}

/// What the hands work with.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) me: Hotkey,
    pub(crate) cut: Cut,
    pub(crate) reducer: Reducer,
    pub(crate) shelf: Shelf,
    pub(crate) caller: Arc<Caller>,
    pub(crate) signer: Signer,
    pub(crate) conduct: Arc<dyn Conduct>,
    pub(crate) answer_wait: Duration,
    pub(crate) deadline: Duration,
    /// Chunks of a slice that are looked at: where a slice has no more, it is fetched as one.
    pub(crate) audits: u16,
}

/// Carries out what a machine commands.
#[derive(Debug)]
pub(crate) struct Hands {
    pub(super) tools: Tools,
    asks: mpsc::Sender<Ask>,
    /// What was reduced in which turn, until it is signed for.
    reduced: Mutex<BTreeMap<(u16, u16), Chunks>>,
    notes: Mutex<BTreeMap<Hotkey, Note>>,
    tally: Mutex<Tally>,
    /// Pieces that are fetched for audits: one audit at a time does that, for all of the piece.
    pub(super) looking_at: Mutex<BTreeMap<Data, Arc<tokio::sync::Mutex<()>>>>,
    /// Transfers for audits from each validator: more than it gives at once would be refused.
    lanes: Mutex<BTreeMap<Hotkey, Arc<Semaphore>>>,
}

/// Of the transfers that a validator gives at once (`max_transfers`), so many are for audits.
const LANES: usize = 4;

/// A lock whose holder has panicked still guards whole values.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hands {
    /// Hands that tell `asks` what has come of things.
    pub(crate) fn new(tools: Tools, asks: mpsc::Sender<Ask>) -> Self {
        Self {
            tools,
            asks,
            reduced: Mutex::default(),
            notes: Mutex::default(),
            tally: Mutex::default(),
            looking_at: Mutex::default(),
            lanes: Mutex::default(),
        }
    }

    /// How gradients are cut.
    pub(crate) fn cut(&self) -> Cut {
        self.tools.cut
    }

    /// How results are cut.
    pub(crate) fn result_cut(&self) -> Cut {
        self.tools.reducer.result_cut()
    }

    /// What went wrong last, by validator.
    pub(crate) fn notes(&self) -> BTreeMap<Hotkey, Note> {
        lock(&self.notes).clone()
    }

    /// What the contributors did to the chunks that were reduced here.
    pub(crate) fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    pub(super) fn conduct(&self) -> &dyn Conduct {
        &*self.tools.conduct
    }

    pub(super) fn patience(&self) -> Duration {
        patience(self.tools.answer_wait, self.tools.deadline)
    }

    pub(super) async fn tell(&self, event: Event) {
        // When nobody listens any more, it is over.
        let _ = self.asks.send(Ask::Happened(Box::new(event))).await;
    }

    pub(super) fn note(&self, hotkey: &Hotkey, reason: &'static str, detail: String) {
        debug!(peer = %hotkey, reason, detail, "something went wrong with a validator");
        lock(&self.notes).insert(hotkey.clone(), Note { reason, detail });
    }

    /// Room for a transfer for an audit, waited for.
    pub(super) async fn lane(&self, from: &Hotkey) -> Option<OwnedSemaphorePermit> {
        let new = || Arc::new(Semaphore::new(LANES));
        let lane = Arc::clone(lock(&self.lanes).entry(from.clone()).or_insert_with(new));
        // Never closed.
        lane.acquire_owned().await.ok()
    }

    pub(super) fn is_me(&self, hotkey: &Hotkey) -> bool {
        *hotkey == self.tools.me
    }

    /// These bytes, where they are here.
    pub(crate) fn chunks_of(&self, data: &Data) -> Option<Chunks> {
        match data {
            Data::Piece { giver, .. } if self.is_me(giver) => self.tools.shelf.own(),
            Data::Piece { .. } | Data::Reduced(_) => self.tools.shelf.get(data),
        }
    }

    /// The list that goes with these bytes.
    pub(super) fn list_of(&self, data: &Data) -> Option<Arc<[Digest]>> {
        match data {
            Data::Piece { giver, .. } if self.is_me(giver) => {
                self.tools.shelf.own().map(|own| Arc::clone(own.list()))
            }
            Data::Piece { giver, .. } => self.tools.shelf.list_of(giver),
            Data::Reduced(_) => self.tools.shelf.get(data).map(|held| Arc::clone(held.list())),
        }
    }

    /// A single chunk that was kept because it shows a wrong reduction.
    pub(super) fn evidence_of(&self, data: &Data, range: &Range<u32>) -> Option<Bytes> {
        let Data::Piece { giver, .. } = data else { return None };
        let single = range.end.checked_sub(range.start) == Some(1);
        self.tools.shelf.evidence(giver, range.start).filter(|_| single)
    }

    /// Chunks on their way to a member, each read when there is room for it.
    pub(super) fn giving(
        self: Arc<Self>,
        to: Hotkey,
        data: Data,
        chunks: Chunks,
        range: Range<u32>,
    ) -> BoxStream<'static, std::io::Result<Bytes>> {
        let next = move |chunk| {
            let (hands, chunks) = (Arc::clone(&self), chunks.clone());
            let (to, data) = (to.clone(), data.clone());
            async move {
                let read = tokio::task::spawn_blocking(move || chunks.read(chunk)).await;
                let bytes = read.map_err(std::io::Error::other)??;
                let given = hands.conduct().give(&to, &data, chunk, bytes).await;
                given.ok_or(std::io::Error::from(std::io::ErrorKind::BrokenPipe))
            }
        };
        stream::iter(range).then(next).boxed()
    }

    /// What was reduced is the slice of the statement that is about to be signed for it.
    pub(super) fn link(&self, said: &Said) {
        let Some((turn, digest)) = turn(said) else { return };
        let reduced = lock(&self.reduced).get(&turn).cloned();
        if let Some(chunks) = reduced.filter(|chunks| Digest::of_chunks(chunks.list()) == digest) {
            self.tools.shelf.put(Data::Reduced(said.digest()), chunks);
        }
    }

    #[instrument(skip_all)]
    pub(super) async fn sign(&self, said: Said) {
        let event = match self.signed(&said).await {
            Some(verified) => Event::Signed(verified),
            None => Event::NotSigned(said),
        };
        self.tell(event).await;
    }

    async fn signed(&self, said: &Said) -> Option<Verified> {
        let Digest(digest) = said.digest();
        let signature = match self.tools.signer.sign(&said.author, digest).await {
            Ok(signature) => signature,
            Err(error) => {
                warn!(%error, "a statement could not be signed yet");
                return None;
            }
        };
        let signature = Signature(signature[..].try_into().ok()?);
        let signed = Signed { said: said.clone(), signature };
        Verified::new(signed, &Keys).inspect_err(|error| warn!(%error, "not said")).ok()
    }

    #[instrument(skip_all, fields(peer = %to))]
    pub(super) async fn call(&self, to: Hotkey, exchange: Exchange<Verified>, limit: Duration) {
        let call = async {
            match self.conduct().tell(&to, exchange).await {
                Some(exchange) => self.tools.caller.exchange(&to, &exchange).await,
                None => Err(CallError::Silent),
            }
        };
        let answer = tokio::time::timeout(limit, call).await.unwrap_or(Err(CallError::Silent));
        let event = match answer {
            Ok(exchange) => Event::Answered { from: to, exchange },
            Err(error) => {
                self.note(&to, error.reason(), error.to_string());
                Event::CallFailed { to }
            }
        };
        self.tell(event).await;
    }

    /// Reduces a slice of what is here.
    #[instrument(skip_all, fields(slice = turn.0, attempt = turn.1))]
    pub(super) async fn reduce(
        self: Arc<Self>,
        turn: (u16, u16),
        range: Range<u32>,
        contributors: Vec<Hotkey>,
    ) {
        let (slice, attempt) = turn;
        let hands = Arc::clone(&self);
        let span = tracing::Span::current();
        let work = move || {
            let _in = span.enter();
            hands.reduce_here(turn, range, &contributors)
        };
        let reduced = tokio::task::spawn_blocking(work).await;
        let event = match reduced.map_err(std::io::Error::other).flatten() {
            Ok(chunks) => {
                let digest = Digest::of_chunks(chunks.list());
                lock(&self.reduced).insert(turn, chunks);
                Event::Reduced { slice, attempt, chunks: digest }
            }
            Err(error) => {
                warn!(slice, attempt, %error, "a slice could not be reduced");
                Event::ReduceFailed { slice, attempt }
            }
        };
        self.tell(event).await;
    }

    /// The whole vector of the own gradient alone.
    pub(crate) async fn alone(self: &Arc<Self>) -> std::io::Result<Chunks> {
        let hands = Arc::clone(self);
        let (me, all) = (self.tools.me.clone(), 0..self.cut().chunks());
        let work = move || hands.reduce_here((0, 0), all, &[me]);
        tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other).flatten()
    }

    fn reduce_here(
        &self,
        (slice, attempt): (u16, u16),
        range: Range<u32>,
        contributors: &[Hotkey],
    ) -> std::io::Result<Chunks> {
        let missing = || std::io::Error::other("a piece that was here is gone");
        let pieces: Option<Vec<(Hotkey, Chunks)>> = contributors
            .iter()
            .map(|giver| {
                let data = Data::Piece { giver: giver.clone(), slice };
                Some((giver.clone(), self.chunks_of(&data)?))
            })
            .collect();
        let pieces = pieces.ok_or_else(missing)?;
        let path = self.tools.shelf.file(format!("reduced-{slice}-{attempt}"));
        let mut writing = Writing::create(path, self.result_cut(), range.clone())?;
        let mut tally = Tally::default();
        for chunk in range {
            let read =
                |(giver, chunks): &(Hotkey, Chunks)| Ok((giver.clone(), chunks.checked(chunk)?));
            let parts: Vec<(Hotkey, Bytes)> =
                pieces.iter().map(read).collect::<std::io::Result<_>>()?;
            let reduced = self.tools.reducer.chunk(chunk, &parts);
            tally.add(&reduced.tally);
            let bytes = self.conduct().reduce(chunk, reduced.bytes);
            let bytes = bytes.ok_or_else(|| std::io::Error::other("given up"))?;
            writing.push(&bytes).map_err(std::io::Error::other)?;
        }
        lock(&self.tally).add(&tally);
        writing.finish().map_err(std::io::Error::other)
    }
}
