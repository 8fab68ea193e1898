//! The command line.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{chain, config, demo, miner, models, operator, up};

/// A validator for Connito, in one command
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one validator: all five services in this process
    Up(up::Args),
    /// Run a whole subnet on this machine and watch it learn
    Demo(Box<demo::Args>),
    /// Be a miner: all by itself, or one thing after another by hand
    #[command(subcommand)]
    Miner(miner::Command),
    /// Run the development chain alone
    Devchain(devchain::Args),
    /// Configuration files
    #[command(subcommand)]
    Config(config::Command),
    /// Global models
    #[command(subcommand)]
    Model(models::Command),
    /// Show where a running validator stands
    Status(operator::StatusArgs),
    /// What the chain service does
    #[command(subcommand)]
    Chain(chain::Command),
    /// Records of finished rounds
    #[command(subcommand)]
    Round(operator::RoundCommand),
    /// Explain what became of a miner in a round
    Explain(operator::ExplainArgs),
    /// Check what a validator needs on this machine
    Doctor {
        /// Configuration file
        #[arg(long, env = "CONNITO_CONFIG")]
        config: Option<PathBuf>,
    },
}

pub(crate) fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(args) => up::main(&args),
        Command::Demo(args) => demo::main(&args),
        Command::Miner(command) => miner::main(command),
        Command::Devchain(args) => devchain(args),
        Command::Config(command) => config::main(&command),
        Command::Model(command) => models::main(&command),
        Command::Status(args) => operator::status(&args),
        Command::Chain(command) => chain::main(&command),
        Command::Round(command) => operator::round(&command),
        Command::Explain(args) => operator::explain(&args),
        Command::Doctor { config } => operator::doctor(config.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("connito: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn devchain(args: devchain::Args) -> anyhow::Result<()> {
    let common = kit::Common::default();
    kit::run("devchain", &common, None, async move |shutdown| {
        let stop = tokio_util::sync::CancellationToken::new();
        let stopping = stop.clone();
        let waiting = shutdown.clone();
        shutdown.spawn(async move {
            waiting.cancelled().await;
            stopping.cancel();
        });
        devchain::run(args, stop).await
    })
}
