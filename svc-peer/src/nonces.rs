//! Nonces: drawn for what is sent, and taken once of what is received.
//!
//! Those that were seen are kept in the state store, so that a message cannot be replayed to
//! another replica or after a restart.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use domain::{Hotkey, RoundId};
use store::Store;

use crate::{error::Refused, message::Nonce};

/// Longer than any round's messages are answered: a cycle has about an hour and a half.
const KEPT: Duration = Duration::from_secs(6 * 60 * 60);

/// Draws nonces, and remembers those that were seen.
#[derive(Clone)]
pub(crate) struct Nonces {
    store: Store,
    draw: Arc<dyn Fn() -> Nonce + Send + Sync>,
}

impl Nonces {
    /// Nonces that are drawn by `draw` and remembered in `store`.
    pub(crate) fn new(store: Store, draw: impl Fn() -> Nonce + Send + Sync + 'static) -> Self {
        Self { store, draw: Arc::new(draw) }
    }

    /// A nonce for a message to be sent.
    pub(crate) fn fresh(&self) -> Nonce {
        (self.draw)()
    }

    /// Takes the nonce of a received message, whose signature has been verified.
    pub(crate) async fn take(
        &self,
        round: RoundId,
        sender: &Hotkey,
        nonce: Nonce,
    ) -> Result<(), Refused> {
        let key = format!("peer/nonce/{round}/{sender}/{}", hex::encode(nonce));
        match self.store.put_if_absent(&key, Bytes::from_static(b"1"), Some(KEPT)).await? {
            true => Ok(()),
            false => Err(Refused::Replayed),
        }
    }
}

impl fmt::Debug for Nonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nonces").finish_non_exhaustive()
    }
}
