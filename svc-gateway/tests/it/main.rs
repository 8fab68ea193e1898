//! The gateway over real HTTP, between a fake scheduler and a folder of artifacts.
#![cfg(test)]

mod common;
mod connections;
mod crowd;
mod download;
mod faults;
mod hostile;
mod hub;
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
