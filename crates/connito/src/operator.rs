//! What operators and miners ask of a validator that runs: status, records, explanations.

use std::{future::Future, path::Path};

use anyhow::Context as _;
use kit::Channel;
use proto::scheduler::v1::{
    GetRecordRequest, GetRoundRequest, ListRecordsRequest,
    scheduler_service_client::SchedulerServiceClient,
};
use serde_json::Value;

use crate::{config::write_out, explain::story, past, status};

/// How a running validator is reached.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// gRPC address of the scheduler
    #[arg(long, env = "CONNITO_SCHEDULER_URL", default_value = "http://127.0.0.1:50052")]
    scheduler: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    connection: Connection,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum RoundCommand {
    /// Rounds that have a record, newest first
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// What became of every miner in a round, from its record
    Miners {
        #[command(flatten)]
        connection: Connection,
        /// The round: first block of its Submission phase; the newest when left out
        round: Option<u64>,
    },
    /// The signed record of a round, as JSON
    Show {
        #[command(flatten)]
        connection: Connection,
        /// The round: first block of its Submission phase; the newest when left out
        round: Option<u64>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    connection: Connection,
    /// The round; the newest when left out
    #[arg(long)]
    round: Option<u64>,
    /// UID or hotkey of the miner
    miner: String,
}

type Client = SchedulerServiceClient<Channel>;

/// Runs `work` with a channel to the service at `url`; certificates come by the environment.
pub(crate) fn reach<T, Fut: Future<Output = anyhow::Result<T>>>(
    url: &str,
    work: impl FnOnce(Channel) -> Fut,
) -> anyhow::Result<T> {
    kit::install_crypto();
    let runtime = tokio::runtime::Runtime::new().context("build the runtime")?;
    runtime.block_on(async {
        let tls = kit::config::load::<kit::Common>(None, "common")?.tls;
        work(kit::channel(url, &tls)?).await
    })
}

/// Runs `work` with a client of the scheduler.
fn ask<T, Fut: Future<Output = anyhow::Result<T>>>(
    connection: &Connection,
    work: impl FnOnce(Client) -> Fut,
) -> anyhow::Result<T> {
    reach(&connection.scheduler, |channel| {
        work(SchedulerServiceClient::new(channel).max_decoding_message_size(256 << 20))
    })
}

/// Text from outside as a terminal may show it: without anything that would steer it.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

pub(crate) fn reached<T>(result: Result<T, tonic::Status>, what: &str) -> anyhow::Result<T> {
    result.map_err(|status| anyhow::anyhow!("{what}: {} ({})", status.message(), status.code()))
}

pub(crate) fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let view = ask(&args.connection, async |mut client: Client| {
        let answer = client.get_round(GetRoundRequest {}).await;
        Ok(reached(answer, "ask the scheduler")?.into_inner())
    })?;
    match args.json {
        true => write_out(&format!("{:#}\n", status::json(&view))),
        false => write_out(&status::text(&view)),
    }
    Ok(())
}

async fn newest(client: &mut Client, round: Option<u64>) -> anyhow::Result<u64> {
    if let Some(round) = round {
        return Ok(round);
    }
    let answer = reached(client.list_records(ListRecordsRequest {}).await, "list the records")?;
    answer.into_inner().round_ids.first().copied().context("there is no record yet")
}

async fn record(client: &mut Client, round: Option<u64>) -> anyhow::Result<String> {
    let round_id = newest(client, round).await?;
    let answer = client.get_record(GetRecordRequest { round_id }).await;
    Ok(reached(answer, "read the record")?.into_inner().json)
}

pub(crate) fn round(command: &RoundCommand) -> anyhow::Result<()> {
    match command {
        RoundCommand::List { connection } => {
            let rounds = ask(connection, async |mut client: Client| {
                let answer = client.list_records(ListRecordsRequest {}).await;
                Ok(reached(answer, "list the records")?.into_inner().round_ids)
            })?;
            let lines: Vec<String> = rounds.iter().map(|round| format!("{round}\n")).collect();
            write_out(&lines.concat());
        }
        RoundCommand::Miners { connection, round } => {
            let json =
                ask(connection, async |mut client: Client| record(&mut client, *round).await)?;
            let value: Value = serde_json::from_str(&json).context("the record is no JSON")?;
            write_out(&status::round(&past::round(&value["record"])));
        }
        RoundCommand::Show { connection, round } => {
            let json =
                ask(connection, async |mut client: Client| record(&mut client, *round).await)?;
            let value: Value = serde_json::from_str(&json).context("the record is no JSON")?;
            write_out(&format!("{value:#}\n"));
        }
    }
    Ok(())
}

pub(crate) fn explain(args: &ExplainArgs) -> anyhow::Result<()> {
    let json =
        ask(&args.connection, async |mut client: Client| record(&mut client, args.round).await)?;
    let value: Value = serde_json::from_str(&json).context("the record is no JSON")?;
    let record = &value["record"];
    let miners = record["miners"].as_array().context("the record has no miners")?;
    let uid: Option<u64> = args.miner.parse().ok();
    let miner = miners.iter().find(|miner| {
        miner["hotkey"] == args.miner.as_str() || (uid.is_some() && miner["uid"].as_u64() == uid)
    });
    let miner = miner.with_context(|| {
        format!("miner {} is not in the record of round {}", args.miner, record["round"])
    })?;
    write_out(&story(record, miner));
    Ok(())
}

/// Says what is missing on this machine, and the one command that mends it.
pub(crate) fn doctor(config: Option<&Path>) -> anyhow::Result<()> {
    let mut problems = Vec::new();
    match crate::ValidatorConfig::load(config) {
        Ok(config) => {
            let home = std::env::home_dir();
            let chain = &config.chain;
            let wallet = svc_chain::hotkey_file(
                &chain.wallet_path,
                &chain.coldkey,
                &chain.hotkey,
                home.as_deref(),
            );
            if !wallet.exists() {
                problems
                    .push(format!("no hotkey at {}: set `chain.wallet_path`", wallet.display()));
            }
            let evaluator = &config.evaluator;
            let data = &evaluator.data;
            let texts = data.group_config.as_ref().unwrap_or(&evaluator.corpus);
            let held_out = data.held_out_config.as_ref().unwrap_or(&evaluator.held_out);
            for path in [&evaluator.tokenizer, texts, held_out] {
                if !path.exists() {
                    problems.push(format!("{} is missing", path.display()));
                }
            }
            if !evaluator.device.is_available() {
                problems.push(format!(
                    "device {} is not there: start with LD_LIBRARY_PATH at a CUDA libtorch",
                    evaluator.device
                ));
            }
        }
        Err(error) => problems.push(format!("configuration: {error:#}")),
    }
    if problems.is_empty() {
        write_out("all is there\n");
        return Ok(());
    }
    anyhow::bail!("{}", problems.join("\n         "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_steers_the_terminal() {
        assert_eq!(plain("a\u{1b}[31mb\r\nc"), "a\u{fffd}[31mb\u{fffd}\u{fffd}c");
        assert_eq!(plain("block 7 · ж"), "block 7 · ж");
    }
}
