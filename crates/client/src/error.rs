//! What a request can end with other than well.

use std::{error::Error as _, fmt, io, path::PathBuf, time::Duration};

use crate::advice::{self, Next};

/// What a request can fail with.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// What is given as the gateway's address is none.
    #[error("`{address}` is not the address of a gateway: {why}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The gateway can't be reached, or the connection broke.
    #[error("the gateway can't be reached: {}", chain(.0))]
    Http(#[from] reqwest::Error),
    /// Nothing moved for so long that the connection was given up.
    #[error("the gateway was silent for {0:?}")]
    Silent(Duration),
    /// The gateway said no.
    #[error("the gateway refused: {0}")]
    Refused(Refusal),
    /// A file on this side.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Another process works on the same file.
    #[error("{} is being downloaded by another process", .0.display())]
    Locked(PathBuf),
    /// A checkpoint that the gateway would refuse, found before anything was sent.
    #[error(transparent)]
    Flawed(#[from] checkpoint::Refusal),
    /// What arrived is not what was announced.
    #[error("the download is corrupt: {0}")]
    Corrupt(String),
    /// An answer that the protocol does not have.
    #[error("the gateway's answer is not understood: {0}")]
    Strange(String),
    /// It did not work as often as it was tried.
    #[error("given up after {tries} tries without progress, at last: {last}")]
    GaveUp {
        /// How often it was tried in a row.
        tries: u32,
        /// What the last one ended with.
        last: Box<ClientError>,
    },
    /// It did not work in time.
    #[error("out of time, at last: {last}")]
    OutOfTime {
        /// What the last try ended with.
        last: Box<ClientError>,
    },
}

impl ClientError {
    /// The refusal, where it is one or ended as one.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::GaveUp { last, .. } | Self::OutOfTime { last } => last.refusal(),
            Self::Address { .. }
            | Self::Http(_)
            | Self::Silent(_)
            | Self::File { .. }
            | Self::Locked(_)
            | Self::Flawed(_)
            | Self::Corrupt(_)
            | Self::Strange(_) => None,
        }
    }

    /// The stable name of what went wrong: the gateway's reason, or one of the client's own.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Address { .. } => "bad_address",
            Self::Http(_) | Self::Silent(_) => "unreachable",
            Self::Refused(refusal) if refusal.reason.is_empty() => "refused",
            Self::Refused(refusal) => &refusal.reason,
            Self::File { .. } => "file",
            Self::Locked(_) => "locked",
            Self::Flawed(refusal) => refusal.reason(),
            Self::Corrupt(_) => "corrupt",
            Self::Strange(_) => "strange_answer",
            Self::GaveUp { last, .. } | Self::OutOfTime { last } => last.reason(),
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        if matches!(self, Self::OutOfTime { .. }) {
            return "its time was over before it went through: begin earlier, or send less";
        }
        advice::advice(self.reason())
    }

    /// Whether the same may work in a moment.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            // A body that breaks off is a decoding error to the library.
            Self::Http(error) => !error.is_builder(),
            Self::Silent(_) => true,
            Self::Refused(refusal) => refusal.next() == Next::Again,
            Self::Address { .. }
            | Self::File { .. }
            | Self::Locked(_)
            | Self::Flawed(_)
            | Self::Corrupt(_)
            | Self::Strange(_)
            | Self::GaveUp { .. }
            | Self::OutOfTime { .. } => false,
        }
    }
}

/// A refusal in the gateway's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Stable reason; empty when something before the gateway answered.
    pub reason: String,
    /// The same for a person.
    pub detail: String,
    /// How long the gateway asks to be left alone.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn next(&self) -> Next {
        advice::next(self.status, &self.reason)
    }

    /// Whether this miner's submission of the round is stored already.
    #[must_use]
    pub fn is_already_submitted(&self) -> bool {
        self.reason == "already_submitted"
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        if !self.reason.is_empty() {
            write!(f, " {}", self.reason)?;
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

/// An HTTP error with all that lies behind it, and without the URL: that has a signature in it.
fn chain(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut source = error.source();
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    // The innermost causes are what a person can use; `error sending request` is what all have in common.
    if causes.is_empty() { "the connection broke".to_owned() } else { causes.join(": ") }
}
