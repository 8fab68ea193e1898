//! The golden vectors of the deployed implementation: `CONNITO_VECTORS`, or the project's own.

use std::{collections::BTreeMap, fs, path::PathBuf};

use domain::{
    BlockNumber, CohortConfig, CohortValidator, Hotkey, ModelHash, Schedule, ScheduleError, Tally,
    Uid, assign, block_message, cohorts, combined_seed, delta, h256, model_hash_message, raw_score,
    share_out, submission_message, tally,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

fn read<T: DeserializeOwned>(name: &str) -> T {
    let folder = std::env::var_os("CONNITO_VECTORS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors")),
        PathBuf::from,
    );
    let path = folder.join(name);
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

#[derive(Deserialize)]
struct PhaseVectors {
    schedule: BTreeMap<String, u64>,
    cycle_length: u64,
    cases: Vec<PhaseCase>,
}

#[derive(Deserialize)]
struct PhaseCase {
    block: u64,
    phase: Value,
    until_next: Value,
    previous: Value,
}

fn schedule_of(lengths: &BTreeMap<String, u64>) -> Result<Schedule, ScheduleError> {
    let of = |name: &str| lengths[name];
    let commit = of("commit_period");
    Schedule::new([
        of("distribute_period"),
        of("train_period"),
        commit,
        commit,
        of("submission_period"),
        of("validate_period"),
        of("merge_period"),
        commit,
        commit,
    ])
}

#[test]
fn every_block_of_the_phase_vectors_has_its_phase_and_neighbours() {
    let vectors: Vec<PhaseVectors> = read("phases.json");
    assert!(!vectors.is_empty());
    for vector in vectors {
        let schedule = schedule_of(&vector.schedule).unwrap();
        assert_eq!(schedule.cycle_length(), vector.cycle_length);
        assert!(!vector.cases.is_empty());
        for case in vector.cases {
            let block = BlockNumber(case.block);
            let ours = [
                serde_json::to_value(schedule.phase_at(block)),
                serde_json::to_value(schedule.until_next(block)),
                serde_json::to_value(schedule.previous_all(block)),
            ]
            .map(Result::unwrap);
            assert_eq!(ours, [case.phase, case.until_next, case.previous], "block {block}");
        }
    }
}

/// Decimal text of a big-endian number.
fn decimal(bytes: &[u8; 32]) -> String {
    let mut digits: Vec<u8> = Vec::new();
    let mut number = bytes.to_vec();
    while number.iter().any(|byte| *byte > 0) {
        let mut remainder = 0u32;
        for byte in &mut number {
            let value = remainder * 256 + u32::from(*byte);
            *byte = (value / 10) as u8;
            remainder = value % 10;
        }
        digits.push(b'0' + remainder as u8);
    }
    digits.iter().rev().map(|digit| char::from(*digit)).collect()
}

#[test]
fn parts_hash_to_the_numbers_of_the_h256_vectors() {
    #[derive(Deserialize)]
    struct Case {
        parts: Vec<Value>,
        sha256_int: String,
    }
    let cases: Vec<Case> = read("h256.json");
    assert!(!cases.is_empty());
    for case in cases {
        let parts: Vec<String> = case
            .parts
            .iter()
            .map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned))
            .collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        assert_eq!(decimal(&h256(&parts)), case.sha256_int, "{parts:?}");
    }
}

#[test]
fn miners_are_assigned_as_in_the_assignment_vectors() {
    #[derive(Deserialize)]
    struct Case {
        validators: Vec<(String, u64)>,
        miners: Vec<String>,
        max_miners_per_validator: Option<usize>,
        assignment: BTreeMap<String, Vec<String>>,
        combined_seed: String,
    }
    let cases: Vec<Case> = read("assignment.json");
    assert!(!cases.is_empty());
    for case in cases {
        assert_eq!(combined_seed(&case.validators).to_hex(), case.combined_seed);
        let assignment = assign(&case.validators, &case.miners, case.max_miners_per_validator);
        assert_eq!(assignment, case.assignment);
    }
}

#[derive(Deserialize)]
struct GroupVector {
    hotkeys: Vec<String>,
    weights: Vec<Vec<f64>>,
    qualified: Vec<u16>,
    seeds: Vec<(String, u64)>,
    my_hotkey: String,
    config: CohortConfig,
    tally_top3: BTreeMap<Uid, Tally>,
    tally_top5: BTreeMap<Uid, Tally>,
    group_a: Vec<Uid>,
    group_b: Vec<Uid>,
    group_c: Vec<Uid>,
    foreground: Vec<Uid>,
}

fn same_tally(ours: &BTreeMap<Uid, Tally>, theirs: &BTreeMap<Uid, Tally>) -> bool {
    ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|((uid, a), (other, b))| {
            uid == other && a.count == b.count && close(a.total, b.total) && close(a.max, b.max)
        })
}

