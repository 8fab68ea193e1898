//! The service on a development chain: what is read, what is written, and what a crash costs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod chaos;
mod contract;
mod crash;
mod fence;
mod forks;
mod landing;
mod matrix;
mod net;
mod nodes;
mod page;
mod process;
mod quorum;
mod reading;
mod reveal;
mod rig;
mod runtimes;
mod snapshots;
mod upgrades;
mod writing;
