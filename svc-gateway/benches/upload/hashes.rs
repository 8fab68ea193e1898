//! What an upload cannot do without: the hashes alone, and the disk.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    sync::Arc,
};

use anyhow::ensure;
use checkpoint::{Checkpoint, Limits, model_hash};
use sha2::{Digest as _, Sha256};
use tokio::{task::spawn_blocking, time::Instant};

use crate::submission::Submission;

/// Seconds of what an upload cannot do without.
pub(crate) struct Hashes {
    /// Processor time of the model hash and of SHA-256.
    pub(crate) processor: (f64, f64),
    pub(crate) model: f64,
    pub(crate) sha256: f64,
    /// By one thread.
    pub(crate) in_turn: f64,
    /// By two.
    pub(crate) side_by_side: f64,
    pub(crate) disk: f64,
}

impl Hashes {
    pub(crate) fn slowest() -> Self {
        Self {
            processor: (f64::MAX, f64::MAX),
            model: f64::MAX,
            sha256: f64::MAX,
            in_turn: f64::MAX,
            side_by_side: f64::MAX,
            disk: f64::MAX,
        }
    }

    pub(crate) async fn measure(&mut self, file: &Submission) -> anyhow::Result<()> {
        let bytes = fs::read(&file.path)?;
        let begin = Instant::now();
        let copy = file.path.with_extension("copy");
        let mut written = File::create(&copy)?;
        written.write_all(&bytes)?;
        written.sync_all()?;
        self.disk = self.disk.min(begin.elapsed().as_secs_f64());
        fs::remove_file(copy)?;

        let held = Arc::new(Checkpoint::from_bytes(bytes.clone(), Limits::trusted())?);
        let bytes = Arc::new(bytes);
        let (begin, processor) = (Instant::now(), own_time());
        ensure!(model_hash(&*held)? == file.hash);
        let model = begin.elapsed().as_secs_f64();
        self.processor.0 = self.processor.0.min(own_time() - processor);
        let (begin, processor) = (Instant::now(), own_time());
        std::hint::black_box(Sha256::digest(&*bytes));
        let sha256 = begin.elapsed().as_secs_f64();
        self.processor.1 = self.processor.1.min(own_time() - processor);
        (self.model, self.sha256) = (self.model.min(model), self.sha256.min(sha256));
        self.in_turn = self.in_turn.min(model + sha256);
        let begin = Instant::now();
        let model = spawn_blocking(move || model_hash(&*held));
        let sha256 = spawn_blocking(move || Sha256::digest(&*bytes));
        ensure!(model.await?? == file.hash);
        std::hint::black_box(sha256.await?);
        self.side_by_side = self.side_by_side.min(begin.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Processor time of this thread so far, in seconds.
pub(crate) fn own_time() -> f64 {
    on_processor(Path::new("/proc/thread-self/schedstat"))
}

pub(crate) fn on_processor(schedstat: &Path) -> f64 {
    let text = fs::read_to_string(schedstat).unwrap_or_default();
    text.split(' ').next().and_then(|time| time.parse::<f64>().ok()).unwrap_or_default() / 1e9
}
