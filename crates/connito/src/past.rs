//! A round that is over, as its record tells it, in the form of one that runs.

use domain::Reason;
use proto::scheduler::v1::{Improvement, Miner, Round, RoundStage};
use serde_json::Value;

use crate::merged;

/// The round of `record`, as far as a table of its miners and its merge need it.
pub(crate) fn round(record: &Value) -> Round {
    let miners = record["miners"].as_array().into_iter().flatten();
    let seedless = record["frozen"].is_object() && record["frozen"]["seed"].is_null();
    Round {
        round_id: record["round"].as_u64().unwrap_or_default(),
        cycle: record["cycle"].as_u64().unwrap_or_default(),
        stage: RoundStage::Closed.into(),
        baseline: mean(&record["baseline"]["losses"]),
        miners: miners.map(|found| miner(found, seedless)).collect(),
        merge: merged::past(record),
        ..Round::default()
    }
}

fn miner(found: &Value, seedless: bool) -> Miner {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let verdict = &found["verdict"];
    let (outcome, cause) = outcome(found, seedless);
    let reason = match found["reason"].as_str() {
        Some(reason) => reason.to_owned(),
        None => text(&cause["reason"]),
    };
    let measured = verdict["kind"] == "measured";
    let duplicates = found["duplicates"].as_array().into_iter().flatten();
    Miner {
        uid: found["uid"].as_u64().and_then(|uid| u32::try_from(uid).ok()).unwrap_or_default(),
        hotkey: text(&found["hotkey"]),
        assigned: found["assigned"].as_bool().unwrap_or_default(),
        outcome: outcome.to_owned(),
        reason,
        loss: mean(&verdict["losses"]).filter(|_| measured),
        raw_score: verdict["raw"].as_f64(),
        score: found["score"].as_f64(),
        improvement: improvement(&verdict["improvement"]),
        own_improvement: improvement(&verdict["own"]["improvement"]),
        own_data: text(&verdict["own"]["says"]),
        duplicates: duplicates.map(text).collect(),
        ..Miner::default()
    }
}

/// The word for what became of a miner, and where the record says why.
fn outcome(found: &Value, seedless: bool) -> (&'static str, &Value) {
    let reason: Option<Reason> = found["reason"].as_str().and_then(|text| text.parse().ok());
    if reason.is_some_and(|reason| !reason.is_miners_fault()) {
        return ("not_evaluated", &Value::Null);
    }
    match found["verdict"]["kind"].as_str() {
        Some("invalid") => return ("invalid", &found["verdict"]),
        Some(_) => return ("scored", &Value::Null),
        None => {}
    }
    if !found["refused"].is_null() {
        return ("refused", &found["refused"]);
    }
    if !found["fault"].is_null() {
        return ("absent", &found["fault"]);
    }
    if seedless { ("not_evaluated", &Value::Null) } else { ("absent", &Value::Null) }
}

fn mean(losses: &Value) -> Option<f64> {
    let losses: Vec<f64> = losses.as_array()?.iter().filter_map(Value::as_f64).collect();
    domain::mean(&losses)
}

fn improvement(found: &Value) -> Option<Improvement> {
    let number = |name: &str| found[name].as_f64();
    Some(Improvement {
        mean: number("mean")?,
        standard_error: number("standard_error")?,
        low: number("low")?,
        high: number("high")?,
        batches: found["batches"].as_u64().and_then(|n| u32::try_from(n).ok())?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_miner_of_a_record_has_its_word_its_figures_and_its_reason() {
        let found =
            json!({"mean": 0.5, "standard_error": 0.01, "low": 0.4, "high": 0.6, "batches": 2});
        let own = json!({"improvement": found, "says": "lazy"});
        let measured = json!({
            "kind": "measured", "losses": [4.0, 5.0], "raw": 0.4, "improvement": found, "own": own,
        });
        let stopped = json!({"kind": "out_of_reach", "losses": [4.0], "improvement": found});
        let invalid = json!({"kind": "invalid", "reason": "non_finite", "detail": ""});
        let record = json!({"round": 16, "cycle": 0, "frozen": {"seed": "ab"},
            "baseline": {"losses": [5.0, 5.0]}, "miners": [
            {"uid": 2, "hotkey": "52", "verdict": measured, "score": 2.25, "duplicates": ["53"]},
            {"uid": 3, "hotkey": "53", "verdict": stopped, "score": 0.0, "reason": "out_of_reach"},
            {"uid": 4, "hotkey": "54", "verdict": invalid, "score": 0.0, "reason": "non_finite"},
            {"uid": 5, "hotkey": "55", "verdict": measured, "reason": "data_unavailable"},
            {"uid": 6, "hotkey": "56", "refused": {"reason": "too_large"}},
            {"uid": 7, "hotkey": "57", "fault": {"reason": "nothing_committed"}},
            {"uid": 8, "hotkey": "58", "score": 0.0, "reason": "not_submitted"},
        ]});
        let round = round(&record);
        let told: Vec<_> =
            round.miners.iter().map(|m| (m.outcome.as_str(), m.reason.as_str())).collect();
        let wanted = [
            ("scored", ""),
            ("scored", "out_of_reach"),
            ("invalid", "non_finite"),
            ("not_evaluated", "data_unavailable"),
            ("refused", "too_large"),
            ("absent", "nothing_committed"),
            ("absent", "not_submitted"),
        ];
        assert_eq!(told, wanted);
        assert_eq!((round.baseline, round.miners[0].loss), (Some(5.0), Some(4.5)));
        assert_eq!((round.miners[1].loss, round.miners[0].duplicates.len()), (None, 1));
        assert_eq!(round.miners[0].own_data, "lazy");
        let seedless = super::round(&json!({"frozen": {"seed": null}, "miners": [{"uid": 2}]}));
        assert_eq!(seedless.miners[0].outcome, "not_evaluated");
    }
}
