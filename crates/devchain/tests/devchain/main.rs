//! The development chain as ordinary clients meet it.

#![expect(clippy::unwrap_used, reason = "a test may fail wherever it is")]

mod client;
mod command;
mod commits;
mod epochs;
mod faults;
mod forks;
mod hostile;
mod nodes;
mod others;
mod pool;
mod reading;
mod refused;
mod registration;
mod runtimes;
mod saved;
mod script;
mod timelock;
mod upgrade;
mod writing;
