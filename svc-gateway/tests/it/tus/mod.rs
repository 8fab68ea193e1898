//! Uploads that are gone on with: tus 1.0 over real HTTP.

mod client;
mod protocol;
