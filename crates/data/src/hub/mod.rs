//! Data sets of a hub, at pinned revisions: listed once, fetched by shard, checked by hash, and kept
//! on disk.
//!
//! The hub is asked over two addresses: `<hub>/api/datasets/<owner>/<name>/tree/<revision>` lists
//! files, and `<hub>/datasets/<owner>/<name>/resolve/<revision>/<path>` gives one, usually by a
//! redirect to another host. Nothing of its answers is believed that a hash or a bound can show.

mod client;
mod files;
mod listing;

use std::path::PathBuf;

use client::Client;
use files::Files;

use crate::{DataError, Glob, Limits, Repo, Revision, Settings, shard::Shard};

/// The hub, and what is kept of it.
#[derive(Debug)]
pub(crate) struct Hub {
    client: Client,
    files: Files,
    limits: Limits,
}

impl Hub {
    /// A hub that is not yet asked anything.
    pub(crate) fn new(settings: &Settings) -> Result<Self, DataError> {
        Ok(Self {
            client: Client::new(&settings.hub)?,
            files: Files::new(settings.cache.join("hub"), settings.limits.cache_bytes),
            limits: settings.limits,
        })
    }

    /// The shards of a data set that `files` names, in ascending order of path.
    pub(crate) async fn list(
        &self,
        repo: &Repo,
        revision: &Revision,
        files: Option<&Glob>,
    ) -> Result<Vec<Shard>, DataError> {
        let mut shards = listing::list(&self.client, &self.files, repo, revision).await?;
        shards.retain(|shard| files.is_none_or(|files| files.matches(&shard.path)));
        if shards.len() > self.limits.shards {
            let limit = self.limits.shards as u64;
            let shard = repo.to_string();
            return Err(DataError::Limit { shard, what: "the number of shards", limit });
        }
        if let Some(large) = shards.iter().find(|shard| shard.size > self.limits.shard_bytes) {
            let (what, limit) = ("its size", self.limits.shard_bytes);
            return Err(DataError::Limit { shard: format!("{repo}: {}", large.path), what, limit });
        }
        Ok(shards)
    }

    /// A shard, fetched where it is not there, with the listed content. While the file is open, it
    /// is not dropped from disk.
    pub(crate) async fn fetch(
        &self,
        repo: &Repo,
        revision: &Revision,
        shard: &Shard,
    ) -> Result<std::fs::File, DataError> {
        let url = self
            .client
            .url(["datasets", repo.as_str(), "resolve", revision.as_str()], &shard.path)?;
        let kept = self.files.shard(repo, revision, &shard.path);
        self.files.get_or_fetch(&self.client, url, kept, shard).await
    }
}

/// Where a shard is kept, and where its first part is while it is fetched.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) whole: PathBuf,
    pub(crate) partial: PathBuf,
}
