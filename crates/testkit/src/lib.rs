//! What tests share: real neighbours on free ports. Only ever a dev-dependency.
//!
//! Everything started here is killed when its handle is dropped. Waits end at a limit with an
//! error that says what was there instead.

mod hub;
mod net;
mod otlp;
mod process;
mod redis;

pub use hub::{HubRequest, Mischief, TestHub};
pub use net::{connects, free_port, unused_addr};
pub use otlp::{OtlpReceiver, Span};
pub use process::{Process, Running};
pub use redis::RedisServer;
pub use tempfile::TempDir;

/// Returns a new folder that is removed when its handle is dropped.
///
/// # Errors
///
/// When it can't be made.
pub fn tempdir() -> anyhow::Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("connito-test-").tempdir()?)
}
