//! The state of a running validator, for people and for programs.

use comfy_table::{Cell, CellAlignment, Color, Table, presets::UTF8_FULL_CONDENSED};
use domain::Reason;
use proto::{
    common::v1::{Degradation, ModelRef},
    scheduler::v1::{Improvement, Miner, Phase, Round, RoundStage, RoundView},
};
use serde_json::{Value, json};

use crate::{merged, operator::plain, resync};

/// The state as text.
pub(crate) fn text(view: &RoundView) -> String {
    let base = match &view.base {
        Some(base) => format!("{} · version {}", base.model_hash, base.global_version),
        None => "none yet: it comes from the other validators, or by `connito model import`".into(),
    };
    let mut text = format!(
        "validator  {}\nblock      {} · cycle {} · {}\nmodel      {base}\n",
        view.hotkey,
        view.block,
        view.cycle,
        phase(view),
    );
    text += &view.resync.as_ref().map(resync::text).unwrap_or_default();
    let Some(round) = &view.round else { return text };
    text += &format!(
        "round      {} · {} · trace {}\n",
        round.round_id,
        stage(round),
        round.traceparent
    );
    if !round.held.is_empty() {
        text += &format!("held       {}\n", plain(&round.held));
    }
    text += &evaluation(round);
    if !round.weights.is_empty() {
        let origin = match round.weights_origin.as_str() {
            "stale_guard" => "of the stale guard, not earned in this round",
            _ => "earned",
        };
        text += &format!("weights    {} UIDs · {origin}\n", round.weights.len());
    }
    for write in &round.writes {
        text += &format!("write      {} {} {}\n", write.kind, write.state, write.extrinsic_hash);
    }
    text + &degradations(&round.degradations)
}

/// A line for each.
pub(crate) fn degradations(list: &[Degradation]) -> String {
    let line = |told: &Degradation| {
        format!("degraded   {} at block {}: {}\n", told.kind, told.block, plain(&told.detail))
    };
    list.iter().map(line).collect()
}

pub(crate) fn degradation(told: &Degradation) -> Value {
    json!({"kind": told.kind, "detail": told.detail, "block": told.block})
}

pub(crate) fn model(model: &ModelRef) -> Value {
    json!({
        "global_version": model.global_version,
        "model_hash": model.model_hash,
        "prefix": model.prefix,
    })
}

/// A round that is over.
pub(crate) fn round(round: &Round) -> String {
    format!("round      {} · cycle {}\n{}", round.round_id, round.cycle, evaluation(round))
}

/// What the base model lost, what became of the miners, and of the merge.
fn evaluation(round: &Round) -> String {
    let baseline =
        round.baseline.map(|loss| format!("base loss  {loss:.4} on the round's batches\n"));
    let merge = round.merge.as_ref().map(merged::text).unwrap_or_default();
    let (miners, duplicates) = (miners(round), duplicates(round));
    format!("{}{miners}\n{duplicates}{merge}", baseline.unwrap_or_default())
}

fn phase(view: &RoundView) -> String {
    let phase = Phase::try_from(view.phase).unwrap_or(Phase::Unspecified);
    phase.as_str_name().trim_start_matches("PHASE_").to_owned()
}

fn stage(round: &Round) -> String {
    let stage = RoundStage::try_from(round.stage).unwrap_or(RoundStage::Unspecified);
    stage.as_str_name().trim_start_matches("ROUND_STAGE_").to_lowercase()
}

/// The miners of a round, a row each. The column of own data is there when it was looked at.
fn miners(round: &Round) -> Table {
    let own = round.miners.iter().any(|miner| miner.own_improvement.is_some());
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    let header = ["uid", "hotkey", "outcome", "loss", "improvement", "95 %", "score", "reason"];
    let mut header: Vec<&str> = header.into();
    if own {
        header.push("own data");
    }
    table.set_header(header);
    for miner in &round.miners {
        let number = |value: Option<f64>| value.map(|v| format!("{v:.4}")).unwrap_or_default();
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let hotkey: String = miner.hotkey.chars().take(10).collect();
        let found = miner.improvement.as_ref();
        let mut row = vec![
            right(miner.uid.to_string()),
            Cell::new(hotkey),
            Cell::new(plain(&miner.outcome)),
            right(number(miner.loss)),
            right(found.map(improvement).unwrap_or_default()),
            right(found.map(interval).unwrap_or_default()),
            right(number(miner.score)),
            reason(miner),
        ];
        if own {
            row.push(Cell::new(own_data(miner)));
        }
        table.add_row(row);
    }
    table
}

