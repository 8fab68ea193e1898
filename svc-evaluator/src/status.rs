//! What the worker tells about itself. Others see copies.

use domain::ModelHash;
use model::Device;
use tokio::sync::watch;

/// A snapshot of the worker.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) worker: String,
    pub(crate) device: Device,
    /// Job on the device.
    pub(crate) job: Option<String>,
    /// Job that is prepared meanwhile.
    pub(crate) staged: Option<String>,
    pub(crate) finished: u64,
    pub(crate) failed: u64,
    pub(crate) batches_digest: String,
    pub(crate) on_device: OnDevice,
}

/// What is on the device.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct OnDevice {
    pub(crate) base: Option<ModelHash>,
    /// Digest of the model's tensors; empty when there is none.
    pub(crate) digest: String,
    /// What the model was planned to need.
    pub(crate) memory: Vec<Part>,
}

/// A part of the memory plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) place: &'static str,
    pub(crate) bytes: u64,
}

/// The worker's end and the readers' end.
pub(crate) fn channel(
    worker: String,
    device: Device,
) -> (watch::Sender<Status>, watch::Receiver<Status>) {
    watch::channel(Status {
        worker,
        device,
        job: None,
        staged: None,
        finished: 0,
        failed: 0,
        batches_digest: String::new(),
        on_device: OnDevice::default(),
    })
}
