//! The development chain as ordinary clients meet it.

#![expect(clippy::unwrap_used, reason = "a test may fail wherever it is")]

mod client;
mod command;
mod faults;
mod forks;
mod hostile;
mod nodes;
mod pool;
mod reading;
mod refused;
mod saved;
mod script;
mod upgrade;
mod writing;
