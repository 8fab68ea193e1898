//! What operators ask of a chain service that runs: how its endpoints are, and what became of every
//! write.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use proto::chain::v1::{
    Block, Endpoint, GetStatusRequest, GetStatusResponse, Intent, IntentState, ListIntentsRequest,
    chain_service_client::ChainServiceClient,
};

use crate::{
    config::write_out,
    operator::{plain, reach, reached},
};

/// How a running chain service is reached.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// gRPC address of the chain service
    #[arg(long, env = "CONNITO_CHAIN_URL", default_value = "http://127.0.0.1:50051")]
    chain: String,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// The chain's nodes as they are reached, the runtime, and what did not go the normal way
    Status {
        #[command(flatten)]
        connection: Connection,
    },
    /// What was written to the chain, or is to be, newest first
    Intents {
        #[command(flatten)]
        connection: Connection,
        /// Only those that are not finished
        #[arg(long)]
        open: bool,
        /// At most this many; 0 is all that are kept
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
}

pub(crate) fn main(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Status { connection } => {
            let status = reach(&connection.chain, async |channel| {
                let answer = ChainServiceClient::new(channel).get_status(GetStatusRequest {}).await;
                Ok(reached(answer, "ask the chain service")?.into_inner())
            })?;
            write_out(&status_text(&status));
        }
        Command::Intents { connection, open, limit } => {
            let request = ListIntentsRequest { open: *open, limit: *limit };
            let intents = reach(&connection.chain, async |channel| {
                let mut client =
                    ChainServiceClient::new(channel).max_decoding_message_size(64 << 20);
                let answer = client.list_intents(request).await;
                Ok(reached(answer, "ask the chain service")?.into_inner().intents)
            })?;
            write_out(&intents_text(&intents, *open));
        }
    }
    Ok(())
}

fn status_text(status: &GetStatusResponse) -> String {
    let number = |block: &Option<Block>| block.as_ref().map_or(0, |block| block.number);
    let (best, finalized) = (number(&status.best), number(&status.finalized));
    let hash = status.best.as_ref().map(|block| hex::encode(&block.hash)).unwrap_or_default();
    let mut lines = vec![match &status.best {
        Some(_) => format!(
            "chain      block {best} (0x{}) · final {finalized}, {} behind",
            hash.get(..8).unwrap_or(&hash),
            best.saturating_sub(finalized),
        ),
        None => "chain      no block seen yet".to_owned(),
    }];
    let missing: Vec<String> = status.missing.iter().map(|name| plain(name)).collect();
    lines.push(match missing.is_empty() {
        true => format!("runtime    spec {} · has all that is used", status.spec_version),
        false => format!("runtime    spec {} · lacks {}", status.spec_version, missing.join(", ")),
    });
    let mode = match status.weights_mode.as_str() {
        "" => "not known yet".to_owned(),
        mode => plain(mode),
    };
    lines.push(format!("weights    {mode}"));
    lines.push(format!(
        "outbox     {} open · {}",
        counted(u64::from(status.open_intents), "intent"),
        match status.nonce_owner {
            true => "this process sends for the hotkey",
            false => "this process does not send for the hotkey",
        }
    ));
    lines.push(format!(
        "quorum     {} must agree on what decides money",
        counted(u64::from(status.quorum), "endpoint")
    ));
    lines.push(match (status.snapshots.first(), status.snapshots.last()) {
        (Some(first), Some(last)) => format!(
            "snapshots  {} of commitments, blocks {first} to {last}",
            status.snapshots.len()
        ),
        (None, _) | (_, None) => "snapshots  none yet".to_owned(),
    });
    if !status.endpoints.is_empty() {
        lines.push(endpoints(&status.endpoints).to_string());
    }
    for endpoint in status.endpoints.iter().filter(|endpoint| !endpoint.last_error.is_empty()) {
        lines.push(format!("error      {}: {}", plain(&endpoint.url), plain(&endpoint.last_error)));
    }
    lines.extend(status.degradations.iter().map(|degradation| {
        let (kind, detail) = (plain(&degradation.kind), plain(&degradation.detail));
        format!("degraded   {kind} at block {}: {detail}", degradation.block)
    }));
    lines.join("\n") + "\n"
}

