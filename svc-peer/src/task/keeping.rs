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
use crate::{
    report::{Failure, Outcome, Reduced, Report},
    residuals::Residuals,
};

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

    pub(super) fn residuals(&self) -> Result<Residuals, Failure> {
        let folder = self.folder.join(format!("residuals-{}", self.plan.group));
        Residuals::open(folder).map_err(|error| scratch("open what encoding has lost", &error))
    }

    /// What the encoding of earlier gradients has lost, those of rounds that ended in an earlier process
    /// settled first.
    pub(super) async fn lost_before(&self) -> Result<Option<PathBuf>, Failure> {
        let residuals = self.residuals()?;
        let failed = |error: std::io::Error| scratch("read what encoding has lost", &error);
        for round in residuals.unsettled().map_err(failed)? {
            if round < self.plan.round {
                let key = format!("rounds/{round}/{}", Report::FILE);
                let report: Option<Report> = kept(&self.artifacts, &key).await?;
                let merged = report.is_some_and(|report| self.gave(&report));
                residuals.settle(round, merged).map_err(failed)?;
            }
        }
        residuals.before(self.plan.round).map_err(failed)
    }

    /// What was lost counts from now on, if the gradient was merged. Should that not be kept now, it is
    /// at the start of the next round.
    pub(super) fn settle(&self, report: &Report) {
        let settled = self.residuals().map(|all| all.settle(report.round, self.gave(report)));
        match settled {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "what the encoding has lost is not settled yet"),
            Err(error) => warn!(%error, "what the encoding has lost is not settled yet"),
        }
    }

    /// Whether this validator's gradient is in the result.
    fn gave(&self, report: &Report) -> bool {
        report.outcome() != Outcome::Failed && report.reduced.members.contains(&self.plan.hotkey)
    }
}

/// A file of its own that a merge could not work with.
pub(super) fn scratch(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::Scratch(format!("{what}: {error}"))
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
