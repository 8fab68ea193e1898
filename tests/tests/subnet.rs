//! A whole subnet in one process: two validators, five miners, a chain, three cycles.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use connito::demo::{Args, Report, run};
use kit::{Common, Shutdown};

/// Everything that must hold after three cycles is looked at in one run: a subnet takes two minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_cycles_make_the_model_better_and_pay_only_the_honest_miner() {
    let folder = testkit::tempdir().unwrap();
    let args = Args { json: Some(folder.path().join("report.json")), ..Args::default() };
    let work = folder.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let log = folder.path().join("demo.log");
    let common = Common { log_file: Some(log.clone()), ..Common::default() };
    kit::telemetry::install("connito", &common).unwrap();
    let report = match run(&args, &work, Shutdown::default()).await {
        Ok(report) => report,
        Err(error) => panic!("{error:#}\n{}", troubles(&log)),
    };

    assert_eq!(report.broken, Vec::<String>::new());
    assert!(report.ok);
    assert_eq!(report.cycles.len(), 3);
    the_held_out_loss_falls_every_cycle_and_goes_on_where_it_was(&report);
    both_validators_have_and_reveal_the_same_model(&report);
    weights_are_set_once_and_only_for_the_honest(&report);
    every_cheat_is_refused_for_what_it_did(&report);
    assert_eq!(report.trace_ids.len(), 6);
    the_file_says_the_same(&args, &report);
}

/// What the subnet's log says that is more than information, and its end.
fn troubles(log: &Path) -> String {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let loud = lines.iter().filter(|line| !line.contains(r#""level":"INFO""#)).take(100);
    let last = lines.iter().skip(lines.len().saturating_sub(100));
    loud.chain(last).copied().collect::<Vec<_>>().join("\n")
}

fn the_held_out_loss_falls_every_cycle_and_goes_on_where_it_was(report: &Report) {
    let validators = report.cycles[0].validators.len();
    for n in 0..validators {
        let mut last = None;
        for cycle in &report.cycles {
            let validator = &cycle.validators[n];
            let (before, after) =
                (validator.baseline_before.unwrap(), validator.baseline_after.unwrap());
            assert!(after < before, "cycle {}: {before} → {after}", cycle.cycle);
            if let Some(last) = last {
                assert_eq!(before, last, "the same model has the same loss on the same batches");
            }
            last = Some(after);
        }
    }
}

fn both_validators_have_and_reveal_the_same_model(report: &Report) {
    let mut seen = Vec::new();
    for cycle in &report.cycles {
        let [a, b] = cycle.validators.as_slice() else { panic!("not two validators") };
        assert_eq!(a.model_hash, b.model_hash);
        assert_eq!((&a.committed_hash, &b.committed_hash), (&a.model_hash, &b.model_hash));
        seen.push(a.model_hash.clone());
    }
    seen.dedup();
    assert_eq!(seen.len(), 3, "every cycle makes a new model");
}

fn weights_are_set_once_and_only_for_the_honest(report: &Report) {
    for cycle in &report.cycles {
        let honest: Vec<u16> =
            cycle.miners.iter().filter(|m| m.behaviour == "honest").map(|m| m.uid).collect();
        for validator in &cycle.validators {
            assert_eq!(validator.weight_extrinsics.len(), 1);
            let paid: Vec<u16> = validator.weights.keys().copied().collect();
            assert_eq!(paid, honest);
            assert_eq!(validator.degradations, Vec::<String>::new());
        }
    }
}

fn every_cheat_is_refused_for_what_it_did(report: &Report) {
    for cycle in &report.cycles {
        for miner in &cycle.miners {
            let found = (miner.outcome.as_str(), miner.reason.as_str());
            match miner.behaviour.as_str() {
                "honest" => assert_eq!((found.0, miner.score), ("scored", Some(2.25))),
                "idle" => assert_eq!((found.0, miner.score), ("scored", Some(0.0))),
                "copy" => assert_eq!(found, ("refused", "bad_signature")),
                "nan" => assert_eq!(found, ("refused", "non_finite")),
                "absent" => assert_eq!(found.0, "absent"),
                other => panic!("nobody is {other}"),
            }
        }
    }
}

fn the_file_says_the_same(args: &Args, report: &Report) {
    let json = std::fs::read(args.json.as_ref().unwrap()).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["ok"], true);
    assert_eq!(json["cycles"].as_array().unwrap().len(), 3);
    let first = &json["cycles"][0]["validators"][0];
    assert_eq!(first["model_hash"], report.cycles[0].validators[0].model_hash.as_str());
    for key in [
        "hotkey",
        "baseline_before",
        "baseline_after",
        "weights",
        "weight_extrinsics",
        "degradations",
    ] {
        assert!(!first[key].is_null(), "{key} is missing");
    }
    for key in ["uid", "hotkey", "behaviour", "outcome", "reason", "loss", "score"] {
        assert!(json["cycles"][0]["miners"][0].get(key).is_some(), "{key} is missing");
    }
}
