//! What a transfer tells whoever waits for it.

use std::time::Duration;

use crate::error::ClientError;

/// Something that happened to a transfer.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// It goes on from here: at the beginning of every try.
    From {
        /// Bytes that are there already.
        offset: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Bytes that are there by now.
    At(u64),
    /// All bytes are there: the gateway looks at them.
    Sent,
    /// It did not work, and is tried again.
    Again {
        /// What went wrong.
        why: &'a ClientError,
        /// How long it waits before.
        pause: Duration,
    },
}

/// Listens to a transfer. Called often and from async code: it must not block.
pub trait Progress: Send + Sync {
    /// Takes note.
    fn on(&self, event: Event<'_>);
}

/// Nobody listens.
impl Progress for () {
    fn on(&self, _: Event<'_>) {}
}
