//! Tells the scheduler why a miner's upload was refused, so that the round's record has it.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use domain::{Hotkey, RoundId};
use tracing::{Instrument as _, Span, info, warn};

use crate::{app::App, error::Error, view::Round};

/// Tells it in the background, unless the refusal says nothing of the miner. The miner is authenticated.
pub(crate) fn tell(app: &App, round: &Arc<Round>, hotkey: &Hotkey, error: &Error) {
    if !is_of_the_miner(error) || !round.miners.contains_key(hotkey) {
        return;
    }
    let (app, round, hotkey) = (app.clone(), round.id, hotkey.clone());
    let (reason, detail) = (error.reason(), error.to_string());
    app.shutdown.clone().spawn(
        async move { report(app, round, hotkey, reason, detail).await }.instrument(Span::current()),
    );
}

/// Whether a refusal says something of the miner.
pub(crate) fn is_of_the_miner(error: &Error) -> bool {
    matches!(
        error.status(),
        StatusCode::BAD_REQUEST
            | StatusCode::FORBIDDEN
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::PAYLOAD_TOO_LARGE
    )
}

async fn report(app: App, round: RoundId, hotkey: Hotkey, reason: &'static str, detail: String) {
    for delay in [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(2)] {
        tokio::time::sleep(delay).await;
        match app.scheduler.report_refusal(round, &hotkey, reason, &detail).await {
            Ok(()) => return,
            Err(status) => info!(%status, "a refusal could not be reported"),
        }
    }
    warn!(%hotkey, %round, reason, "a refusal was not reported");
}
