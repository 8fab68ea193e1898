//! Files that miners left on a model hub: fetched from the place that a commitment names, and then taken
//! exactly as an upload is.
//!
//! The hub has four addresses that matter here. `<hub>/api/models/<repo>/revision/<digits>` tells the
//! whole id of a commit, `…/commits/main` lists commits, `…/tree/<commit>` lists files with their sizes
//! and hashes, and `<hub>/<repo>/resolve/<commit>/<path>` gives one, usually by a redirect to another host.
//! The commit is pinned by the chain, the content by the model hash there; nothing of the hub's answers is
//! believed that a hash or a bound can show.
//!
//! Two kinds of trouble are kept apart: a [`Fault`] is the miner's and is told once, a [`Failure`] is the
//! hub's or ours and is tried again while scores are open.

mod bucket;
mod client;
mod commit;
mod config;
mod fetch;
mod listing;
mod memory;
mod place;
mod pull;
mod puller;
mod reach;
mod waits;

use std::time::Duration;

pub use config::HubConfig;
pub(crate) use puller::Puller;

use crate::error::Error;

/// What is wrong with the place that a miner named: its own fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the commitment names no place on a hub: {why}")]
    Place { why: &'static str },
    #[error("the hub has no {repo} that everyone may read")]
    Missing { repo: String },
    #[error("{repo} has no commit that begins with {digits}")]
    NoCommit { repo: String, digits: String },
    #[error("{repo} has several commits that begin with {digits}")]
    SeveralCommits { repo: String, digits: String },
    #[error("{repo} has no submission at {commit}: {why}")]
    NoFile { repo: String, commit: String, why: String },
}

impl Fault {
    /// The stable code.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Place { .. } => "hub_place",
            Self::Missing { .. } => "hub_missing",
            Self::NoCommit { .. } | Self::SeveralCommits { .. } => "hub_no_commit",
            Self::NoFile { .. } => "hub_no_file",
        }
    }
}

/// What went wrong with the hub, or on the way to it: nothing of it is a miner's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The next try may succeed, after this wait at least.
    #[error("{why}")]
    Passing { why: String, after: Option<Duration> },
    #[error("nothing new came in {tries} tries: {why}")]
    Unreachable { tries: u32, why: String },
    #[error("the hub's answer is not to be used: {why}")]
    Answer { why: String },
    #[error("the file changes while it is read: {why}")]
    Changed { why: String },
    #[error("the hub does not take this gateway's token")]
    Token,
    #[error("the file took longer than {limit:?}")]
    Slow { limit: Duration },
}

impl Failure {
    pub(crate) fn passing(why: impl std::fmt::Display) -> Self {
        Self::Passing { why: why.to_string(), after: None }
    }

    pub(crate) fn answer(why: impl std::fmt::Display) -> Self {
        Self::Answer { why: why.to_string() }
    }

    pub(crate) fn changed(why: impl std::fmt::Display) -> Self {
        Self::Changed { why: why.to_string() }
    }

    /// The stable code.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Passing { .. } | Self::Unreachable { .. } => "hub_unreachable",
            Self::Answer { .. } => "hub_answer",
            Self::Changed { .. } => "hub_changed",
            Self::Token => "hub_token",
            Self::Slow { .. } => "hub_too_slow",
        }
    }
}

/// Why a pull brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error(transparent)]
    Failure(#[from] Failure),
    /// As an upload would be refused.
    #[error(transparent)]
    Gateway(#[from] Error),
}
