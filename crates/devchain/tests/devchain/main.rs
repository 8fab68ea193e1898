//! The development chain as ordinary clients meet it.

#![expect(clippy::unwrap_used, reason = "a test may fail wherever it is")]

mod client;
mod commits;
mod epochs;
mod faults;
mod hostile;
mod others;
mod reading;
mod refused;
mod registration;
mod runtimes;
mod timelock;
mod writing;
