//! Which model the stake majority has, for people and for programs.

use proto::scheduler::v1::Resync;
use serde_json::{Value, json};

use crate::{operator::plain, status};

/// A line for how far it is, and what did not go the normal way.
pub(crate) fn text(resync: &Resync) -> String {
    let stage = match resync.stage.as_str() {
        "reading" | "taken_back" => "what validators have revealed is being read",
        "nobody" => "nobody has revealed a model",
        "split" => "no model has more than half of the stake",
        "same" => "the stake majority has this model",
        "fetching" => "the stake majority has another model, which is being fetched",
        "done" => "fetched from the stake majority",
        "late" => "not known, or not here, before the round",
        other => other,
    };
    let mut text = format!("majority   cycle {} · {}", resync.cycle, plain(stage));
    if let Some(model) = &resync.model {
        let (hash, version) = (plain(&model.model_hash), model.global_version);
        let (stake, revealed) = (resync.stake as f64, (resync.revealed as f64).max(1.0));
        text += &format!(
            " · model {hash} · version {version} · {} validators, {:.1} % of the stake",
            resync.holders.len(),
            100.0 * stake / revealed,
        );
    }
    if !resync.reason.is_empty() {
        text += &format!(" · {}: {}", plain(&resync.reason), plain(&resync.detail));
    }
    text.push('\n');
    text + &status::degradations(&resync.degradations)
}

/// With the names of the contract.
pub(crate) fn json(resync: &Resync) -> Value {
    json!({
        "cycle": resync.cycle,
        "stage": resync.stage,
        "model": resync.model.as_ref().map(status::model),
        "stake": resync.stake,
        "revealed": resync.revealed,
        "holders": resync.holders,
        "reason": resync.reason,
        "detail": resync.detail,
        "degradations": resync.degradations.iter().map(status::degradation).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use proto::{
        common::v1::{Degradation, ModelRef},
        scheduler::v1::RoundView,
    };

    use super::*;

    fn fetching() -> Resync {
        let (kind, detail) = ("peer_blamed".to_owned(), "5B (other_files)".to_owned());
        Resync {
            cycle: 3,
            stage: "fetching".to_owned(),
            model: Some(ModelRef {
                global_version: 24,
                model_hash: "0909".to_owned(),
                prefix: "models/24-0909".to_owned(),
            }),
            stake: 3,
            revealed: 4,
            holders: vec!["5B".to_owned(), "5C".to_owned()],
            reason: "no_holders".to_owned(),
            detail: "nobody\u{1b}[2J has it".to_owned(),
            degradations: vec![Degradation { kind, detail, block: 108 }],
        }
    }

    #[test]
    fn the_line_says_which_model_how_much_stake_and_why_it_is_not_here() {
        let text = text(&fetching());
        for wanted in [
            "majority   cycle 3 · the stake majority has another model, which is being fetched",
            " · model 0909 · version 24 · 2 validators, 75.0 % of the stake · no_holders: nobody",
            "degraded   peer_blamed at block 108: 5B (other_files)\n",
        ] {
            assert!(text.contains(wanted), "no `{wanted}` in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "a terminal is steered: {text:?}");
        let nobody = Resync { stage: "nobody".to_owned(), ..Resync::default() };
        assert_eq!(super::text(&nobody), "majority   cycle 0 · nobody has revealed a model\n");
    }

    #[test]
    fn the_state_shows_it_and_that_there_is_no_model_yet() {
        let view = RoundView { resync: Some(fetching()), ..RoundView::default() };
        let text = status::text(&view);
        assert!(text.contains("model      none yet: "), "{text}");
        assert!(text.contains("majority   cycle 3"), "{text}");
        let json = status::json(&view);
        assert_eq!(json["base"], Value::Null);
        assert_eq!(json["resync"]["model"]["prefix"], "models/24-0909");
        assert_eq!(json["resync"]["degradations"][0]["kind"], "peer_blamed");
        assert_eq!(status::json(&RoundView::default())["resync"], Value::Null);
    }
}
