//! The kit from outside: configuration, both ends of gRPC, TLS, and the life of a process.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod auth;
mod config;
mod fake;
mod grpc;
mod line;
mod run;
mod tls;
