//! Signs, stores, reads and prunes what is left of a round.

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use domain::{Record, RoundId};
use proto::chain::v1::{SignRequest, sign_request::Purpose};
use sha2::{Digest as _, Sha256};
use store::Artifacts;
use tracing::{info, warn};

use crate::{
    effects::{Failure, Outside},
    error::Error,
};

/// Bound of a record, in bytes.
const MAX_RECORD: u64 = 256 << 20;

/// A record with its signature, as it is stored.
#[derive(serde::Serialize)]
struct Signed<'a> {
    /// What happened.
    record: &'a Record,
    /// SHA-256 over the compact JSON of `record`, hex.
    digest: String,
    /// sr25519 by the validator over `connito.record.v1:` and the digest, hex.
    signature: String,
}

pub(crate) fn key(round: RoundId) -> String {
    format!("rounds/{round}/record.json")
}

/// Has the record signed and stores it; a record that is there already stays.
pub(crate) async fn store(record: &Record, outside: &Outside) -> Result<(), Failure> {
    let key = key(record.round);
    if outside.artifacts().exists(&key).await? {
        return Ok(());
    }
    let bytes = serde_json::to_vec(record).map_err(|error| Failure::Other(error.to_string()))?;
    let digest = Sha256::digest(&bytes);
    let purpose = Some(Purpose::RecordDigest(digest.to_vec().into()));
    let signature = outside.chain().sign(SignRequest { purpose }).await?.into_inner().signature;
    let signed = Signed { record, digest: hex(&digest), signature: hex(&signature) };
    let json = serde_json::to_vec(&signed).map_err(|error| Failure::Other(error.to_string()))?;
    outside.artifacts().put_bytes(&key, Bytes::from(json)).await?;
    Ok(())
}

/// Deletes what the retention policy gives up. Never what the running round or the base refer to:
/// only models and rounds older than the recorded one's are looked at.
pub(crate) async fn retain(record: &Record, outside: &Outside) {
    let keep = outside.retention();
    let models = (keep.models as usize).max(2);
    prune(outside.artifacts(), "models", models, record.model_version().0).await;
    let rounds = (keep.submission_rounds as usize).max(1);
    prune(outside.artifacts(), "submissions", rounds, record.round.0).await;
}

/// Keeps the folders of the newest `keep` numbers in `folder`, and everything newer than `newest`.
async fn prune(artifacts: &Artifacts, folder: &str, keep: usize, newest: u64) {
    let folders = match folders(artifacts, folder).await {
        Ok(folders) => folders,
        Err(error) => return warn!(%error, folder, "retention could not look"),
    };
    let old = folders.into_iter().rev().filter(|(number, _)| *number <= newest).skip(keep);
    for prefix in old.flat_map(|(_, prefixes)| prefixes) {
        match artifacts.delete_prefix(&prefix).await {
            Ok(_) => info!(prefix, "deleted by the retention policy"),
            Err(error) => warn!(%error, prefix, "could not be deleted"),
        }
    }
}

/// The folders in `folder` by their number: `24`, or `24-` and something that tells it from another
/// one of that number.
async fn folders(
    artifacts: &Artifacts,
    folder: &str,
) -> Result<BTreeMap<u64, BTreeSet<String>>, store::ArtifactError> {
    let mut folders: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for key in artifacts.list(folder).await? {
        let rest = key.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
        let Some((name, _)) = rest.and_then(|rest| rest.split_once('/')) else { continue };
        let number = name.split_once('-').map_or(name, |(number, _)| number);
        let Ok(number) = number.parse() else { continue };
        folders.entry(number).or_default().insert(format!("{folder}/{name}"));
    }
    Ok(folders)
}

/// The record of a round, JSON.
pub(crate) async fn read(artifacts: &Artifacts, round: RoundId) -> Result<String, Error> {
    let key = key(round);
    let failed = |error: store::ArtifactError| Error::Artifacts(error.to_string());
    if !artifacts.exists(&key).await.map_err(failed)? {
        return Err(Error::NoRecord(round.0));
    }
    let bytes = artifacts.get_bytes(&key, MAX_RECORD).await.map_err(failed)?;
    String::from_utf8(bytes.to_vec())
        .map_err(|_| Error::Artifacts(format!("`{key}` is not UTF-8: the record is damaged")))
}

/// Rounds that have a record, newest first.
pub(crate) async fn list(artifacts: &Artifacts) -> Result<Vec<u64>, Error> {
    let keys =
        artifacts.list("rounds").await.map_err(|error| Error::Artifacts(error.to_string()))?;
    let mut rounds: Vec<u64> = keys
        .iter()
        .filter_map(|key| key.strip_prefix("rounds/")?.strip_suffix("/record.json")?.parse().ok())
        .collect();
    rounds.sort_unstable_by(|a, b| b.cmp(a));
    Ok(rounds)
}

pub(crate) fn base64_url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}
