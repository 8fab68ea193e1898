//! Uploads that are gone on with: tus 1.0 over real HTTP.

mod attacks;
mod client;
mod creation;
mod cuts;
mod gateways;
mod processes;
mod protocol;
