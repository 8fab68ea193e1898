//! Bytes of others: fetched or brought, every chunk checked against what was signed before it counts.

use std::sync::Arc;

use bytes::Bytes;
use domain::Hotkey;
use futures::{StreamExt as _, stream};
use merge::{Data, Digest, Event};
use tokio::{task::spawn_blocking, time::Instant};
use tracing::instrument;

use super::{Expected, Hands};
use crate::{
    call::CallError,
    chunks::{Filling, Garbage},
    error::Refused,
    merging::Taking,
};

/// Why a transfer came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Garbage(#[from] Garbage),
    #[error("nobody has signed for these bytes, or they do not fit what was")]
    Unexpected,
    #[error("it did not come in time")]
    Late,
    #[error("the stream ended early")]
    CutShort,
    #[error("it was not taken whole")]
    NotTaken,
    #[error("it is not here")]
    NotHere,
}

impl TransferError {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Call(error) => error.reason(),
            Self::Garbage(garbage) => garbage.reason(),
            Self::Unexpected => "unexpected",
            Self::Late => "late",
            Self::CutShort => "cut_short",
            Self::NotTaken => "not_taken",
            Self::NotHere => "not_here",
        }
    }
}

impl Hands {
    /// Fetches bytes, going on where an earlier transfer of them broke off.
    #[instrument(skip_all, fields(peer = %from))]
    pub(super) async fn fetch(
        self: Arc<Self>,
        data: Data,
        from: Hotkey,
        expected: Option<Expected>,
        until: Instant,
    ) {
        let fetched = match expected {
            None => Err(TransferError::Unexpected),
            Some(expected) => {
                let fetch = self.fetch_into(&data, &from, &expected);
                tokio::time::timeout_at(until, fetch).await.unwrap_or(Err(TransferError::Late))
            }
        };
        let event = match fetched {
            Ok(()) => Event::Held(data),
            Err(error) => {
                self.note(&from, error.reason(), error.to_string());
                Event::FetchFailed { data, from }
            }
        };
        self.tell(event).await;
    }

    pub(super) async fn fetch_into(
        &self,
        data: &Data,
        from: &Hotkey,
        expected: &Expected,
    ) -> Result<(), TransferError> {
        if self.tools.shelf.get(data).is_some() {
            return Ok(());
        }
        let mut place = Place { hands: self, data, filling: self.tools.shelf.take_filling(data) };
        let next = place.filling.as_ref().map_or(Some(expected.range.start), Filling::next);
        let first = next.unwrap_or(expected.range.end);
        let count = expected.range.end - first;
        let caller = &self.tools.caller;
        let mut stream = caller.fetch(from, data, first, count).await?;
        let list = stream.list(expected.listed.len()).await?;
        if place.filling.is_none() {
            place.filling = Some(self.begin(data, expected, list)?);
        }
        while let Some(bytes) = stream.next().await? {
            let filling = place.filling.take().ok_or(TransferError::NotHere)?;
            place.filling = Some(self.fill(data, expected, filling, bytes).await?);
        }
        let filling = place.filling.take().ok_or(TransferError::NotHere)?;
        if filling.next().is_some() {
            place.filling = Some(filling);
            return Err(TransferError::CutShort);
        }
        self.tools.shelf.put(data.clone(), filling.finish()?);
        Ok(())
    }

    pub(super) fn begin(
        &self,
        data: &Data,
        expected: &Expected,
        list: Vec<Digest>,
    ) -> Result<Filling, Garbage> {
        let Expected { cut, range, listed, committed } = expected.clone();
        let path = self.tools.shelf.path(data);
        let filling = Filling::begin(path, cut, range, listed, list, committed)?;
        if let Data::Piece { giver, .. } = data {
            self.tools.shelf.keep_list(giver, Arc::clone(filling.list()));
        }
        Ok(filling)
    }

    /// Takes a chunk in: what does not decode, or is not finite, is as good as none.
    pub(super) async fn fill(
        &self,
        data: &Data,
        expected: &Expected,
        mut filling: Filling,
        bytes: Bytes,
    ) -> Result<Filling, Garbage> {
        let (cut, piece) = (expected.cut, matches!(data, Data::Piece { .. }));
        let fill = move || {
            let chunk = filling.next();
            filling.push(&bytes)?;
            if let Some(chunk) = chunk.filter(|_| piece) {
                cut.decodes(chunk, &bytes)?;
            }
            Ok(filling)
        };
        spawn_blocking(fill).await.map_err(|error| Garbage::Io(std::io::Error::other(error)))?
    }

    /// Brings bytes to a member that cannot fetch them here.
    #[instrument(skip_all, fields(peer = %to))]
    pub(super) async fn push(
        self: Arc<Self>,
        data: Data,
        to: Hotkey,
        expected: Option<Expected>,
        until: Instant,
    ) {
        let push = Arc::clone(&self).push_from_here(data.clone(), to.clone(), expected);
        let pushed = tokio::time::timeout_at(until, push).await;
        let event = match pushed.unwrap_or(Err(TransferError::Late)) {
            Ok(()) => Event::Pushed { data, to },
            Err(error) => {
                self.note(&to, error.reason(), error.to_string());
                Event::PushFailed { data, to }
            }
        };
        self.tell(event).await;
    }