/// Mean and standard error.
fn improvement(found: &Improvement) -> String {
    format!("{:+.4} ± {:.4}", found.mean, found.standard_error)
}

fn interval(found: &Improvement) -> String {
    format!("{:+.4} … {:+.4}", found.low, found.high)
}

/// The reason, red where it costs the miner something and yellow where it is this validator's.
fn reason(miner: &Miner) -> Cell {
    let mut text = plain(&miner.reason);
    if miner.reason == Reason::OutOfReach.as_str() {
        let batches = miner.improvement.as_ref().map_or(0, |found| found.batches);
        text += &format!(" after {batches} batches");
    }
    let cell = Cell::new(text);
    match miner.reason.parse::<Reason>() {
        Ok(reason) if reason.is_miners_fault() => cell.fg(Color::Red),
        Ok(_) => cell.fg(Color::Yellow),
        Err(_) => cell,
    }
}

fn own_data(miner: &Miner) -> String {
    let found = miner.own_improvement.as_ref();
    let found = found.map(|found| format!(" {}", improvement(found))).unwrap_or_default();
    format!("{}{found}", plain(&miner.own_data))
}

/// Who is one with whom, a line per group.
fn duplicates(round: &Round) -> String {
    let uid = |hotkey: &str| {
        let found = round.miners.iter().find(|miner| miner.hotkey == hotkey);
        found.map_or_else(|| plain(hotkey), |miner| format!("uid {}", miner.uid))
    };
    let mut lines = String::new();
    for miner in round.miners.iter().filter(|miner| !miner.duplicates.is_empty()) {
        // Told once, by the first of the group.
        if miner.duplicates.iter().any(|other| *other < miner.hotkey) {
            continue;
        }
        let all = std::iter::once(&miner.hotkey).chain(&miner.duplicates);
        let names: Vec<String> = all.clone().map(|hotkey| uid(hotkey)).collect();
        let kept = round.miners.iter().find(|m| {
            all.clone().any(|hotkey| *hotkey == m.hotkey)
                && !matches!(m.reason.as_str(), "duplicate" | "near_duplicate")
        });
        let kept = match kept {
            Some(kept) => format!("uid {} committed first", kept.uid),
            None => "none keeps its score".to_owned(),
        };
        lines += &format!("duplicates {} · {kept}\n", names.join(" = "));
    }
    lines
}

/// The state as JSON, with the names of the contract.
pub(crate) fn json(view: &RoundView) -> Value {
    let round = view.round.as_ref().map(|round| {
        let weight = |w: &proto::scheduler::v1::Weight| json!({"uid": w.uid, "value": w.value});
        let write = |w: &proto::scheduler::v1::ChainWrite| {
            json!({
                "kind": w.kind,
                "state": w.state,
                "extrinsic_hash": w.extrinsic_hash,
                "block": w.block,
                "reason": w.reason,
            })
        };
        json!({
            "round_id": round.round_id,
            "cycle": round.cycle,
            "stage": stage(round),
            "traceparent": round.traceparent,
            "uploads_open": round.uploads_open,
            "held": round.held,
            "baseline": round.baseline,
            "held_out_before": round.held_out_before,
            "held_out_after": round.held_out_after,
            "miners": round.miners.iter().map(miner).collect::<Vec<_>>(),
            "merge": round.merge.as_ref().map(merged::json),
            "weights": round.weights.iter().map(weight).collect::<Vec<_>>(),
            "weights_origin": round.weights_origin,
            "writes": round.writes.iter().map(write).collect::<Vec<_>>(),
            "degradations": round.degradations.iter().map(degradation).collect::<Vec<_>>(),
        })
    });
    json!({
        "hotkey": view.hotkey,
        "block": view.block,
        "phase": phase(view).to_lowercase(),
        "cycle": view.cycle,
        "schedule": view.schedule.as_ref().map(|schedule| &schedule.lengths),
        "base": view.base.as_ref().map(model),
        "expert_group": view.expert_group,
        "validators": view.validators,
        "revision": view.revision,
        "round": round,
        "resync": view.resync.as_ref().map(resync::json),
    })
}

