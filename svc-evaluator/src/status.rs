//! What the worker's loop tells about itself. The loop owns it; others see copies.

use domain::ModelHash;
use model::Device;
use tokio::sync::watch;

/// A snapshot of the worker.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) worker: String,
    pub(crate) device: Device,
    pub(crate) base: Option<ModelHash>,
    pub(crate) job: Option<String>,
    pub(crate) finished: u64,
    pub(crate) failed: u64,
}

/// The loop's end and the readers' end.
pub(crate) fn channel(
    worker: String,
    device: Device,
) -> (watch::Sender<Status>, watch::Receiver<Status>) {
    watch::channel(Status { worker, device, base: None, job: None, finished: 0, failed: 0 })
}
