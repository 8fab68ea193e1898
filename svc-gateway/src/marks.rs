//! What gateways tell each other through the store: who uploads now, who has submitted, which signatures
//! were used. The store decides between those who come at once.

use std::time::Duration;

use bytes::Bytes;
use domain::{Hotkey, ModelHash, RoundId};
use proto::common::v1::Submission;
use serde::{Deserialize, Serialize};
use store::{Lease, Store, StoreError};
use tokio::time::{Instant, interval_at};
use tracing::warn;

use crate::{admit::Claim, error::Error, tus::UploadId};

/// A submission that is stored, as its mark tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Submitted {
    /// The miner.
    pub(crate) hotkey: Hotkey,
    /// Key of the file in the artifact store.
    pub(crate) key: String,
    /// Its model hash, the committed one.
    pub(crate) model_hash: ModelHash,
    /// SHA-256 of the file, hex.
    pub(crate) sha256: String,
    /// Size of the file.
    pub(crate) bytes: u64,
    /// Newest block when it was stored.
    pub(crate) block: u64,
}

impl Submitted {
    /// Whether this is of the file that `claim` names.
    pub(crate) fn is_of(&self, claim: &Claim) -> bool {
        let name = self.key.rsplit('/').next();
        self.model_hash == claim.model_hash && name == Some(claim.file_name.as_str())
    }
}

impl From<Submitted> for Submission {
    fn from(submitted: Submitted) -> Self {
        Self {
            hotkey: submitted.hotkey.to_string(),
            key: submitted.key,
            model_hash: submitted.model_hash.to_hex(),
            sha256: submitted.sha256,
            bytes: submitted.bytes,
            block: submitted.block,
        }
    }
}

fn submitted_key(round: RoundId, hotkey: &Hotkey) -> String {
    format!("submitted/{round}/{hotkey}")
}

fn nonce_key(claim: &Claim) -> String {
    format!("nonce/{}", claim.nonce)
}

fn failed(error: StoreError) -> Error {
    Error::unavailable("use the store", error)
}

/// Refuses a miner that has submitted in this round.
pub(crate) async fn check_new(store: &Store, claim: &Claim) -> Result<(), Error> {
    match store.get(&submitted_key(claim.round, &claim.hotkey)).await.map_err(failed)? {
        None => Ok(()),
        Some(_) => Err(already(claim)),
    }
}

/// Marks the miner as having submitted; refuses when another gateway was first.
pub(crate) async fn mark_submitted(
    store: &Store,
    claim: &Claim,
    submitted: &Submitted,
    ttl: Duration,
) -> Result<(), Error> {
    let value = serde_json::to_vec(submitted)
        .map_err(|error| Error::unavailable("write the mark", error))?;
    let key = submitted_key(claim.round, &claim.hotkey);
    if store.put_if_absent(&key, Bytes::from(value), Some(ttl)).await.map_err(failed)? {
        Ok(())
    } else {
        Err(already(claim))
    }
}

fn already(claim: &Claim) -> Error {
    Error::AlreadySubmitted { hotkey: claim.hotkey.clone(), round: claim.round }
}

/// Everything that was submitted in a round, through any gateway.
pub(crate) async fn submitted(store: &Store, round: RoundId) -> Result<Vec<Submitted>, StoreError> {
    let marks = store.list(&format!("submitted/{round}/")).await?;
    Ok(marks.iter().filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect())
}

/// Uses up the request's signature.
pub(crate) async fn use_once(store: &Store, claim: &Claim, ttl: Duration) -> Result<(), Error> {
    if store.put_if_absent(&nonce_key(claim), Bytes::new(), Some(ttl)).await.map_err(failed)? {
        Ok(())
    } else {
        Err(Error::SignatureReused)
    }
}

/// Refuses a request whose signature was used, before anything is done for it. [`use_once`] decides.
pub(crate) async fn check_unused(store: &Store, claim: &Claim) -> Result<(), Error> {
    match store.get(&nonce_key(claim)).await.map_err(failed)? {
        None => Ok(()),
        Some(_) => Err(Error::SignatureReused),
    }
}

/// Gives the request's signature back: the connection broke, and today's miners send the same request
/// again.
pub(crate) async fn give_back(store: &Store, lease: &Lease, claim: &Claim) {
    if let Err(error) = store.delete_fenced(lease, &nonce_key(claim)).await {
        warn!(%error, "a signature could not be given back, the miner has to sign again");
    }
}

/// Where a miner's unfinished upload lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The upload.
    pub(crate) id: UploadId,
    /// The round that it is for.
    pub(crate) round: RoundId,
    /// URL of the gateway that has it; empty where that is not known.
    pub(crate) url: String,
}

/// What became of an upload that could be gone on with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// It is the miner's submission.
    Stored(Submitted),
    /// It was refused.
    Refused {
        /// Status of the answer.
        status: u16,
        /// The stable code.
        reason: String,
        /// The same for a person.
        detail: String,
    },
    /// It was not gone on with in time.
    Expired,
    /// Its sender ended it.
    Terminated,
    /// What had come of it is lost here.
    Lost,
}

/// One per miner, and no more: the next upload takes its place.
fn place_key(hotkey: &Hotkey) -> String {
    format!("resumable/{hotkey}")
}

fn sender_key(id: &UploadId) -> String {
    format!("tus/{}", id.as_str())
}

fn end_key(id: &UploadId) -> String {
    format!("tus-end/{}", id.as_str())
}

