//! What operators and miners ask of a validator that runs: status, records, explanations.

use std::{future::Future, path::Path};

use anyhow::Context as _;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use kit::Channel;
use proto::scheduler::v1::{
    GetRecordRequest, GetRoundRequest, ListRecordsRequest, Phase, RoundStage,
    scheduler_service_client::SchedulerServiceClient,
};
use serde_json::Value;

use crate::config::write_out;

/// How a running validator is reached.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// gRPC address of the scheduler
    #[arg(long, env = "CONNITO_SCHEDULER_URL", default_value = "http://127.0.0.1:50052")]
    scheduler: String,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum RoundCommand {
    /// Rounds that have a record, newest first
    List {
        #[command(flatten)]
        connection: Connection,
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

pub(crate) fn status(connection: &Connection) -> anyhow::Result<()> {
    let view = ask(connection, async |mut client: Client| {
        let answer = client.get_round(GetRoundRequest {}).await;
        Ok(reached(answer, "ask the scheduler")?.into_inner())
    })?;
    let phase = Phase::try_from(view.phase).unwrap_or(Phase::Unspecified);
    let base = view.base.clone().unwrap_or_default();
    let mut text = format!(
        "validator  {}\nblock      {} · cycle {} · {}\nmodel      {} · version {}\n",
        view.hotkey,
        view.block,
        view.cycle,
        phase.as_str_name().trim_start_matches("PHASE_"),
        base.model_hash,
        base.global_version,
    );
    if let Some(round) = &view.round {
        let stage = RoundStage::try_from(round.stage).unwrap_or(RoundStage::Unspecified);
        let stage = stage.as_str_name().trim_start_matches("ROUND_STAGE_").to_lowercase();
        text += &format!("round      {} · {stage} · trace {}\n", round.round_id, round.traceparent);
        if !round.held.is_empty() {
            text += &format!("held       {}\n", plain(&round.held));
        }
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        table.set_header(["uid", "hotkey", "outcome", "loss", "score", "reason"]);
        for miner in &round.miners {
            let number = |value: Option<f64>| value.map(|v| format!("{v:.4}")).unwrap_or_default();
            let hotkey: String = miner.hotkey.chars().take(10).collect();
            table.add_row([
                miner.uid.to_string(),
                hotkey,
                miner.outcome.clone(),
                number(miner.loss),
                number(miner.score),
                miner.reason.clone(),
            ]);
        }
        text += &format!("{table}\n");
        if !round.weights.is_empty() {
            let origin = match round.weights_origin.as_str() {
                "stale_guard" => "of the stale guard, not earned in this round",
                _ => "earned",
            };
            text += &format!("weights    {} UIDs · {origin}\n", round.weights.len());
        }
        for write in &round.writes {
            text +=
                &format!("write      {} {} {}\n", write.kind, write.state, write.extrinsic_hash);
        }
        for degradation in &round.degradations {
            text += &format!(
                "degraded   {} at block {}: {}\n",
                degradation.kind,
                degradation.block,
                plain(&degradation.detail)
            );
        }
    }
    write_out(&text);
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

/// What became of a miner, in sentences.
fn story(record: &Value, miner: &Value) -> String {
    let uid = &miner["uid"];
    let mut lines = vec![
        format!("round {} · miner {uid} · {}", record["round"], text(&miner["hotkey"])),
        match miner["assigned"].as_bool() {
            Some(true) => "assigned to this validator (foreground)".to_owned(),
            _ => "in the background of this validator".to_owned(),
        },
    ];
    match miner["committed"].as_object() {
        Some(committed) => lines.push(format!(
            "committed model {} trained on version {}",
            text(&committed["model_hash"]),
            committed["version"]
        )),
        None => lines.push(format!("no usable commitment: {}", cause(&miner["fault"]))),
    }
    if let Some(key) = miner["submission"]["key"].as_str() {
        lines.push(format!("submitted {key} at block {}", miner["submission"]["block"]));
    } else if !miner["refused"].is_null() {
        lines.push(format!("upload refused: {}", cause(&miner["refused"])));
    } else {
        lines.push("submitted nothing here".to_owned());
    }
    let verdict = &miner["verdict"];
    match verdict["kind"].as_str() {
        Some("measured") => {
            let mean = |values: &Value| {
                let values: Vec<f64> =
                    values.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
                domain::mean(&values).unwrap_or(f64::NAN)
            };
            let (base, loss) = (mean(&verdict["baseline"]), mean(&verdict["losses"]));
            lines.push(format!(
                "loss {loss:.6} against {base:.6} of the base model: delta {:.6}, raw score {}",
                domain::delta(base, loss),
                verdict["raw"]
            ));
        }
        Some(_) => lines.push(format!("invalid: {}", cause(verdict))),
        None => lines.push("not evaluated".to_owned()),
    }
    lines.push(match miner["score"].as_f64() {
        Some(score) => format!("score of the round {score}, reason {}", text(&miner["reason"])),
        None => "no score: the round writes nothing for it, its average stays".to_owned(),
    });
    let weights = record["weights"].as_array().into_iter().flatten();
    let weight = weights.filter(|pair| pair[0] == *uid).find_map(|pair| pair[1].as_f64());
    lines.push(match record["weights_origin"].as_str() {
        Some("stale_guard") => format!(
            "weight {} of the stale guard: nobody earned any in this round",
            weight.unwrap_or(0.0)
        ),
        _ => format!("weight {}", weight.unwrap_or(0.0)),
    });
    lines.join("\n") + "\n"
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| "none".to_owned(), ToOwned::to_owned)
}

fn cause(value: &Value) -> String {
    format!("{} ({})", text(&value["detail"]), text(&value["reason"]))
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
    use serde_json::json;

    use super::*;

    #[test]
    fn the_story_of_a_miner_tells_weights_that_were_earned_from_the_stale_guards() {
        let miner = json!({"uid": 2, "hotkey": "5x", "assigned": true});
        let told = |origin: Value| {
            let record = json!({"round": 16, "weights": [[2, 0.5]], "weights_origin": origin});
            story(&record, &miner)
        };
        assert!(told(json!("earned")).ends_with("\nweight 0.5\n"));
        assert!(told(Value::Null).ends_with("\nweight 0.5\n"), "records from before");
        let stale = told(json!("stale_guard"));
        assert!(
            stale.ends_with("weight 0.5 of the stale guard: nobody earned any in this round\n")
        );
    }

    #[test]
    fn nothing_from_outside_steers_the_terminal() {
        assert_eq!(plain("a\u{1b}[31mb\r\nc"), "a\u{fffd}[31mb\u{fffd}\u{fffd}c");
        assert_eq!(plain("block 7 · ж"), "block 7 · ж");
    }
}
