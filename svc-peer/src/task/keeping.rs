//! What a merge keeps, and how it waits for the stores.

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use store::{ArtifactError, Artifacts};
use tokio::time::Instant;
use tracing::warn;

use super::Task;
use crate::report::{Failure, Reduced, Report};

/// Largest of the small files of a round.
const MAX_JSON: u64 = 64 << 20;

impl Task {
    /// Keeps the report, however long that takes, and returns the one that counts: an earlier run may
    /// have said before how it ended.
    pub(super) async fn keep_report(&self, report: Report) -> Report {
        let mut pause = Duration::from_millis(100);
        while let Err(error) = self.keep(Report::FILE, &report).await {
            if matches!(error, Failure::Store(ArtifactError::Conflict { .. })) {
                break;
            }
            warn!(%error, ?pause, "the report cannot be kept yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
        let before: Option<Report> = self.kept(Report::FILE).await.ok().flatten();
        before.filter(|before| before.block_hash == report.block_hash).unwrap_or(report)
    }

    pub(super) async fn keep<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Failure> {
        let json = serde_json::to_vec_pretty(value)
            .map_err(|error| Failure::Write(format!("{name}: {error}")))?;
        Ok(self.artifacts.put_bytes(&self.plan.round_key(name), Bytes::from(json)).await?)
    }

    /// Keeps what was agreed; an earlier run must have agreed on the same.
    pub(super) async fn keep_reduced(&self, reduced: &Reduced) -> Result<(), Failure> {
        let Err(error) = self.keep(Reduced::FILE, reduced).await else { return Ok(()) };
        match self.kept::<Reduced>(Reduced::FILE).await? {
            Some(before) if before.digest == reduced.digest => Ok(()),
            Some(before) => Err(Failure::Resume(format!(
                "reduced to {} before, and to {} now",
                before.digest, reduced.digest
            ))),
            None => Err(error),
        }
    }

    pub(super) async fn kept<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        kept(&self.artifacts, &self.plan.round_key(name)).await
    }

    /// The file with what earlier encodings have lost.
    pub(super) fn residual(&self) -> PathBuf {
        let name = format!("residual_{}.safetensors", self.plan.group);
        self.folder.join(name)
    }

    /// Goes on from what this encoding has lost, if anything. Should that not be kept, the next one
    /// begins with what was lost before: it costs a little precision, and no agreement.
    pub(super) async fn keep_residual(&self, next: Option<&Path>) {
        let to = self.residual();
        let kept = match next {
            Some(next) => tokio::fs::rename(next, &to).await,
            None => match tokio::fs::remove_file(&to).await {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            },
        };
        if let Err(error) = kept {
            warn!(%error, file = %to.display(), "what the encoding has lost could not be kept");
        }
    }
}

/// Tries again while a store is away, until it is too late.
pub(super) async fn patiently<T, F>(
    until: Instant,
    mut work: impl FnMut() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut pause = Duration::from_millis(100);
    loop {
        match work().await {
            Err(error) if error.passes() && Instant::now() + pause < until => {
                warn!(%error, ?pause, "trying again");
            }
            result => return result,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}

/// Reads a small JSON file of the artifact store, `None` when it is not there.
pub(crate) async fn kept<T: DeserializeOwned>(
    artifacts: &Artifacts,
    key: &str,
) -> Result<Option<T>, Failure> {
    match artifacts.get_bytes(key, MAX_JSON).await {
        Ok(json) => serde_json::from_slice(&json)
            .map(Some)
            .map_err(|error| Failure::Resume(format!("{key}: {error}"))),
        Err(ArtifactError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes a folder and all that is in it, if it is there.
pub(super) fn clear(folder: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::Scratch(format!("clear {}: {error}", folder.display())))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// An empty folder.
pub(super) fn fresh(folder: &Path) -> Result<(), Failure> {
    clear(folder)?;
    std::fs::create_dir_all(folder)
        .map_err(|error| Failure::Scratch(format!("make {}: {error}", folder.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> Failure {
        let (key, reason) = ("models/1".to_owned(), "no route".to_owned());
        Failure::Store(ArtifactError::Engine { key, reason })
    }

    #[tokio::test]
    async fn a_store_that_is_away_for_a_moment_is_waited_for() {
        let mut answers = vec![Ok("there"), Err(away()), Err(away())];
        let until = Instant::now() + Duration::from_secs(600);
        let answer = patiently(until, || std::future::ready(answers.pop().unwrap())).await;
        assert_eq!(answer.unwrap(), "there");
        assert!(answers.is_empty());
    }

    #[tokio::test]
    async fn what_will_not_pass_and_what_is_too_late_is_not_waited_for() {
        let mut asked = 0;
        let mut ask = |failure: Failure| {
            asked += 1;
            std::future::ready(Err::<(), _>(failure))
        };
        let far = Instant::now() + Duration::from_secs(600);
        assert!(patiently(far, || ask(Failure::TakenOver)).await.is_err());
        assert!(patiently(Instant::now(), || ask(away())).await.is_err());
        assert_eq!(asked, 2);
    }
}