/// Notes that the miner's unfinished upload is this one, and none before it.
pub(crate) async fn put_place(
    store: &Store,
    lease: &Lease,
    hotkey: &Hotkey,
    place: &Place,
    ttl: Duration,
) -> Result<(), Error> {
    let sender = Bytes::from(hotkey.to_string());
    store.put_if_absent(&sender_key(&place.id), sender, Some(ttl)).await.map_err(failed)?;
    let place =
        serde_json::to_vec(place).map_err(|error| Error::unavailable("write the mark", error))?;
    store.put_fenced(lease, &place_key(hotkey), Bytes::from(place)).await.map_err(failed)
}

/// Where the miner's newest unfinished upload lies.
pub(crate) async fn place(store: &Store, hotkey: &Hotkey) -> Result<Option<Place>, Error> {
    let place = store.get(&place_key(hotkey)).await.map_err(failed)?;
    Ok(place.and_then(|place| serde_json::from_slice(&place).ok()))
}

/// Whose upload this is, or was.
pub(crate) async fn sender(store: &Store, id: &UploadId) -> Result<Option<Hotkey>, Error> {
    let sender = store.get(&sender_key(id)).await.map_err(failed)?;
    Ok(sender.and_then(|sender| std::str::from_utf8(&sender).ok()?.parse().ok()))
}

/// Notes what became of an upload. The first word counts.
pub(crate) async fn put_end(
    store: &Store,
    id: &UploadId,
    end: &End,
    ttl: Duration,
) -> Result<(), Error> {
    let end =
        serde_json::to_vec(end).map_err(|error| Error::unavailable("write the mark", error))?;
    store.put_if_absent(&end_key(id), Bytes::from(end), Some(ttl)).await.map(drop).map_err(failed)
}

/// What became of an upload, if it is known.
pub(crate) async fn end(store: &Store, id: &UploadId) -> Result<Option<End>, Error> {
    let end = store.get(&end_key(id)).await.map_err(failed)?;
    Ok(end.and_then(|end| serde_json::from_slice(&end).ok()))
}

/// The miner's submission in a round, if there is one.
pub(crate) async fn submission_of(
    store: &Store,
    claim: &Claim,
) -> Result<Option<Submitted>, Error> {
    let mark = store.get(&submitted_key(claim.round, &claim.hotkey)).await.map_err(failed)?;
    Ok(mark.and_then(|mark| serde_json::from_slice(&mark).ok()))
}

/// Takes the right to be the one upload of this miner in this round.
pub(crate) async fn claim_upload(
    store: &Store,
    claim: &Claim,
    ttl: Duration,
) -> Result<Lease, Error> {
    let name = format!("upload/{}/{}", claim.round, claim.hotkey);
    store
        .acquire(&name, ttl)
        .await
        .map_err(failed)?
        .ok_or_else(|| Error::UploadInProgress { hotkey: claim.hotkey.clone() })
}

/// Does `work` while holding `lease`; stops it when the lease is lost.
pub(crate) async fn while_held<T>(
    store: &Store,
    lease: &Lease,
    ttl: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut work = std::pin::pin!(work);
    let every = ttl / 3;
    let mut ticks = interval_at(Instant::now() + every, every);
    let mut renewed = Instant::now();
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = ticks.tick() => {}
        }
        match store.renew(lease, ttl).await {
            Ok(true) => renewed = Instant::now(),
            Ok(false) => return Err(Error::unavailable("keep the upload's lease", "it was lost")),
            // It holds on until its end, and the store may be back before that.
            Err(error) if renewed.elapsed() < ttl => {
                warn!(%error, "the upload's lease was not renewed")
            }
            Err(error) => return Err(Error::unavailable("keep the upload's lease", error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::Uid;

    use super::*;

    const TTL: Duration = Duration::from_millis(400);

    fn claim() -> Claim {
        Claim {
            round: RoundId(336),
            hotkey: Hotkey::from_public_key([1; 32]),
            uid: Uid(1),
            model_hash: ModelHash([2; 24]),
            file_name: "m.pt".into(),
            nonce: "00".into(),
        }
    }

    #[tokio::test]
    async fn work_outlives_the_lease_it_began_with() {
        let store = Store::in_memory();
        let lease = claim_upload(&store, &claim(), TTL).await.unwrap();
        let long = async {
            tokio::time::sleep(TTL * 4).await;
            Ok(7)
        };
        assert_eq!(while_held(&store, &lease, TTL, long).await.unwrap(), 7);
        assert!(store.release(lease).await.unwrap());
    }

    #[tokio::test]
    async fn work_stops_when_its_lease_is_lost() {
        let store = Store::in_memory();
        let lease = claim_upload(&store, &claim(), TTL).await.unwrap();
        // This process stands still, and another takes over.
        tokio::time::sleep(TTL * 2).await;
        let _other = claim_upload(&store, &claim(), TTL).await.unwrap();
        let endless = std::future::pending::<Result<(), Error>>();
        let error = while_held(&store, &lease, TTL, endless).await.unwrap_err();
        assert!(error.is_transport(), "{error}");
    }

    #[tokio::test]
    async fn one_of_two_claims_wins_and_a_signature_given_back_can_be_used_again() {
        let store = Store::in_memory();
        let lease = claim_upload(&store, &claim(), TTL).await.unwrap();
        let error = claim_upload(&store, &claim(), TTL).await.unwrap_err();
        assert_eq!(error.reason(), "upload_in_progress");
        use_once(&store, &claim(), TTL).await.unwrap();
        let error = use_once(&store, &claim(), TTL).await.unwrap_err();
        assert_eq!(error.reason(), "signature_reused");
        give_back(&store, &lease, &claim()).await;
        use_once(&store, &claim(), TTL).await.unwrap();
    }
}
