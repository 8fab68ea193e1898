//! Follows the scheduler: one task owns the newest view, handlers read it.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use checkpoint::Manifest;
use kit::{Health, Shutdown};
use proto::scheduler::v1::RoundView;
use store::Artifacts;
use tokio::{
    sync::watch::Sender,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    grpc::{SERVICE, Scheduler},
    metrics,
    view::{Base, Seen, View},
};

/// Largest manifest that is read.
const MAX_MANIFEST: u64 = 64 << 20;
/// How long reading a manifest may take.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Publishes every view of the scheduler, until `shutdown`.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) scheduler: Scheduler,
    pub(crate) artifacts: Artifacts,
    pub(crate) newest: Sender<Option<Arc<Seen>>>,
    pub(crate) health: Health,
    /// A view older than this is not ready to be acted on.
    pub(crate) max_age: Duration,
}

impl Watcher {
    /// Follows the scheduler, connecting again whenever the stream breaks.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        tokio::select! {
            () = self.follow() => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn follow(&mut self) {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(3))
            .without_max_times();
        let mut delays = backoff.build();
        loop {
            match self.stream().await {
                // It worked for a while: begin with short delays again.
                Ok(()) => delays = backoff.build(),
                Err(why) => warn!(%why, "the scheduler's view is not to be had"),
            }
            metrics::watch_broken();
            sleep(delays.next().unwrap_or(Duration::from_secs(3))).await;
        }
    }

    /// Reads one stream to its end; an error when it gave nothing at all.
    async fn stream(&mut self) -> Result<(), tonic::Status> {
        let mut views = self.scheduler.watch().await?;
        let mut seen_any = false;
        loop {
            // A stream that is silent for so long may be dead: look again.
            let Ok(next) = timeout(self.max_age, views.message()).await else {
                self.health.set(SERVICE, false);
                return Ok(());
            };
            match next {
                Ok(Some(view)) => {
                    self.publish(view).await;
                    seen_any = true;
                }
                Ok(None) => return Ok(()),
                Err(status) if !seen_any => return Err(status),
                Err(status) => {
                    info!(%status, "the scheduler's stream broke, connecting again");
                    return Ok(());
                }
            }
        }
    }

    async fn publish(&mut self, view: RoundView) {
        let view = match View::try_from(view) {
            Ok(view) => view,
            Err(error) => {
                warn!(%error, "the scheduler sent a view that can't be read");
                return;
            }
        };
        metrics::block(view.block.0);
        let manifest = match &view.base {
            Some(base) => self.manifest(base).await,
            None => None,
        };
        self.newest.send_replace(Some(Arc::new(Seen { view, manifest, at: Instant::now() })));
        self.health.set(SERVICE, true);
    }

    /// The manifest of `base`: the one that is known, when it is still the same model.
    async fn manifest(&self, base: &Base) -> Option<Arc<Manifest>> {
        let known = self.newest.borrow().as_ref().and_then(|seen| {
            let same = seen.view.base.as_ref() == Some(base);
            seen.manifest.as_ref().filter(|_| same).map(Arc::clone)
        });
        if known.is_some() {
            return known;
        }
        let key = format!("{}/{}", base.prefix, Manifest::FILE_NAME);
        let read = timeout(MANIFEST_TIMEOUT, self.artifacts.get_bytes(&key, MAX_MANIFEST)).await;
        let manifest = match read {
            Ok(Ok(bytes)) => Manifest::from_json(&bytes).map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it took too long".to_owned()),
        };
        match manifest {
            Ok(manifest) if manifest.model_hash != base.model_hash => {
                warn!(%key, expected = %base.model_hash, found = %manifest.model_hash,
                    "the manifest is of another model");
                None
            }
            Ok(manifest) => Some(Arc::new(manifest)),
            Err(why) => {
                warn!(%key, %why, "the manifest of the base model can't be read");
                None
            }
        }
    }
}
