//! A validator that lies: it signs for a chunk that it has reduced wrongly, once.

use std::sync::atomic::{AtomicBool, Ordering};

use svc_peer::Conduct;

/// Its conduct. Everything but the one chunk is honest, so that what follows is for that alone.
#[derive(Debug, Default)]
pub(super) struct Liar {
    lied: AtomicBool,
}

impl Conduct for Liar {
    fn reduce(&self, _: u32, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        if let Some(byte) = bytes.first_mut()
            && !self.lied.swap(true, Ordering::SeqCst)
        {
            *byte ^= 1;
        }
        Some(bytes)
    }
}
