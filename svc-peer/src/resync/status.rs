//! What is to be seen of a resync from outside of its task.

use domain::Hotkey;
use store::ArtifactError;

use crate::{plan::Model, report::LeftOut};

/// How far a resync is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum State {
    #[default]
    Running,
    Done,
    Failed,
}

impl State {
    /// The word in statuses and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// A resync as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Shown {
    pub(crate) state: State,
    /// Bytes that are here and checked.
    pub(crate) bytes: u64,
    /// Bytes of all files; zero until known.
    pub(crate) total: u64,
    /// The model, once it is done.
    pub(crate) model: Option<Model>,
    /// Stable reason of a failure.
    pub(crate) reason: &'static str,
    /// What happened, for a person.
    pub(crate) detail: String,
    /// Those that gave what they had not signed, or signed what cannot be, ascending.
    pub(crate) blamed: Vec<LeftOut>,
}

/// Why a model was not brought.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("nobody has it: {holders}")]
    NobodyHasIt { holders: String },
    #[error("all who had it have lied")]
    NobodyHonest,
    #[error("out of time; {holders}")]
    OutOfTime { holders: String },
    #[error("the disk failed: {0}")]
    Disk(#[from] std::io::Error),
    #[error("the artifact store failed: {0}")]
    Store(#[from] ArtifactError),
    #[error("the model cannot be put together: {0}")]
    Assemble(String),
    #[error("the model cannot be published: {0}")]
    Publish(String),
}

impl Failure {
    /// Stable snake_case name of the reason.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NobodyHasIt { .. } => "nobody_has_it",
            Self::NobodyHonest => "nobody_honest",
            Self::OutOfTime { .. } => "out_of_time",
            Self::Disk(_) => "disk_failed",
            Self::Store(_) => "store_failed",
            Self::Assemble(_) => "not_assembled",
            Self::Publish(_) => "not_published",
        }
    }
}

/// `5F3s… (silent), 5Grw… (no_model)`.
pub(crate) fn named<'a>(reasons: impl IntoIterator<Item = (&'a Hotkey, &'a str)>) -> String {
    let named = reasons.into_iter().map(|(holder, reason)| format!("{holder} ({reason})"));
    named.collect::<Vec<_>>().join(", ")
}
