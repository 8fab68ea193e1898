//! What is left of a round: signed, readable by others, and kept while older files go.

use domain::Record;
use schnorrkel::{PublicKey, Signature};
use sha2::{Digest as _, Sha256};

use crate::{
    subnet::{BASE_VERSION, ME, hotkey},
    world::{ROUND, World},
};

/// Checks digest and signature over the record's exact bytes, as a stranger would; returns them
/// and the record.
pub(crate) fn verified(json: &str) -> (String, Record) {
    verify(json).unwrap_or_else(|why| panic!("{why}: {json}"))
}

fn verify(json: &str) -> Result<(String, Record), &'static str> {
    let signed: serde_json::Value = serde_json::from_str(json).map_err(|_| "not JSON")?;
    let field = |name: &str| signed[name].as_str().unwrap_or_default().to_owned();
    let (digest, signature) = (field("digest"), field("signature"));
    let tail = format!(",\"digest\":\"{digest}\",\"signature\":\"{signature}\"}}");
    let bytes = json.strip_prefix("{\"record\":").and_then(|rest| rest.strip_suffix(tail.as_str()));
    let bytes = bytes.ok_or("not a signed record")?;
    if hex::encode(Sha256::digest(bytes)) != digest {
        return Err("the digest is of other bytes");
    }
    let record: Record = serde_json::from_str(bytes).map_err(|_| "not a record")?;
    let public = PublicKey::from_bytes(record.validator.public_key()).map_err(|_| "no key")?;
    let signature = hex::decode(signature).map_err(|_| "no signature")?;
    let signature = Signature::from_bytes(&signature).map_err(|_| "no signature")?;
    let message = [b"connito.record.v1:".as_slice(), &Sha256::digest(bytes)].concat();
    let valid = public.verify_simple(b"substrate", &message, &signature);
    valid.map_err(|_| "the signature is another's")?;
    Ok((bytes.to_owned(), record))
}

#[tokio::test]
async fn a_record_is_the_file_that_was_stored_and_reads_back_to_the_same_bytes() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.whole_round(&scheduler).await;
    let json = scheduler.record(ROUND).await;
    assert_eq!(std::fs::read_to_string(world.path("rounds/16/record.json")).unwrap(), json);
    let (bytes, record) = verified(&json);
    assert_eq!(serde_json::to_string(&record).unwrap(), bytes);
    assert_eq!(record.validator, hotkey(ME));
    let frozen = record.frozen.unwrap();
    assert_eq!((frozen.validators.len(), frozen.garbage), (2, 1));
    assert_eq!(frozen.validators[1].seed, 6);
    assert_eq!(record.writes.len(), 4);
}

#[tokio::test]
async fn a_record_that_was_changed_afterwards_does_not_verify() {
    let world = World::new().await;
    let scheduler = world.leader().await;
    world.whole_round(&scheduler).await;
    let json = scheduler.record(ROUND).await;
    let forged = json.replacen("\"score\":2.25", "\"score\":1.5", 1);
    assert!(forged != json, "there is no score to forge");
    assert_eq!(verify(&forged).unwrap_err(), "the digest is of other bytes");
    // With a digest that fits, the signature does not.
    let (bytes, _) = verified(&json);
    let digest = hex::encode(Sha256::digest(&bytes));
    let bytes = bytes.replacen("\"score\":2.25", "\"score\":1.5", 1);
    let forged = forged.replace(&digest, &hex::encode(Sha256::digest(&bytes)));
    assert_eq!(verify(&forged).unwrap_err(), "the signature is another's");
}

#[tokio::test]
async fn a_record_that_is_there_already_stays_as_it_is() {
    let world = World::new().await;
    world.put("rounds/16/record.json", "{\"kept\":true}");
    let scheduler = world.leader().await;
    world.whole_round(&scheduler).await;
    assert_eq!(scheduler.record(ROUND).await, "{\"kept\":true}");
}

#[tokio::test]
async fn retention_deletes_old_models_and_submissions_and_nothing_else() {
    let mut world = World::new().await;
    world.config.retention.models = 2;
    world.config.retention.submission_rounds = 1;
    let old = ["models/1/manifest.json", "models/3/model_shared.pt", "submissions/9/a/model.pt"];
    // The base and the new model are the newest two. What is newer than the round may be somebody
    // else's work in progress, and what has no number is nobody's to delete.
    let kept = [
        &format!("models/{BASE_VERSION}/manifest.json"),
        "models/24/manifest.json",
        "models/99/manifest.json",
        "models/latest/manifest.json",
        "submissions/16/a/model.pt",
        "submissions/52/a/model.pt",
        "rounds/9/record.json",
        "other/1/file",
    ];
    for key in old.iter().chain(&kept).filter(|key| !world.path(key).exists()) {
        world.put(key, "content");
    }
    let scheduler = world.leader().await;
    world.whole_round(&scheduler).await;
    // Pruning is part of the record's work, which ends after the record is there.
    let end = tokio::time::Instant::now() + crate::world::LONG;
    while old.iter().any(|key| world.path(key).exists()) {
        assert!(tokio::time::Instant::now() < end, "old files are still there");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // The next round opens: nothing of the last one's record is left to do.
    world.to(&scheduler, 36 + 8).await;
    for key in kept {
        assert!(world.path(key).exists(), "{key} is gone");
    }
}
