//! From a verified file in the spool to a submission: stored, marked, told to the scheduler.

use std::time::Duration;

use bytes::Bytes;
use checkpoint::Manifest;
use domain::ExpertGroup;
use serde_json::json;
use store::{ArtifactError, Lease};
use tracing::{info, instrument, warn};

use crate::{
    admit::Claim,
    app::App,
    error::Error,
    intake::Received,
    marks::{self, Submitted},
};

/// Room for what a container holds beside its tensors: fixed, and per tensor.
const OVERHEAD: (u64, u64) = (1 << 20, 4 << 10);
/// Bytes of the widest type that a submission may have.
const WIDEST: u64 = 4;

/// Largest file that can be a submission for this group: all its tensors in float32, and some room.
pub(crate) fn largest_file(manifest: &Manifest, group: ExpertGroup) -> Option<u64> {
    let layout = manifest.layout(group)?;
    let of_tensors = layout.tensors.values().fold(0u64, |sum, spec| {
        let tensor = (spec.elements() as u64).saturating_mul(WIDEST);
        sum.saturating_add(tensor).saturating_add(OVERHEAD.1)
    });
    Some(of_tensors.saturating_add(OVERHEAD.0))
}

/// Stores a verified file as the miner's submission of the round: all of it, or nothing.
#[instrument(name = "store", skip_all)]
pub(crate) async fn keep(
    app: &App,
    lease: &Lease,
    claim: &Claim,
    file: &Received,
) -> Result<Submitted, Error> {
    let seen = app.latest.fresh()?;
    let round = seen.view.round.as_ref().filter(|round| round.id == claim.round && round.open);
    if round.is_none() {
        return Err(Error::RoundClosed { round: claim.round });
    }
    // From here on files are written: only with the lease in hand.
    match app.store.renew(lease, app.config.upload_lease).await {
        Ok(true) => {}
        Ok(false) => return Err(Error::unavailable("keep the upload's lease", "it was lost")),
        Err(error) => return Err(Error::unavailable("keep the upload's lease", error)),
    }
    let folder = format!("submissions/{}/{}", claim.round, claim.hotkey);
    let submitted = Submitted {
        hotkey: claim.hotkey.clone(),
        key: format!("{folder}/{}", claim.file_name),
        model_hash: file.verified.model_hash,
        sha256: file.sha256.clone(),
        bytes: file.bytes,
        block: seen.view.block.0,
        transport: claim.transport,
    };
    if let Err(error) = write(app, &folder, claim, file, &submitted).await {
        discard(app, &folder).await;
        return Err(Error::unavailable("store the file", error));
    }
    match marks::mark_submitted(&app.store, claim, &submitted, app.config.mark_ttl).await {
        Ok(()) => Ok(submitted),
        // Another gateway marked its own upload while this one's lease was gone: the folder is its.
        Err(error @ Error::AlreadySubmitted { .. }) => Err(error),
        Err(error) => {
            discard(app, &folder).await;
            Err(error)
        }
    }
}

async fn write(
    app: &App,
    folder: &str,
    claim: &Claim,
    file: &Received,
    submitted: &Submitted,
) -> Result<(), ArtifactError> {
    // Nobody has submitted: what lies here is of a gateway that died before it could mark it.
    app.artifacts.delete_prefix(folder).await?;
    app.artifacts.move_file(&submitted.key, &file.path).await?;
    let meta = json!({
        "round": claim.round,
        "hotkey": claim.hotkey,
        "uid": claim.uid,
        "file": claim.file_name,
        "model_hash": submitted.model_hash,
        "sha256": submitted.sha256,
        "bytes": submitted.bytes,
        "block": submitted.block,
        "transport": submitted.transport,
    });
    app.artifacts.put_bytes(&format!("{folder}/meta.json"), Bytes::from(meta.to_string())).await
}

async fn discard(app: &App, folder: &str) {
    if let Err(error) = app.artifacts.delete_prefix(folder).await {
        warn!(%error, folder, "what an upload left could not be deleted; the next one will");
    }
}

/// Tells the scheduler of a stored submission. When that does not work at once, the reporter goes on.
pub(crate) async fn announce(app: &App, claim: &Claim, submitted: &Submitted) {
    const TRIES: [Duration; 3] =
        [Duration::ZERO, Duration::from_millis(200), Duration::from_secs(1)];
    for delay in TRIES {
        tokio::time::sleep(delay).await;
        match app.scheduler.report_submission(claim.round, submitted.clone().into()).await {
            Ok(_) => return,
            Err(status) => info!(%status, "the scheduler did not take note of a submission yet"),
        }
    }
}
