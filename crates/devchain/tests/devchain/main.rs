//! The development chain as ordinary clients meet it.

#![expect(clippy::unwrap_used, reason = "a test may fail wherever it is")]

mod client;
mod faults;
mod forks;
mod hostile;
mod nodes;
mod pool;
mod reading;
mod refused;
mod saved;
mod upgrade;
mod writing;
