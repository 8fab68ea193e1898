//! The gateway over real HTTP, between a fake scheduler and a folder of artifacts.
#![cfg(test)]

mod client;
mod common;
mod connections;
mod crowd;
mod download;
mod faults;
mod hostile;
mod hub;
#[expect(unreachable_pub, reason = "the client is public in its own crate")]
#[path = "../../../crates/connito/src/miner/client.rs"]
mod miner_client;
mod openapi;
mod phase;
mod process;
mod python;
mod receipt;
mod refusals;
mod resume;
mod s3;
mod tus;
mod upload;
