//! The gateway over real HTTP, between a fake scheduler and a folder of artifacts.
#![cfg(test)]

mod common;
mod connections;
mod download;
mod hostile;
mod phase;
mod process;
mod refusals;
mod resume;
mod s3;
mod tus;
mod upload;