fn endpoints(endpoints: &[Endpoint]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["", "endpoint", "state", "block", "lag", "latency", "errors", "spec"]);
    for endpoint in endpoints {
        let known = |value: u64| if value == 0 { String::new() } else { value.to_string() };
        table.add_row([
            if endpoint.in_use { "●".to_owned() } else { String::new() },
            plain(&endpoint.url),
            plain(&endpoint.state),
            known(endpoint.best),
            if endpoint.best == 0 { String::new() } else { endpoint.lag.to_string() },
            latency(endpoint.latency_us),
            endpoint.errors.to_string(),
            known(u64::from(endpoint.spec_version)),
        ]);
    }
    for column in 3..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn latency(us: u64) -> String {
    match us {
        0 => String::new(),
        1..1_000 => format!("{us} µs"),
        1_000..10_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{} s", us / 1_000_000),
    }
}

fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn intents_text(intents: &[Intent], open: bool) -> String {
    if intents.is_empty() {
        let text = if open { "nothing is open" } else { "nothing was written yet" };
        return format!("{text}\n");
    }
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "round", "kind", "mode", "state", "block", "tries", "reason", "then", "detail",
    ]);
    for intent in intents {
        let key = intent.key.clone().unwrap_or_default();
        let kind = match intent.stale_guard {
            true => format!("{} (stale guard)", plain(&key.kind)),
            false => plain(&key.kind),
        };
        table.add_row([
            key.round.to_string(),
            kind,
            plain(&intent.mode),
            state(intent.state()).to_owned(),
            if intent.block == 0 { String::new() } else { intent.block.to_string() },
            intent.attempts.to_string(),
            plain(&intent.reason),
            advice(intent),
            plain(&intent.detail),
        ]);
    }
    for column in [0, 4, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n")
}

fn state(state: IntentState) -> &'static str {
    match state {
        IntentState::Unspecified => "unknown",
        IntentState::Recorded => "recorded",
        IntentState::Submitted => "submitted",
        IntentState::Included => "included",
        IntentState::Done => "done",
        IntentState::Failed => "failed",
    }
}

/// What happens next, in words.
fn advice(intent: &Intent) -> String {
    match intent.advice.as_str() {
        "" => String::new(),
        "never" => "not again".to_owned(),
        "again" => "sent again".to_owned(),
        "when_allowed" => format!("again from block {}", intent.not_before),
        "follow" => "on its way".to_owned(),
        other => plain(other),
    }
}

#[cfg(test)]
mod tests {
    use proto::{chain::v1::IntentKey, common::v1::Degradation};

    use super::*;

    fn block(number: u64) -> Option<Block> {
        Some(Block { number, hash: vec![0xab; 32].into(), parent_hash: vec![0; 32].into() })
    }

    #[test]
    fn the_status_names_every_endpoint_and_what_is_wrong_with_it() {
        let good = Endpoint {
            url: "wss://one.example:443".to_owned(),
            in_use: true,
            state: "ok".to_owned(),
            best: 4711,
            latency_us: 48_200,
            spec_version: 424,
            ..Endpoint::default()
        };
        let lagging = Endpoint {
            url: "ws://10.0.0.2:9944".to_owned(),
            rank: 1,
            in_use: false,
            state: "lagging".to_owned(),
            best: 4690,
            lag: 21,
            latency_us: 950,
            errors: 3,
            spec_version: 423,
            last_error: "no block for 60s\u{1b}[2J".to_owned(),
        };
        let unknown = Endpoint {
            url: "ws://10.0.0.3:9944".to_owned(),
            rank: 2,
            state: "unknown".to_owned(),
            ..Endpoint::default()
        };
        let status = GetStatusResponse {
            best: block(4711),
            finalized: block(4708),
            endpoints: vec![good, lagging, unknown],
            spec_version: 424,
            missing: Vec::new(),
            nonce_owner: true,
            open_intents: 1,
            quorum: 2,
            weights_mode: "timelock".to_owned(),
            degradations: vec![Degradation {
                kind: "endpoint_switched".to_owned(),
                detail: "from ws://10.0.0.2:9944".to_owned(),
                block: 4690,
            }],
            snapshots: vec![4500, 4524, 4708],
        };
        let wanted = "\
chain      block 4711 (0xabababab) · final 4708, 3 behind
runtime    spec 424 · has all that is used
weights    timelock
outbox     1 intent open · this process sends for the hotkey
quorum     2 endpoints must agree on what decides money
snapshots  3 of commitments, blocks 4500 to 4708
┌───┬───────────────────────┬─────────┬───────┬─────┬─────────┬────────┬──────┐
│   ┆ endpoint              ┆ state   ┆ block ┆ lag ┆ latency ┆ errors ┆ spec │
╞═══╪═══════════════════════╪═════════╪═══════╪═════╪═════════╪════════╪══════╡
│ ● ┆ wss://one.example:443 ┆ ok      ┆  4711 ┆   0 ┆   48 ms ┆      0 ┆  424 │
│   ┆ ws://10.0.0.2:9944    ┆ lagging ┆  4690 ┆  21 ┆  950 µs ┆      3 ┆  423 │
│   ┆ ws://10.0.0.3:9944    ┆ unknown ┆       ┆     ┆         ┆      0 ┆      │
└───┴───────────────────────┴─────────┴───────┴─────┴─────────┴────────┴──────┘
error      ws://10.0.0.2:9944: no block for 60s�[2J
degraded   endpoint_switched at block 4690: from ws://10.0.0.2:9944
";
        let text = status_text(&status);
        assert_eq!(text, wanted, "\n{text}");
    }

