//! What the desk asks of a merge that is open here: to talk, to give bytes, to take them.

use std::{fmt, io, ops::Range, sync::Arc};

use bytes::Bytes;
use domain::Hotkey;
use futures::stream::BoxStream;
use merge::{Data, Digest, Exchange, Verified};

use crate::error::Refused;

/// A merge that others may talk to. Whoever calls is a validator of the round and has signed it.
#[tonic::async_trait]
pub(crate) trait Merging: Send + Sync {
    /// Hears statements, and answers with others.
    async fn exchange(
        &self,
        from: &Hotkey,
        exchange: Exchange<Verified>,
    ) -> Result<Exchange<Verified>, Refused>;

    /// What to send of `data`: these chunks, counted in the whole vector, or only the list where
    /// there are none. Waits a moment for what may soon be here.
    async fn offer(
        &self,
        to: &Hotkey,
        data: &Data,
        chunks: Range<u32>,
    ) -> Result<Outgoing, Refused>;

    /// Where `data` that is brought goes; refused when it is not wanted.
    async fn take(&self, from: &Hotkey, data: &Data) -> Result<Box<dyn Taking>, Refused>;
}

/// Bytes on their way out.
pub(crate) struct Outgoing {
    /// Digests: of a piece those of the giver's whole gradient, of a reduced slice its own.
    pub(crate) list: Arc<[Digest]>,
    /// The chunks that were asked for, in their order.
    pub(crate) chunks: BoxStream<'static, io::Result<Bytes>>,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("listed", &self.list.len()).finish_non_exhaustive()
    }
}

/// Takes bytes that are brought, and checks them.
#[tonic::async_trait]
pub(crate) trait Taking: Send {
    /// Chunks of the data, counted in the whole vector: those that will be brought, in this order.
    fn range(&self) -> Range<u32>;

    /// How many digests the list has.
    fn listed(&self) -> usize;

    /// The first chunk that is lacking; `None` when all are here. Chunks before it are passed over.
    fn next(&self) -> Option<u32>;

    /// Takes the list: first, and once.
    async fn list(&mut self, list: Vec<Digest>) -> Result<(), Refused>;

    /// Takes the chunk [`Taking::next`].
    async fn chunk(&mut self, bytes: Bytes) -> Result<(), Refused>;

    /// No more comes, for whatever reason: whether all is here. What is lacking may be brought
    /// another time.
    async fn finish(self: Box<Self>) -> Result<bool, Refused>;
}
