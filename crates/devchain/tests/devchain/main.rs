//! The development chain as ordinary clients meet it.

#![expect(clippy::unwrap_used, reason = "a test may fail wherever it is")]

mod client;
mod faults;
mod hostile;
mod reading;
mod refused;
mod writing;
