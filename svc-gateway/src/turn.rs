//! The right to be the one upload of a miner in a round, across all gateways.

use domain::RoundId;
use store::Lease;
use tracing::warn;

use crate::{admit::Claim, app::App, error::Error, marks};

/// A lease that is held while its work runs.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    app: &'a App,
    lease: Lease,
    round: RoundId,
}

impl<'a> Turn<'a> {
    /// Takes the turn; refuses a miner that has submitted, or whose upload is under way elsewhere.
    pub(crate) async fn take(app: &'a App, claim: &Claim) -> Result<Self, Error> {
        marks::check_new(&app.store, claim).await?;
        let lease = marks::claim_upload(&app.store, claim, app.config.upload_lease).await?;
        let turn = Self { app, lease, round: claim.round };
        // Once more, with the lease in hand: another upload may just have ended.
        match marks::check_new(&app.store, claim).await {
            Ok(()) => Ok(turn),
            Err(error) => {
                turn.end().await;
                Err(error)
            }
        }
    }

    /// The lease that guards what is written.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Does `work` while the lease is held, and then lets go of it; the work stops when the lease is lost.
    pub(crate) async fn during<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let ttl = self.app.config.upload_lease;
        marks::while_held(&self.app.store, &self.lease, ttl, Box::pin(work)).await
    }

    /// Lets others have their turn.
    pub(crate) async fn end(self) {
        if let Err(error) = self.app.store.release(self.lease).await {
            warn!(%error, round = %self.round, "an upload's lease was not released; it runs out");
        }
    }
}
