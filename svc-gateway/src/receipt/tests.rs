use std::collections::BTreeMap;

use domain::Schedule;
use serde_json::{Value, json};

use super::*;
use crate::marks::Transport;

const ROUND: RoundId = RoundId(336);

fn key(byte: u8) -> Hotkey {
    Hotkey::from_public_key([byte; 32])
}

fn view() -> View {
    View {
        hotkey: key(200),
        block: BlockNumber(900),
        schedule: Schedule::default(),
        base: None,
        expert_group: domain::ExpertGroup(0),
        round: None,
        validators: Vec::new(),
    }
}

fn miner(outcome: &str, reason: &str) -> Miner {
    Miner {
        uid: Uid(1),
        may_upload: true,
        model_hash: None,
        signature: String::new(),
        hub: None,
        assigned: true,
        pending: matches!(outcome, "pending" | "refused"),
        outcome: outcome.to_owned(),
        loss: None,
        raw_score: None,
        improvement: None,
        score: None,
        reason: reason.to_owned(),
        detail: if reason.is_empty() { String::new() } else { format!("{reason} it is") },
    }
}

fn open(miner: Miner) -> Round {
    Round {
        id: ROUND,
        open: true,
        closed: false,
        uploads_open: true,
        traceparent: String::new(),
        baseline: Some(6.0),
        miners: BTreeMap::from([(key(1), miner)]),
    }
}

fn refused(reason: &str) -> Refused {
    let detail = format!("{reason} it was");
    Refused { reason: reason.to_owned(), detail, status: 400, block: 340, bytes: 7 }
}

fn stored() -> Submitted {
    Submitted {
        hotkey: key(1),
        key: "submissions/336/5x/m.pt".into(),
        model_hash: ModelHash([1; 24]),
        sha256: "ab".repeat(32),
        bytes: 100,
        block: 341,
        transport: Transport::Upload,
    }
}

fn told(miner: Miner, marks: Marks) -> (String, Option<String>) {
    let receipt = Receipt::of_open(&view(), &open(miner), key(1), marks);
    (receipt.state, receipt.reason)
}

fn said(state: &str, reason: Option<&str>) -> (String, Option<String>) {
    (state.to_owned(), reason.map(str::to_owned))
}

#[test]
fn what_is_stored_is_never_told_as_refused_and_what_arrives_comes_before_what_was_refused() {
    let arriving = Some(Progress { bytes: 3, of: Some(10) });
    let all = || Marks { stored: Some(stored()), refused: Some(refused("too_slow")), arriving };
    for outcome in ["pending", "refused"] {
        let reason = if outcome == "refused" { "malformed" } else { "" };
        let of = |marks| told(miner(outcome, reason), marks);
        assert_eq!(of(all()), said("stored", None));
        assert_eq!(of(Marks { stored: None, ..all() }), said("receiving", None));
    }
    let only = Marks { refused: Some(refused("too_slow")), ..Marks::default() };
    assert_eq!(told(miner("pending", ""), only), said("refused", Some("too_slow")));
    assert_eq!(told(miner("pending", ""), Marks::default()), said("pending", None));
}

#[test]
fn what_the_scheduler_knows_better_is_told_as_it_says() {
    let marks = || Marks { stored: Some(stored()), ..Marks::default() };
    for outcome in ["queued", "evaluating", "invalid", "not_evaluated"] {
        assert_eq!(told(miner(outcome, "timeout"), marks()), said(outcome, Some("timeout")));
    }
    let early = Marks { refused: Some(refused("not_submission_phase")), ..Marks::default() };
    let absent = miner("absent", "nothing_committed");
    assert_eq!(told(absent, early), said("absent", Some("nothing_committed")));
}

