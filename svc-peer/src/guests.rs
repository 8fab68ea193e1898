//! The round that is open for other validators, and how much each of them has asked for.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use domain::{Hotkey, RoundId};
use kit::Shutdown;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{error::Refused, merging::Merging};

/// What one validator may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Messages in one round.
    pub(crate) requests: u32,
    /// Streams at once, either way.
    pub(crate) transfers: usize,
}

/// A round that other validators can talk about.
pub(crate) struct Open {
    /// The round.
    pub(crate) round: RoundId,
    /// This validator.
    pub(crate) me: Hotkey,
    /// What answers.
    pub(crate) merging: Arc<dyn Merging>,
    /// Ends the round's streams.
    pub(crate) stop: Shutdown,
    limits: Limits,
    guests: BTreeMap<Hotkey, Guest>,
}

#[derive(Debug)]
struct Guest {
    asked: AtomicU32,
    transfers: Arc<Semaphore>,
}

impl Open {
    /// A round with these other validators.
    pub(crate) fn new(
        round: RoundId,
        me: Hotkey,
        others: impl IntoIterator<Item = Hotkey>,
        limits: Limits,
        merging: Arc<dyn Merging>,
        stop: Shutdown,
    ) -> Self {
        let guest = |hotkey| {
            let transfers = Arc::new(Semaphore::new(limits.transfers));
            (hotkey, Guest { asked: AtomicU32::new(0), transfers })
        };
        let guests = others.into_iter().filter(|other| *other != me).map(guest).collect();
        Self { round, me, merging, stop, limits, guests }
    }

    fn guest(&self, sender: &Hotkey) -> Result<&Guest, Refused> {
        self.guests.get(sender).ok_or(Refused::NotAValidator)
    }

    /// Whether a sender is another validator of the round.
    pub(crate) fn knows(&self, sender: &Hotkey) -> Result<(), Refused> {
        self.guest(sender).map(|_| ())
    }

    /// Counts a message of a validator.
    pub(crate) fn count(&self, sender: &Hotkey) -> Result<(), Refused> {
        let most = self.limits.requests;
        let more = |n| (n < most).then_some(n + 1);
        let asked = &self.guest(sender)?.asked;
        let before = asked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        before.map(|_| ()).map_err(|_| Refused::TooMany)
    }

    /// Room for one more stream of a validator, given back when it is dropped.
    pub(crate) fn room(&self, sender: &Hotkey) -> Result<OwnedSemaphorePermit, Refused> {
        let transfers = Arc::clone(&self.guest(sender)?.transfers);
        let most = self.limits.transfers;
        transfers.try_acquire_owned().map_err(|_| Refused::TooManyStreams { most })
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("round", &self.round)
            .field("me", &self.me)
            .field("guests", &self.guests.len())
            .finish_non_exhaustive()
    }
}
