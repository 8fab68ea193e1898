//! What every service shares: command line, configuration, telemetry, health, shutdown, both ends
//! of gRPC, and how the services of one validator know each other.
//!
//! A service's `main` is one call of [`main`]; its work is a function that takes its
//! configuration and a [`Shutdown`], and returns once that is cancelled. Several such functions
//! may run in one process: nothing here belongs to a single service.
//!
//! This crate knows no service, no protobuf message and no rule of the protocol.

mod admin;
pub mod auth;
mod certificate;
mod cli;
mod client;
pub mod config;
mod grpc;
pub mod health;
mod line;
mod run;
mod shutdown;
pub mod telemetry;
mod tls;
pub mod trace;

pub use certificate::{Certificate, Fingerprint};
pub use cli::Cli;
pub use client::{Channel, channel, channel_with};
pub use config::{Common, LogFormat, Tls};
pub use grpc::{GrpcServer, serve};
pub use health::Health;
pub use line::Line;
pub use run::{install_crypto, main, run};
pub use shutdown::Shutdown;