#[test]
fn cohorts_are_those_of_the_group_vectors() {
    let vectors: Vec<GroupVector> = read("groups.json");
    assert!(!vectors.is_empty());
    for vector in vectors {
        let row = |uid: u16| -> Vec<(Uid, f64)> {
            let row = vector.weights[usize::from(uid)].iter();
            (0..).map(Uid).zip(row.copied()).filter(|(_, share)| *share > 0.0).collect()
        };
        let by_hotkey: BTreeMap<&String, u16> =
            (0..).zip(&vector.hotkeys).map(|(uid, hotkey)| (hotkey, uid)).collect();
        let validators: Vec<CohortValidator<String>> = vector
            .seeds
            .iter()
            .map(|(hotkey, seed)| CohortValidator {
                hotkey: hotkey.clone(),
                seed: *seed,
                weights: row(by_hotkey[hotkey]),
            })
            .collect();
        let miners: BTreeMap<Uid, String> = (0..)
            .zip(&vector.hotkeys)
            .filter(|(uid, _)| !vector.qualified.contains(uid))
            .map(|(uid, hotkey)| (Uid(uid), hotkey.clone()))
            .collect();

        let uids = miners.keys().copied().collect();
        let rows: Vec<Vec<(Uid, f64)>> = vector.qualified.iter().copied().map(row).collect();
        let rows = || rows.iter().map(Vec::as_slice);
        assert!(same_tally(&tally(rows(), &uids, 3), &vector.tally_top3));
        assert!(same_tally(&tally(rows(), &uids, 5), &vector.tally_top5));

        let found = cohorts(&validators, &miners, &vector.my_hotkey, &vector.config);
        assert_eq!(found.group_a, vector.group_a);
        assert_eq!(found.group_b, vector.group_b);
        assert_eq!(found.group_c, vector.group_c);
        assert_eq!(found.foreground, vector.foreground);
    }
}

#[test]
fn groups_share_the_weights_as_in_the_weights_vectors() {
    #[derive(Deserialize)]
    struct Case {
        group_1: Vec<Uid>,
        group_2: Vec<Uid>,
        scores: BTreeMap<Uid, f64>,
        weights: BTreeMap<Uid, f64>,
    }
    let cases: Vec<Case> = read("weights.json");
    assert!(!cases.is_empty());
    for case in cases {
        let weights = share_out(&[(&case.group_1, 0.98), (&case.group_2, 0.02)], &case.scores);
        assert_eq!(weights.keys().collect::<Vec<_>>(), case.weights.keys().collect::<Vec<_>>());
        for (uid, weight) in weights {
            assert!(close(weight, case.weights[&uid]), "{uid}: {weight}");
        }
    }
}

#[test]
fn signed_messages_are_built_as_in_the_signature_vectors() {
    #[derive(Deserialize)]
    struct Case {
        kind: String,
        signer: Hotkey,
        signer_pubkey: Option<String>,
        message: String,
        target: Option<Hotkey>,
        block: Option<u64>,
        model_hex: Option<ModelHash>,
        block_hex: Option<String>,
        model_hash: Option<ModelHash>,
    }
    let cases: Vec<Case> = read("signatures.json");
    let mut built = 0;
    for case in cases {
        if let Some(key) = case.signer_pubkey {
            assert_eq!(hex::encode(case.signer.public_key()), key);
        }
        let target = || case.target.as_ref().unwrap();
        let block = || BlockNumber(case.block.unwrap());
        let message = match case.kind.as_str() {
            "block_message" => block_message(target(), block()).to_vec(),
            "model_submit" => {
                let ours = hex::encode(block_message(target(), block()));
                assert_eq!(Some(ours), case.block_hex);
                submission_message(&case.model_hex.unwrap(), target(), block()).to_vec()
            }
            "signed_model_hash" => model_hash_message(&case.model_hash.unwrap()),
            // Only of interest to whoever verifies: the message is taken as it is.
            "tampered" | "wrong_signer" => continue,
            other => panic!("unknown kind {other}"),
        };
        assert_eq!(hex::encode(message), case.message);
        built += 1;
    }
    assert!(built > 0);
}

#[test]
fn raw_scores_are_those_of_the_model_vectors() {
    let expected: BTreeMap<String, Value> = read("model/expected.json");
    let mut compared = 0;
    for (name, found) in expected.iter().filter(|(name, _)| name.starts_with("miner")) {
        let (_, group) = name.split_once('_').unwrap();
        let baseline = expected[&format!("partial_{group}_top2")]["loss"].as_f64().unwrap();
        let score = raw_score(delta(baseline, found["loss"].as_f64().unwrap()));
        assert!(close(score, found["score"].as_f64().unwrap()), "{name}: {score}");
        compared += 1;
    }
    assert!(compared > 0);
}
