//! The service from outside: merges among validators, restarts, attacks, the process.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the failure")]

mod bad_network;
mod chain;
mod faults;
mod holder;
mod merge;
mod network;
mod process;
mod proxy;
mod restart;
mod resync;
mod resync_liars;
mod sealing;
mod stage;
