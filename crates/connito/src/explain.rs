//! What became of a miner, in sentences, from the record of a round.

use serde_json::Value;

use crate::operator::plain;

/// The story of `miner` in the round of `record`.
pub(crate) fn story(record: &Value, miner: &Value) -> String {
    let uid = &miner["uid"];
    let mut lines = vec![
        format!("round {} · miner {uid} · {}", record["round"], text(&miner["hotkey"])),
        match miner["assigned"].as_bool() {
            Some(true) => "assigned to this validator (foreground)".to_owned(),
            _ => "in the background of this validator".to_owned(),
        },
    ];
    let frozen = &record["frozen"];
    if frozen.is_object() && frozen["seed"].is_null() {
        lines.push("no validator published a seed: nothing was evaluated in this round".to_owned());
    }
    match miner["committed"].as_object() {
        Some(committed) => lines.push(format!(
            "committed model {} trained on version {}",
            text(&committed["model_hash"]),
            committed["version"]
        )),
        None => lines.push(format!("no usable commitment: {}", cause(&miner["fault"]))),
    }
    if let Some(key) = miner["submission"]["key"].as_str() {
        lines.push(format!("submitted {} at block {}", plain(key), miner["submission"]["block"]));
    } else if !miner["refused"].is_null() {
        lines.push(format!("upload refused: {}", cause(&miner["refused"])));
    } else {
        lines.push("submitted nothing here".to_owned());
    }
    let verdict = &miner["verdict"];
    match verdict["kind"].as_str() {
        Some("measured") => lines.extend(measured(record, verdict)),
        Some("out_of_reach") => lines.extend(out_of_reach(record, verdict)),
        Some(_) => lines.push(format!("invalid: {}", cause(verdict))),
        None => lines.push("not evaluated".to_owned()),
    }
    lines.extend(duplicates(record, miner));
    lines.push(match miner["score"].as_f64() {
        Some(score) => format!("score of the round {score}, reason {}", text(&miner["reason"])),
        None if miner["reason"].is_null() => {
            "no score: the round writes nothing for it, its average stays".to_owned()
        }
        None => format!(
            "no score, reason {}: the round writes nothing for it, its average stays",
            text(&miner["reason"])
        ),
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

fn losses(values: &Value) -> Vec<f64> {
    values.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

fn mean(values: &Value) -> f64 {
    domain::mean(&losses(values)).unwrap_or(f64::NAN)
}

fn measured(record: &Value, verdict: &Value) -> Vec<String> {
    let (base, loss) = (mean(&verdict["baseline"]), mean(&verdict["losses"]));
    let mut lines = vec![format!(
        "loss {loss:.6} against {base:.6} of the base model: delta {:.6}, raw score {}",
        domain::delta(base, loss),
        verdict["raw"]
    )];
    lines.extend(improvement(&verdict["improvement"]).map(|found| format!("improvement {found}")));
    lines.extend(terms(record));
    let own = &verdict["own"];
    if own.is_object() {
        let found = improvement(&own["improvement"]).unwrap_or_default();
        let says = match own["says"].as_str() {
            Some("overfitted") => "overfitted: much better on these than on the round's",
            Some("lazy") => "lazy: not surely better even on these",
            Some("ordinary") => "nothing out of the ordinary",
            _ => "too few batches to say more",
        };
        lines.push(format!("on data that it could know: improvement {found} · {says}"));
    }
    lines
}

fn out_of_reach(record: &Value, verdict: &Value) -> Vec<String> {
    let (seen, all) = (losses(&verdict["losses"]).len(), &record["policy"]["terms"]["batches"]);
    let confidence = &record["policy"]["early_stop"]["confidence"];
    let mut lines = vec![format!(
        "stopped after {seen} of {all} batches: at a confidence of {confidence} it could not reach \
         the loss {:.6} of the last rank that pays",
        verdict["rival"].as_f64().unwrap_or(f64::NAN)
    )];
    let found = improvement(&verdict["improvement"]);
    lines.extend(found.map(|found| format!("improvement so far {found}")));
    lines.extend(terms(record));
    lines
}

/// Mean, standard error and interval.
fn improvement(found: &Value) -> Option<String> {
    let number = |name: &str| found[name].as_f64();
    Some(format!(
        "{:+.6} ± {:.6} nats per token, 95 % interval {:+.6} to {:+.6}, over {} batches",
        number("mean")?,
        number("standard_error")?,
        number("low")?,
        number("high")?,
        found["batches"]
    ))
}

/// What everybody was measured on; nothing in records from before it was written down.
fn terms(record: &Value) -> Option<String> {
    let terms = &record["policy"]["terms"];
    let number = |name: &str| terms[name].as_u64();
    let mut line = format!(
        "measured on {} batches of {} × {} tokens, the same for everybody",
        number("batches")?,
        number("batch_size")?,
        number("sequence_length")?
    );
    if let Some(digest) = record["batches_digest"].as_str() {
        line += &format!(": digest {}", plain(digest));
    }
    if let Some(digest) = record["sources_digest"].as_str() {
        line += &format!(", sources {}", plain(digest));
    }
    Some(line)
}

/// Whose submission it equals, and whether anybody of them keeps the score.
fn duplicates(record: &Value, miner: &Value) -> Option<String> {
    let others: Vec<&str> =
        miner["duplicates"].as_array()?.iter().filter_map(Value::as_str).collect();
    if others.is_empty() {
        return None;
    }
    let uid = |hotkey: &&str| {
        let found =
            record["miners"].as_array().into_iter().flatten().find(|m| m["hotkey"] == **hotkey);
        match found {
            Some(found) => format!("uid {} ({})", found["uid"], plain(hotkey)),
            None => plain(hotkey),
        }
    };
    let names: Vec<String> = others.iter().map(uid).collect();
    let how = match miner["reason"].as_str() {
        Some("near_duplicate") => "nearly equal to",
        Some("duplicate") => "equal, or nearly so, to",
        _ => "committed first of those equal, or nearly so:",
    };
    Some(format!("{how} {}", names.join(", ")))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| "none".to_owned(), plain)
}

fn cause(value: &Value) -> String {
    format!("{} ({})", text(&value["detail"]), text(&value["reason"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record() -> Value {
        json!({
            "round": 16,
            "weights": [[2, 0.5]],
            "weights_origin": "earned",
            "frozen": {"seed": "ab"},
            "policy": {
                "terms": {"batches": 50, "batch_size": 1, "sequence_length": 4096},
                "early_stop": {"confidence": 0.99, "minimum_batches": 10},
            },
            "batches_digest": "d1", "sources_digest": "s1",
            "miners": [{"uid": 3, "hotkey": "5y"}],
        })
    }

    fn found(mean: f64, batches: u32) -> Value {
        json!({"mean": mean, "standard_error": 0.01, "low": mean - 0.02, "high": mean + 0.02, "batches": batches})
    }

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
    fn the_story_says_how_sure_an_improvement_is_on_what_it_was_measured_and_whose_copy_it_is() {
        let own = json!({"improvement": found(0.9, 6), "says": "overfitted"});
        let verdict = json!({
            "kind": "measured", "baseline": [5.0, 5.0], "losses": [4.5, 4.5], "raw": 0.4,
            "improvement": found(0.5, 50), "own": own,
        });
        let miner = json!({
            "uid": 2, "hotkey": "5x", "verdict": verdict, "score": 0.0,
            "reason": "near_duplicate", "duplicates": ["5y"],
        });
        let told = story(&record(), &miner);
        for wanted in [
            "improvement +0.500000 ± 0.010000 nats per token, 95 % interval +0.480000 to +0.520000, over 50 batches\n",
            "measured on 50 batches of 1 × 4096 tokens, the same for everybody: digest d1, sources s1\n",
            "on data that it could know: improvement +0.900000",
            "overfitted: much better",
            "nearly equal to uid 3 (5y)\n",
            "score of the round 0, reason near_duplicate\n",
        ] {
            assert!(told.contains(wanted), "no `{wanted}` in\n{told}");
        }
    }

    #[test]
    fn the_story_of_a_stop_says_after_how_many_batches_and_whom_it_did_not_reach() {
        let verdict = json!({
            "kind": "out_of_reach", "baseline": [5.0, 5.0], "losses": [4.9, 4.9], "rival": 4.2,
            "improvement": found(0.1, 2),
        });
        let miner = json!({"uid": 2, "hotkey": "5x", "verdict": verdict, "score": 0.0, "reason": "out_of_reach"});
        let told = story(&record(), &miner);
        let wanted = "stopped after 2 of 50 batches: at a confidence of 0.99 it could not reach the loss 4.200000";
        assert!(told.contains(wanted) && told.contains("improvement so far +0.1"), "{told}");
    }

    #[test]
    fn a_round_without_a_seed_and_a_validators_fault_are_told_as_nobodys_score() {
        let miner = json!({"uid": 2, "hotkey": "5x", "reason": "data_unavailable"});
        let mut record = record();
        assert!(story(&record, &miner).contains("no score, reason data_unavailable: the round"));
        record["frozen"]["seed"] = Value::Null;
        assert!(story(&record, &miner).contains("no validator published a seed"));
        // A record of a round that was not frozen says nothing of seeds.
        record["frozen"] = Value::Null;
        assert!(!story(&record, &miner).contains("seed"));
    }
}
