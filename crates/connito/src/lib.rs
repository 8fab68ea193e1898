//! The `connito` command: one validator in one process, a whole subnet for a demonstration, a miner,
//! a development chain, and what operators ask of a validator that runs.
//!
//! Services do not know each other's crates; here they are put side by side.

mod chain;
mod cli;
mod config;
pub mod demo;
mod explain;
mod merged;
pub mod miner;
mod models;
mod operator;
mod past;
mod resync;
mod status;
mod up;

use std::process::ExitCode;

pub use up::{Validator, ValidatorConfig};

/// Runs the command line and tells errors to people.
pub fn main() -> ExitCode {
    cli::main()
}
