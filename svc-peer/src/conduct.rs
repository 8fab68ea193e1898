//! How a member behaves: the seam where tests and the demonstration put members that do not follow
//! the protocol. Whatever such a member does, it does with the code of an honest one around it.

use std::fmt;

use bytes::Bytes;
use domain::Hotkey;
use merge::{Data, Exchange, Verified};

/// What a member does at the points where it could do something else. The defaults are honest.
#[tonic::async_trait]
pub trait Conduct: fmt::Debug + Send + Sync {
    /// Before statements go to a member, in a call or in an answer. `None`: it hears nothing.
    async fn tell(&self, to: &Hotkey, exchange: Exchange<Verified>) -> Option<Exchange<Verified>> {
        let _ = to;
        Some(exchange)
    }

    /// Before a chunk goes to a member. `None`: the transfer breaks off here.
    async fn give(&self, to: &Hotkey, data: &Data, chunk: u32, bytes: Bytes) -> Option<Bytes> {
        let _ = (to, data, chunk);
        Some(bytes)
    }

    /// After a chunk was reduced, before it is kept and signed for. `None`: reducing has failed.
    /// Runs on a blocking thread.
    fn reduce(&self, chunk: u32, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let _ = chunk;
        Some(bytes)
    }
}

/// The conduct of every validator.
#[derive(Debug, Clone, Copy, Default)]
pub struct Honest;

impl Conduct for Honest {}
