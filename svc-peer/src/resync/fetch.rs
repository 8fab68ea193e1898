//! Brings files from several holders at once, each chunk checked when it comes.
//!
//! Whoever sends what it has not signed is out at once; who cannot be reached, or is silent, after
//! some tries in a row.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use checkpoint::ChunkDigests;
use domain::Hotkey;
use futures::future::try_join_all;
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::debug;

use super::{
    line::Line,
    message::ModelFile,
    parts::{Part, Parts, PutError, signed},
    work::{Span, Work},
};
use crate::call::CallError;

/// Failures in a row after which a holder is left.
const TRIES: u32 = 5;
/// Pause after the first of them; it doubles.
const PAUSE: Duration = Duration::from_millis(200);

/// Why nothing more is asked of a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Out {
    /// It does not answer, or refuses.
    Gone(&'static str),
    /// It sent what it had not signed.
    Liar { reason: &'static str, detail: String },
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Brought {
    /// Whether all files are here.
    pub(crate) whole: bool,
    /// Holders that were left.
    pub(crate) out: BTreeMap<Hotkey, Out>,
}

/// Files, and who has signed for all of them.
pub(crate) struct Fetch<'a> {
    pub(crate) line: &'a Line,
    pub(crate) parts: &'a Parts,
    pub(crate) files: &'a [ModelFile],
    pub(crate) holders: &'a [Hotkey],
    /// Streams at once from each holder.
    pub(crate) streams: usize,
    /// When to leave off.
    pub(crate) until: Instant,
    /// Is told how many bytes have come, or were here.
    pub(crate) came: &'a (dyn Fn(u64) + Sync),
}

/// What the workers have in common.
struct Crew {
    parts: Vec<Part>,
    board: Mutex<Board>,
    changed: Notify,
}

struct Board {
    work: Work,
    /// Failures of each holder since something came from it.
    failures: Vec<u32>,
    out: Vec<Option<Out>>,
}

enum Stop {
    Call(CallError),
    Wrong(String),
    Disk(io::Error),
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl Crew {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn done(&self) {
        loop {
            let changed = self.changed.notified();
            if self.board().work.is_done() {
                return;
            }
            changed.await;
        }
    }
}

impl Fetch<'_> {
    /// Brings what is not here yet, until all is, nobody is left to ask, or it is too late. Fails
    /// only with the disk.
    pub(crate) async fn run(&self) -> io::Result<Brought> {
        let mut out = BTreeMap::new();
        let (mut parts, mut here) = (Vec::new(), Vec::new());
        for file in self.files {
            let list = timeout_at(self.until, self.list(file, &mut out)).await;
            let Some(list) = list.unwrap_or(Ok(None))? else {
                return Ok(Brought { whole: false, out });
            };
            let (folder, of) = (self.parts.clone(), file.clone());
            let (part, is_here) = blocking(move || folder.fill(&of, list)).await?;
            let bytes = is_here.iter().enumerate().filter(|(_, here)| **here);
            (self.came)(bytes.map(|(n, _)| chunk_len(file, n as u32)).sum());
            parts.push(part);
            here.push(is_here);
        }
        let board = Board {
            work: Work::new(&here),
            failures: vec![0; self.holders.len()],
            out: self.holders.iter().map(|holder| out.get(holder).cloned()).collect(),
        };
        let crew = Crew { parts, board: Mutex::new(board), changed: Notify::new() };
        let workers = (0..self.holders.len() * self.streams.max(1))
            .map(|n| self.worker(n % self.holders.len(), &crew));
        tokio::select! {
            ended = try_join_all(workers) => { ended?; }
            () = crew.done() => {}
            () = sleep_until(self.until) => {}
        }
        let board = crew.board();
        let named = self.holders.iter().cloned().zip(board.out.iter().cloned());
        let out = named.filter_map(|(holder, out)| Some((holder, out?))).collect();
        Ok(Brought { whole: board.work.is_done(), out })
    }

    /// The list of a file's digests: as it was kept, or from the first holder that has it.
    async fn list(
        &self,
        file: &ModelFile,
        out: &mut BTreeMap<Hotkey, Out>,
    ) -> io::Result<Option<ChunkDigests>> {
        let (folder, of) = (self.parts.clone(), file.clone());
        if let Some(list) = blocking(move || Ok(folder.list(&of))).await? {
            return Ok(Some(list));
        }
        for attempt in 1..=TRIES {
            for holder in self.holders {
                if out.contains_key(holder) {
                    continue;
                }
                match self.line.list(holder, file).await {
                    Ok(list) => {
                        let list = list.into_iter().map(|digest| digest.0).collect();
                        let Some(list) = signed(file, list) else {
                            out.insert(holder.clone(), wrong_list(&file.name));
                            continue;
                        };
                        let (folder, of, kept) = (self.parts.clone(), file.clone(), list.clone());
                        blocking(move || folder.keep_list(&of, &kept)).await?;
                        return Ok(Some(list));
                    }
                    Err(error) => {
                        debug!(%holder, %error, "no list");
                        if error.lasts() || attempt == TRIES {
                            out.insert(holder.clone(), Out::Gone(error.reason()));
                        }
                    }
                }
            }
            if out.len() == self.holders.len() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }

    /// Brings span after span from one holder.
    async fn worker(&self, at: usize, crew: &Crew) -> io::Result<()> {
        loop {
            let changed = crew.changed.notified();
            let span = {
                let mut board = crew.board();
                if board.work.is_done() || board.out[at].is_some() {
                    return Ok(());
                }
                board.work.take(at, self.holders.len() * self.streams)
            };
            let Some(span) = span else {
                changed.await;
                continue;
            };
            let ended = self.span(at, &span, crew).await;
            crew.board().work.give_back(&span);
            let pause = match ended {
                Ok(()) => None,
                Err(Stop::Disk(error)) => return Err(error),
                Err(Stop::Wrong(detail)) => {
                    crew.board().out[at] = Some(Out::Liar { reason: "wrong_chunk", detail });
                    None
                }
                Err(Stop::Call(error)) => self.failed(at, &error, crew),
            };
            crew.changed.notify_waiters();
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// How long a holder is left alone after a failure; none where it is left for good.
    fn failed(&self, at: usize, error: &CallError, crew: &Crew) -> Option<Duration> {
        let mut board = crew.board();
        board.failures[at] += 1;
        let failures = board.failures[at];
        debug!(holder = %self.holders[at], %error, failures, "a holder failed");
        if error.lasts() || failures >= TRIES {
            board.out[at] = Some(Out::Gone(error.reason()));
            return None;
        }
        Some(PAUSE * 2_u32.pow(failures - 1))
    }

    async fn span(&self, at: usize, span: &Span, crew: &Crew) -> Result<(), Stop> {
        let file = &self.files[span.file];
        let count = span.chunks.end - span.chunks.start;
        let mut shard = self.line.open(&self.holders[at], file, span.chunks.start, count).await?;
        for chunk in span.chunks.clone() {
            if !crew.board().work.is_for(span, chunk) {
                break;
            }
            let bytes = shard.next().await?;
            let part = crew.parts[span.file].clone();
            let put = spawn_blocking(move || part.put(chunk, &bytes)).await;
            match put.unwrap_or_else(|error| Err(io::Error::other(error).into())) {
                Ok(()) => {}
                Err(PutError::Wrong(wrong)) => {
                    return Err(Stop::Wrong(format!("{}: {wrong}", file.name)));
                }
                Err(PutError::Io(error)) => return Err(Stop::Disk(error)),
            }
            let mut board = crew.board();
            board.failures[at] = 0;
            let new = board.work.brought(span, chunk);
            drop(board);
            if new {
                crew.changed.notify_waiters();
                (self.came)(chunk_len(file, chunk));
            }
        }
        Ok(())
    }
}

fn wrong_list(name: &str) -> Out {
    Out::Liar { reason: "wrong_list", detail: format!("{name}: digests that it has not signed") }
}

fn chunk_len(file: &ModelFile, chunk: u32) -> u64 {
    let start = u64::from(chunk) * u64::from(file.chunk);
    file.len.saturating_sub(start).min(file.chunk.into())
}

/// Runs what reads or writes files off the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other).flatten()
}