fn miner(miner: &Miner) -> Value {
    let improvement = |found: &Option<Improvement>| {
        let found = found.as_ref()?;
        Some(json!({
            "mean": found.mean,
            "standard_error": found.standard_error,
            "low": found.low,
            "high": found.high,
            "batches": found.batches,
        }))
    };
    json!({
        "uid": miner.uid,
        "hotkey": miner.hotkey,
        "assigned": miner.assigned,
        "may_upload": miner.may_upload,
        "model_hash": miner.model_hash,
        "signature": miner.signature,
        "expert_group": miner.expert_group,
        "outcome": miner.outcome,
        "reason": miner.reason,
        "detail": miner.detail,
        "loss": miner.loss,
        "raw_score": miner.raw_score,
        "score": miner.score,
        "improvement": improvement(&miner.improvement),
        "own_improvement": improvement(&miner.own_improvement),
        "own_data": miner.own_data,
        "duplicates": miner.duplicates,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(mean: f64, batches: u32) -> Option<Improvement> {
        let (low, high) = (mean - 0.02, mean + 0.02);
        Some(Improvement { mean, standard_error: 0.01, low, high, batches })
    }

    fn view() -> RoundView {
        let miner = |uid: u32, reason: &str, duplicates: &[&str]| Miner {
            uid,
            hotkey: format!("5{uid}"),
            outcome: "scored".to_owned(),
            reason: reason.to_owned(),
            loss: Some(4.5),
            score: Some(0.0),
            improvement: found(0.5, 50),
            duplicates: duplicates.iter().map(|name| (*name).to_owned()).collect(),
            ..Miner::default()
        };
        let stopped = Miner {
            improvement: found(-0.1, 12),
            loss: None,
            detail: "stopped\u{1b}[2J".to_owned(),
            ..miner(4, "out_of_reach", &[])
        };
        let round = Round {
            stage: RoundStage::Merging.into(),
            baseline: Some(5.0),
            miners: vec![
                miner(2, "near_duplicate", &["53"]),
                miner(3, "near_duplicate", &["52"]),
                stopped,
                Miner {
                    own_improvement: found(0.9, 6),
                    own_data: "overfitted".to_owned(),
                    ..miner(5, "", &[])
                },
                miner(6, "", &["57"]),
                miner(7, "duplicate", &["56"]),
            ],
            ..Round::default()
        };
        RoundView { round: Some(round), phase: Phase::Merge.into(), ..RoundView::default() }
    }

    #[test]
    fn the_table_has_improvements_with_their_errors_and_says_who_is_whose_copy() {
        let text = text(&view());
        for wanted in [
            "+0.5000 ± 0.0100",
            "+0.4800 … +0.5200",
            "out_of_reach after 12 batches",
            "overfitted +0.9000 ± 0.0100",
            "duplicates uid 2 = uid 3 · none keeps its score\n",
            "duplicates uid 6 = uid 7 · uid 6 committed first\n",
            "base loss  5.0000",
        ] {
            assert!(text.contains(wanted), "no `{wanted}` in\n{text}");
        }
        assert_eq!(text.matches("duplicates ").count(), 2, "{text}");
        assert!(!text.contains('\u{1b}'), "a terminal is steered: {text:?}");
        let mut plainer = view();
        plainer.round.as_mut().unwrap().miners.truncate(3);
        assert!(!super::text(&plainer).contains("own data"), "a column of nothing");
    }

    #[test]
    fn the_json_has_every_figure_under_the_contracts_name_and_null_for_what_is_not_known() {
        let json = json(&view());
        assert_eq!((&json["phase"], &json["round"]["stage"]), (&json!("merge"), &json!("merging")));
        let miners = &json["round"]["miners"];
        assert_eq!(miners[0]["improvement"]["standard_error"], 0.01);
        assert_eq!(miners[0]["duplicates"], json!(["53"]));
        assert_eq!(miners[2]["improvement"]["batches"], 12);
        assert_eq!(
            (&miners[2]["loss"], &miners[2]["own_improvement"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(miners[3]["own_improvement"]["mean"], 0.9);
        assert_eq!(miners[3]["own_data"], "overfitted");
        let between = super::json(&RoundView::default());
        assert_eq!(between["round"], Value::Null);
    }
}
