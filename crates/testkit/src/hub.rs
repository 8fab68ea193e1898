//! A model hub on this machine: real HTTP on two ports, over files of a folder, and as badly behaved as a
//! test tells it to be.
//!
//! It serves what the well-known one does: `GET /api/models/<repo>/revision/<digits>`,
//! `…/commits/<branch>`, `…/tree/<commit>` and `/<repo>/resolve/<commit>/<path>`, which redirects to its
//! second port. Every answer is written by hand onto the socket, so that a cut comes where it was told to.

#![expect(clippy::wildcard_enum_match_arm, reason = "most mischief is of one answer only")]

mod answer;
mod wire;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet};

/// What the hub was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRequest {
    /// Whether it came to the second port, where files lie.
    pub elsewhere: bool,
    /// The path, without the query.
    pub path: String,
    /// The query, perhaps empty.
    pub query: String,
    /// The first byte that is asked for, if a range is.
    pub from: Option<u64>,
    /// `If-Range`, as it was sent.
    pub if_range: Option<String>,
    /// `Authorization`, as it was sent.
    pub authorization: Option<String>,
}

impl HubRequest {
    /// Whether the bytes of a file are asked for, and not what leads to them.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.elsewhere
    }
}

/// What the hub does instead of what it should.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mischief {
    /// Nothing of the kind.
    #[default]
    None,
    /// Closes the connection after so many bytes of the body.
    Cut(usize),
    /// Sends so many bytes of the body, and then nothing.
    Stall(usize),
    /// Sends the body a byte at a time, with this wait between them.
    Trickle(Duration),
    /// Announces so many bytes more than there are, and closes.
    WrongLength(usize),
    /// Sends other bytes, of the same length.
    OtherBytes,
    /// Sends this many bytes more than are listed, and announces no length.
    TooMuch(usize),
    /// Answers with this status, these headers, and nothing.
    Status(u16, Vec<(&'static str, String)>),
    /// Answers 401 unless this token is sent.
    NeedsToken(&'static str),
    /// Redirects there.
    Redirect(String),
    /// Redirects to the same address.
    Circle,
    /// Answers a request for a part with the whole file.
    IgnoreRange,
    /// Announces a part that begins one byte later than it was asked to.
    WrongRange,
    /// Names this as the file's ETag; if empty, none.
    Etag(&'static str),
    /// Always names a next page.
    Endless,
    /// Names a next page on another host.
    PageElsewhere,
    /// Answers with this text.
    Says(String),
    /// Closes the connection without a word.
    HangUp,
}

type Script = Box<dyn FnMut(&HubRequest) -> Mischief + Send>;

/// What the two servers share.
struct Told {
    folder: TempDir,
    files: SocketAddr,
    script: Mutex<Script>,
    requests: Mutex<Vec<HubRequest>>,
    /// Commits in their order: repository and id.
    commits: Mutex<Vec<(String, String)>>,
}

impl Told {
    fn commit(&self, repo: &str, commit: &str) -> PathBuf {
        self.folder.path().join(repo).join(commit)
    }
}

/// A hub. Stops when it is dropped.
pub struct TestHub {
    told: Arc<Told>,
    addr: SocketAddr,
    serving: JoinSet<()>,
}

impl fmt::Debug for TestHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestHub").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl TestHub {
    /// Starts an empty and honest one, on free ports of loopback.
    ///
    /// # Errors
    ///
    /// When there is no port or no folder to be had.
    pub async fn start() -> anyhow::Result<Self> {
        let hub = TcpListener::bind("127.0.0.1:0").await.context("bind the hub")?;
        let files = TcpListener::bind("127.0.0.1:0").await.context("bind the hub's files")?;
        let addr = hub.local_addr()?;
        let told = Arc::new(Told {
            folder: crate::tempdir()?,
            files: files.local_addr()?,
            script: Mutex::new(Box::new(|_| Mischief::None)),
            requests: Mutex::default(),
            commits: Mutex::default(),
        });
        let mut serving = JoinSet::new();
        serving.spawn(wire::serve(hub, Arc::clone(&told), false));
        serving.spawn(wire::serve(files, Arc::clone(&told), true));
        Ok(Self { told, addr, serving })
    }

    /// Its address, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Puts a commit of these files into `repo`, and returns its id.
    ///
    /// # Errors
    ///
    /// When the files can't be written.
    pub fn commit(&self, repo: &str, files: &[(&str, Vec<u8>)]) -> anyhow::Result<String> {
        let id = answer::commit_id(repo, files);
        self.commit_as(repo, &id, files)?;
        Ok(id)
    }

    /// The same with an id of the test's.
    ///
    /// # Errors
    ///
    /// When the files can't be written.
    pub fn commit_as(&self, repo: &str, id: &str, files: &[(&str, Vec<u8>)]) -> anyhow::Result<()> {
        let folder = self.told.commit(repo, id);
        std::fs::create_dir_all(&folder)?;
        for (path, bytes) in files {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            std::fs::write(path, bytes)?;
        }
        let mut commits = self.told.commits.lock().unwrap_or_else(PoisonError::into_inner);
        commits.push((repo.to_owned(), id.to_owned()));
        Ok(())
    }

    /// From now on does what `script` says of each request.
    pub fn misbehave(&self, script: impl FnMut(&HubRequest) -> Mischief + Send + 'static) {
        *self.told.script.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
    }

    /// Every request so far, in the order in which they came.
    #[must_use]
    pub fn requests(&self) -> Vec<HubRequest> {
        self.told.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests for the bytes of files.
    #[must_use]
    pub fn file_requests(&self) -> Vec<HubRequest> {
        self.requests().into_iter().filter(HubRequest::is_file).collect()
    }

    /// Stops it: whoever asks finds nobody.
    pub async fn stop(&mut self) {
        self.serving.shutdown().await;
    }
}