    #[test]
    fn a_service_that_knows_nothing_yet_says_so() {
        let missing = vec!["Commitments.CommitmentOf".to_owned(), "Drand.Pulses".to_owned()];
        let text = status_text(&GetStatusResponse { missing, ..GetStatusResponse::default() });
        let wanted = "\
chain      no block seen yet
runtime    spec 0 · lacks Commitments.CommitmentOf, Drand.Pulses
weights    not known yet
outbox     0 intents open · this process does not send for the hotkey
quorum     0 endpoints must agree on what decides money
snapshots  none yet
";
        assert_eq!(text, wanted, "\n{text}");
    }

    #[test]
    fn every_intent_is_a_line_with_what_happens_next() {
        let intent = |round, kind: &str, state: IntentState| Intent {
            key: Some(IntentKey { round, kind: kind.to_owned() }),
            state: state.into(),
            ..Intent::default()
        };
        let waiting = Intent {
            mode: "plain".to_owned(),
            attempts: 1,
            reason: "setting_weights_too_fast".to_owned(),
            detail: "100 blocks must pass".to_owned(),
            advice: "when_allowed".to_owned(),
            not_before: 4800,
            stale_guard: true,
            ..intent(4700, "weights", IntentState::Recorded)
        };
        let done =
            Intent { block: 4697, attempts: 1, ..intent(4700, "model_hash", IntentState::Done) };
        let failed = Intent {
            attempts: 2,
            reason: "superseded".to_owned(),
            detail: "a newer round's weights were there first".to_owned(),
            advice: "never".to_owned(),
            mode: "hash_commit".to_owned(),
            ..intent(4228, "weights", IntentState::Failed)
        };
        let wanted = "\
┌───────┬───────────────────────┬─────────────┬──────────┬───────┬───────┬──────────────────────────┬───────────────────────┬──────────────────────────────────────────┐
│ round ┆ kind                  ┆ mode        ┆ state    ┆ block ┆ tries ┆ reason                   ┆ then                  ┆ detail                                   │
╞═══════╪═══════════════════════╪═════════════╪══════════╪═══════╪═══════╪══════════════════════════╪═══════════════════════╪══════════════════════════════════════════╡
│  4700 ┆ weights (stale guard) ┆ plain       ┆ recorded ┆       ┆     1 ┆ setting_weights_too_fast ┆ again from block 4800 ┆ 100 blocks must pass                     │
│  4700 ┆ model_hash            ┆             ┆ done     ┆  4697 ┆     1 ┆                          ┆                       ┆                                          │
│  4228 ┆ weights               ┆ hash_commit ┆ failed   ┆       ┆     2 ┆ superseded               ┆ not again             ┆ a newer round's weights were there first │
└───────┴───────────────────────┴─────────────┴──────────┴───────┴───────┴──────────────────────────┴───────────────────────┴──────────────────────────────────────────┘
";
        let text = intents_text(&[waiting, done, failed], false);
        assert_eq!(text, wanted, "\n{text}");
        assert_eq!(intents_text(&[], true), "nothing is open\n");
        assert_eq!(intents_text(&[], false), "nothing was written yet\n");
    }

    #[test]
    fn times_are_as_long_as_they_are_useful() {
        let shown = [0, 7, 1_499, 48_200, 9_999_999, 15_000_000].map(latency);
        assert_eq!(shown, ["", "7 µs", "1 ms", "48 ms", "9999 ms", "15 s"]);
    }
}