#[test]
fn a_receipt_names_no_other_miner_and_nothing_that_is_of_another_one() {
    let mut measured = miner("scored", "out_of_reach");
    measured.detail = "it could not reach the loss 4.2 of the last paying rank".into();
    (measured.loss, measured.raw_score, measured.score) = (Some(5.0), Some(1.0), Some(0.0));
    let receipt = Receipt::of_open(&view(), &open(measured), key(1), Marks::default());
    assert_eq!((receipt.loss, receipt.baseline), (Some(5.0), Some(6.0)));
    assert_eq!(receipt.detail, None);

    let past = past_round();
    let json =
        serde_json::to_string(&Receipt::of_past(&view(), ROUND, &past, key(1), Marks::default()))
            .unwrap();
    for byte in [2, 3, 4, 5] {
        assert!(!json.contains(key(byte).as_str()), "{json}");
    }
    assert!(!json.contains("4.25"), "the loss of a rival: {json}");
}

/// A record as the scheduler writes it, as far as receipts read it, and some that they don't.
fn record() -> Value {
    let submission = |byte: u8| {
        json!({
            "hotkey": key(byte), "key": format!("submissions/336/{byte}/m.pt"), "bytes": 100,
            "model_hash": ModelHash([byte; 24]), "sha256": "ab".repeat(32), "block": 341,
        })
    };
    let line = |byte: u8| {
        json!({
            "hotkey": key(byte), "uid": byte, "assigned": true, "committed": null, "fault": null,
            "refused": null, "submission": null, "verdict": null, "score": null, "reason": null,
        })
    };
    let mut miners: Vec<Value> = (1..=5).map(line).collect();
    miners[0]["submission"] = submission(1);
    miners[0]["verdict"] = json!({
        "kind": "out_of_reach", "baseline": [6.0, 8.0], "losses": [5.0, 6.0], "rival": 4.25,
        "batches_digest": "d", "improvement": null,
    });
    miners[0]["score"] = json!(0.0);
    miners[0]["reason"] = json!("duplicate");
    miners[0]["duplicates"] = json!([key(2), key(3)]);
    miners[1]["refused"] = json!({ "reason": "malformed", "detail": "no zip" });
    miners[1]["reason"] = json!("malformed");
    miners[2]["fault"] = json!({ "reason": "wrong_group", "detail": "group 7" });
    miners[3]["submission"] = submission(4);
    miners[3]["reason"] = json!("timeout");
    miners[4]["submission"] = submission(5);
    miners[4]["verdict"] = json!({ "kind": "invalid", "reason": "non_finite", "detail": "NaN" });
    miners[4]["reason"] = json!("non_finite");
    json!({
        "record": {
            "format": 1, "round": 336, "closed_at": 470, "miners": miners,
            "weights": [[1, 0.25]], "weights_origin": "earned", "frozen": { "large": [1, 2, 3] },
        },
        "digest": "d1", "signature": "s1",
    })
}

fn past_round() -> past::Round {
    past::Round::read_for_tests(&record())
}

#[test]
fn a_record_is_told_in_the_words_of_the_round_view() {
    let past = past_round();
    let told = |byte: u8| {
        let receipt = Receipt::of_past(&view(), ROUND, &past, key(byte), Marks::default());
        (receipt.state, receipt.reason)
    };
    assert_eq!(told(1), said("scored", Some("duplicate")));
    assert_eq!(told(2), said("refused", Some("malformed")));
    assert_eq!(told(3), said("absent", Some("wrong_group")));
    assert_eq!(told(4), said("not_evaluated", Some("timeout")));
    assert_eq!(told(5), said("invalid", Some("non_finite")));
    assert_eq!(told(9), said("absent", Some("not_on_roster")));

    let receipt = Receipt::of_past(&view(), ROUND, &past, key(1), Marks::default());
    assert_eq!((receipt.loss, receipt.baseline), (Some(5.5), Some(7.0)));
    let record = serde_json::to_value(receipt.record).unwrap();
    let expected = json!({
        "closed_at": 470, "digest": "d1", "signature": "s1", "weight": 0.25,
        "weights_origin": "earned", "duplicates": 2,
    });
    assert_eq!(record, expected);
}

#[test]
fn only_what_can_be_a_round_is_looked_for() {
    let view = view();
    assert!(is_round(&view, ROUND));
    assert!(is_round(&view, RoundId(336 + 472)));
    for number in [0, 335, 337, 472, 336 + 2 * 472, u64::MAX] {
        assert!(!is_round(&view, RoundId(number)), "{number}");
    }
}
