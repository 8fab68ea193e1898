//! How a merge ended, for people and for programs.

use proto::{
    peer::v1::{Influence, LeftOut},
    scheduler::v1::Merge,
};
use serde_json::{Value, json};

use crate::{operator::plain, status};

/// A line for the outcome, and one for everybody of whom there is something to tell.
pub(crate) fn text(merge: &Merge) -> String {
    let model = merge.model.clone().unwrap_or_default();
    let mut text = match merge.reason.as_str() {
        "" => format!("merge      {} · {} members", plain(&merge.outcome), merge.members.len()),
        reason => format!("merge      {} · {}", plain(&merge.outcome), plain(reason)),
    };
    if !model.model_hash.is_empty() {
        text += &format!(" · model {}", plain(&model.model_hash));
    }
    if !merge.detail.is_empty() {
        text += &format!(" · {}", plain(&merge.detail));
    }
    text.push('\n');
    for (what, list) in [("left out", &merge.dropped), ("to blame", &merge.blamed)] {
        for one in list {
            text += &format!("{what:<11}{} · {}", plain(&one.hotkey), plain(&one.reason));
            if !one.detail.is_empty() {
                text += &format!(": {}", plain(&one.detail));
            }
            text.push('\n');
        }
    }
    for one in &merge.influence {
        text += &format!(
            "influence  {} · weight {:.3} · norm {:.4} of {:.4} · cosine {:+.3} · trimmed {:.1} %\n",
            plain(&one.hotkey),
            one.weight,
            one.bounded_norm,
            one.norm,
            one.cosine,
            100.0 * one.trimmed,
        );
    }
    text
}

/// With the names of the contract.
pub(crate) fn json(merge: &Merge) -> Value {
    json!({
        "outcome": merge.outcome,
        "members": merge.members,
        "digest": merge.digest,
        "model": merge.model.as_ref().map(status::model),
        "detail": merge.detail,
        "reason": merge.reason,
        "dropped": merge.dropped.iter().map(left_out).collect::<Vec<_>>(),
        "blamed": merge.blamed.iter().map(left_out).collect::<Vec<_>>(),
        "influence": merge.influence.iter().map(influence).collect::<Vec<_>>(),
    })
}

fn left_out(one: &LeftOut) -> Value {
    json!({"hotkey": one.hotkey, "reason": one.reason, "detail": one.detail})
}

fn influence(one: &Influence) -> Value {
    json!({
        "hotkey": one.hotkey,
        "weight": one.weight,
        "norm": one.norm,
        "bounded_norm": one.bounded_norm,
        "cosine": one.cosine,
        "trimmed": one.trimmed,
    })
}

/// What a record keeps of a merge, in the form of one that has just ended.
pub(crate) fn past(record: &Value) -> Option<Merge> {
    let merge = record["merge"].as_object()?;
    let word = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |name: &str| merge.get(name).and_then(Value::as_array).into_iter().flatten();
    let person = |one: &Value| LeftOut {
        hotkey: word(one.get("hotkey")),
        reason: word(one.get("reason")),
        detail: word(one.get("detail")),
    };
    let part = |one: &Value| {
        let figure = |name: &str| one[name].as_f64().unwrap_or_default();
        Influence {
            hotkey: word(one.get("hotkey")),
            weight: figure("weight"),
            norm: figure("norm"),
            bounded_norm: figure("bounded_norm"),
            cosine: figure("cosine"),
            trimmed: figure("trimmed"),
        }
    };
    let model = merge.get("model").unwrap_or(&record["base"]);
    let detail = merge.get("detail").or(merge.get("why"));
    Some(Merge {
        outcome: word(merge.get("outcome")),
        members: list("members").map(|one| word(Some(one))).collect(),
        digest: word(merge.get("digest")),
        model: Some(proto::common::v1::ModelRef {
            global_version: model["global_version"].as_u64().unwrap_or_default(),
            model_hash: word(model.get("model_hash")),
            prefix: word(model.get("prefix")),
        }),
        detail: word(detail),
        reason: word(merge.get("reason")),
        dropped: list("dropped").map(person).collect(),
        blamed: list("blamed").map(person).collect(),
        influence: list("influence").map(part).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(merge: Value) -> Value {
        let base = json!({"global_version": 4, "model_hash": "05", "prefix": "models/4"});
        json!({"base": base, "merge": merge})
    }

    #[test]
    fn a_merge_in_a_record_reads_as_one_that_has_just_ended() {
        let model = json!({"global_version": 24, "model_hash": "0909", "prefix": "models/24"});
        let influence = json!({
            "hotkey": "5A", "weight": 0.5, "norm": 2.0, "bounded_norm": 1.0, "cosine": 0.75,
            "trimmed": 0.25,
        });
        let record = record(json!({
            "outcome": "merged", "members": ["5A", "5B"], "digest": "d1", "model": model,
            "detail": "", "influence": [influence],
            "dropped": [{"hotkey": "5C", "reason": "silent"}],
            "blamed": [{"hotkey": "5B", "reason": "two_slices", "detail": "of\u{1b}[2J slice 1"}],
        }));
        let merge = past(&record).unwrap();
        let text = text(&merge);
        for wanted in [
            "merge      merged · 2 members · model 0909\n",
            "left out   5C · silent\n",
            "to blame   5B · two_slices: of",
            "influence  5A · weight 0.500 · norm 1.0000 of 2.0000 · cosine +0.750 · trimmed 25.0 %\n",
        ] {
            assert!(text.contains(wanted), "no `{wanted}` in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "a terminal is steered: {text:?}");
        let json = json(&merge);
        assert_eq!(json["influence"][0], record["merge"]["influence"][0]);
        assert_eq!(json["dropped"][0]["reason"], "silent");
        assert_eq!((&json["reason"], &json["model"]), (&json!(""), &record["merge"]["model"]));
    }

    #[test]
    fn one_that_failed_says_why_and_has_the_base_and_an_old_record_lacks_the_reason() {
        let why = json!({"outcome": "failed", "why": "nobody answered", "reason": "too_few"});
        let merge = past(&record(why)).unwrap();
        assert_eq!(text(&merge), "merge      failed · too_few · model 05 · nobody answered\n");
        let old = past(&record(json!({"outcome": "failed", "why": "nobody answered"}))).unwrap();
        assert!(text(&old).starts_with("merge      failed · 0 members"), "{}", text(&old));
        assert_eq!(past(&record(Value::Null)), None);
    }
}
