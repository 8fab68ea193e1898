//! What services share with each other and with their own future: leases and small state
//! ([`Store`]), and files that never change ([`Artifacts`]).
//!
//! Both have a real engine (Redis; a folder or an S3 bucket) and one in memory, which pass the
//! same tests. This crate knows keys and bytes, not what they mean.

mod artifacts;
mod backend;
mod error;
mod kv;
mod memory;
mod redis;

pub use artifacts::{Artifact, ArtifactError, Artifacts, Fetched};
pub use backend::{Lease, Write};
pub use error::StoreError;
pub use kv::Store;
