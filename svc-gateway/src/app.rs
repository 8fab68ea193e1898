//! What every handler needs: handles to the world, the limits, and counters. No protocol state.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kit::Shutdown;
use store::{Artifacts, Store};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    Config,
    arriving::Arriving,
    error::Error,
    grpc::Scheduler,
    limits::{Limits, UnderWay},
    places::{Known, Visitor},
    receipt::Past,
    sound::Sound,
    spool::Spool,
    tus::{Parts, Table},
    view::Latest,
};

/// Shared by all handlers.
#[derive(Debug, Clone)]
pub(crate) struct App(Arc<Inner>);

/// The insides of [`App`].
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) latest: Latest,
    pub(crate) store: Store,
    pub(crate) artifacts: Artifacts,
    pub(crate) scheduler: Scheduler,
    pub(crate) spool: Spool,
    /// Unfinished uploads on this disk.
    pub(crate) parts: Parts,
    /// Who has which of them.
    pub(crate) tus: Table,
    pub(crate) limits: Limits,
    pub(crate) shutdown: Shutdown,
    /// How far uploads to this gateway have come.
    pub(crate) arriving: Arriving,
    /// Rounds that are over, for receipts.
    pub(crate) past: Past,
    /// One permit per upload in progress.
    pub(crate) uploads: Slots,
    /// One permit per download in progress.
    pub(crate) downloads: Slots,
    /// Which files on this disk are what the manifest says.
    pub(crate) sound: Sound,
    /// One permit per file that is being verified.
    pub(crate) verifications: Semaphore,
    /// Uploads stored since the start.
    pub(crate) stored: Count,
    /// Uploads refused since the start.
    pub(crate) refused: Count,
}

impl App {
    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }
}

impl Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// A number of things that may be done at a time.
#[derive(Debug)]
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    all: usize,
}

impl Slots {
    pub(crate) fn new(all: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(all)), all }
    }

    /// Takes one at once, or not at all.
    pub(crate) fn take(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.free).try_acquire_owned().map_err(|_| Error::Busy)
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.all - self.free.available_permits()
    }
}

/// A slot that is taken, and the place of the connection for which it is: not given up as long as this is held.
#[derive(Debug)]
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
    _known: Option<Known>,
    _under_way: Option<UnderWay>,
}

impl Slot {
    /// The slot of whoever came by this connection.
    pub(crate) fn of(permit: OwnedSemaphorePermit, visitor: Option<&Visitor>) -> Self {
        Self { _permit: permit, _known: visitor.map(Visitor::known), _under_way: None }
    }

    /// The same, for something of which each client has a share.
    pub(crate) fn counted(self, under_way: UnderWay) -> Self {
        Self { _under_way: Some(under_way), ..self }
    }
}

/// Counts up.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