    async fn push_from_here(
        self: Arc<Self>,
        data: Data,
        to: Hotkey,
        expected: Option<Expected>,
    ) -> Result<(), TransferError> {
        let expected = expected.ok_or(TransferError::Unexpected)?;
        let chunks = self.chunks_of(&data).ok_or(TransferError::NotHere)?;
        let list = self.list_of(&data).ok_or(TransferError::NotHere)?;
        let giving = Arc::clone(&self).giving(to.clone(), data.clone(), chunks, expected.range);
        match self.tools.caller.push(&to, &data, list, giving).await? {
            true => Ok(()),
            false => Err(TransferError::NotTaken),
        }
    }

    /// One chunk of a gradient, from whoever has it first among `sources`, one after the other.
    pub(super) async fn fetch_one(
        &self,
        data: &Data,
        chunk: u32,
        expected: &Expected,
        sources: &[Hotkey],
    ) -> Option<Bytes> {
        for from in sources {
            match self.fetch_one_from(data, chunk, expected, from).await {
                Ok(bytes) => return Some(bytes),
                Err(error) => self.note(from, error.reason(), error.to_string()),
            }
        }
        None
    }

    async fn fetch_one_from(
        &self,
        data: &Data,
        chunk: u32,
        expected: &Expected,
        from: &Hotkey,
    ) -> Result<Bytes, TransferError> {
        let caller = &self.tools.caller;
        let _lane = self.lane(from).await;
        let mut stream = caller.fetch(from, data, chunk, 1).await?;
        let list = stream.list(expected.listed.len()).await?;
        if Digest::of_chunks(&list) != expected.committed {
            return Err(Garbage::OtherList("is not what was committed to").into());
        }
        let bytes = stream.next().await?.ok_or(TransferError::CutShort)?;
        let at = chunk.checked_sub(expected.listed.start).and_then(|at| usize::try_from(at).ok());
        if at.and_then(|at| list.get(at)) != Some(&Digest::of(&bytes)) {
            return Err(Garbage::OtherChunk { chunk }.into());
        }
        if let Data::Piece { giver, .. } = data {
            self.tools.shelf.keep_list(giver, list.into());
        }
        Ok(bytes)
    }
}

/// Keeps what has come when a transfer ends, however it does.
struct Place<'a> {
    hands: &'a Hands,
    data: &'a Data,
    filling: Option<Filling>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(filling) = self.filling.take() {
            self.hands.tools.shelf.keep_filling(self.data.clone(), filling);
        }
    }
}

/// Bytes that somebody brings who cannot be called.
#[derive(Debug)]
pub(super) struct Pushed {
    hands: Arc<Hands>,
    data: Data,
    expected: Expected,
    filling: Option<Filling>,
}

impl Pushed {
    pub(super) fn new(hands: Arc<Hands>, data: Data, expected: Expected) -> Self {
        let filling = hands.tools.shelf.take_filling(&data);
        Self { hands, data, expected, filling }
    }
}

#[tonic::async_trait]
impl Taking for Pushed {
    fn range(&self) -> std::ops::Range<u32> {
        self.expected.range.clone()
    }

    fn listed(&self) -> usize {
        self.expected.listed.len()
    }

    async fn list(&mut self, list: Vec<Digest>) -> Result<(), Refused> {
        if self.filling.is_none() {
            self.filling = Some(self.hands.begin(&self.data, &self.expected, list)?);
        }
        Ok(())
    }

    fn next(&self) -> Option<u32> {
        match &self.filling {
            Some(filling) => filling.next(),
            None => self.expected.range.clone().next(),
        }
    }

    async fn chunk(&mut self, bytes: Bytes) -> Result<(), Refused> {
        let filling = self.filling.take().ok_or(Refused::NotWanted)?;
        self.filling = Some(self.hands.fill(&self.data, &self.expected, filling, bytes).await?);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<bool, Refused> {
        let Some(filling) = self.filling.take_if(|filling| filling.next().is_none()) else {
            return Ok(false);
        };
        let chunks = filling.finish()?;
        self.hands.tools.shelf.put(self.data.clone(), chunks);
        self.hands.tell(Event::Held(self.data.clone())).await;
        Ok(true)
    }
}

impl Drop for Pushed {
    fn drop(&mut self) {
        if let Some(filling) = self.filling.take() {
            self.hands.tools.shelf.keep_filling(self.data.clone(), filling);
        }
    }
}

/// All parts at once; `None` as soon as one could not be had.
pub(super) async fn all<T>(
    parts: impl IntoIterator<Item = impl Future<Output = Option<T>>>,
) -> Option<Vec<T>> {
    let parts: Vec<Option<T>> = stream::iter(parts).buffered(8).collect().await;
    parts.into_iter().collect()
}
