//! A miner's end of the gateway's HTTP (protocol, section 8): signed downloads and submissions that go on where
//! they broke off, whether it was the connection, the gateway or this process that ended.
//!
//! Knows the wire and nothing of training, and shows nothing to anybody: a [`Progress`] is told what happens. The
//! key stays outside: signing is a function that is handed in. What a gateway sends is bounded and compared
//! with what it announced.

mod advice;
mod answer;
mod check;
mod download;
mod error;
mod gateway;
mod note;
mod progress;
mod receipt;
mod retry;
mod source;
mod submit;
mod tus;

pub use advice::advice;
pub use check::{Checked, check};
pub use download::Downloaded;
pub use error::{ClientError, Refusal};
pub use gateway::{Gateway, MinerClient, Signer, Status};
pub use progress::{Event, Progress};
pub use receipt::Receipt;
pub use retry::Patience;
pub use submit::{Submitted, Transport};
