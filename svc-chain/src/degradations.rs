//! What did not go the normal way: the service's book of it.
//!
//! Nothing falls back silently: each entry is counted, logged once, kept, told to everyone who
//! watches blocks, and shown in the status. The last ones are in the store too, so that a restart
//! does not hide them.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use domain::BlockNumber;
use kit::Shutdown;
use serde::{Deserialize, Serialize};
use store::{Store, StoreError};
use tokio::{sync::watch, time::sleep};
use tracing::{debug, error, warn};

use crate::metrics;

/// Entries that are kept.
const KEPT: usize = 64;
/// Where they are kept, and the lease that guards it.
const KEY: &str = "degradations";
/// How long a write may take.
const LEASE: Duration = Duration::from_secs(5);
/// Pause between two writes: a burst is written once.
const PAUSE: Duration = Duration::from_millis(500);

/// What it was that did not go the normal way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Another endpoint is in use.
    EndpointSwitched,
    /// An endpoint told otherwise than as many as decide.
    EndpointDisagrees,
    /// An endpoint said what cannot be true.
    EndpointLies,
    /// Too few endpoints agreed, and the policy took the best-ranked one's word.
    NoQuorum,
    /// A block that was final was taken back.
    FinalityBroken,
    /// The runtime lacks something that this service uses.
    RuntimeLacks,
    /// A snapshot was missed, and an archive node was asked.
    ArchiveUsed,
    /// Committed weights never became known.
    RevealSkipped,
    /// Someone who watches was away for longer than is told afterwards.
    BlocksSkipped,
}

impl Kind {
    /// Stable, snake_case.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::EndpointSwitched => "endpoint_switched",
            Self::EndpointDisagrees => "endpoint_disagrees",
            Self::EndpointLies => "endpoint_lies",
            Self::NoQuorum => "no_quorum",
            Self::FinalityBroken => "finality_broken",
            Self::RuntimeLacks => "runtime_lacks",
            Self::ArchiveUsed => "archive_used",
            Self::RevealSkipped => "reveal_skipped",
            Self::BlocksSkipped => "blocks_skipped",
        }
    }

    /// Whether someone should look at it now.
    fn is_grave(self) -> bool {
        match self {
            Self::EndpointLies | Self::FinalityBroken | Self::RuntimeLacks => true,
            Self::EndpointSwitched
            | Self::EndpointDisagrees
            | Self::NoQuorum
            | Self::ArchiveUsed
            | Self::RevealSkipped
            | Self::BlocksSkipped => false,
        }
    }
}

/// One thing that did not go the normal way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Degradation {
    /// Of a [`Kind`], maybe one of another version of this service.
    pub(crate) kind: String,
    /// What happened, to what, for a person.
    pub(crate) detail: String,
    /// Newest block when it was noticed.
    pub(crate) block: BlockNumber,
}

impl Degradation {
    pub(crate) fn new(kind: Kind, detail: String, block: BlockNumber) -> Self {
        Self { kind: kind.as_str().to_owned(), detail, block }
    }
}

/// The last entries, oldest first, each with its number.
#[derive(Debug, Clone, Default)]
struct Book {
    entries: VecDeque<(u64, Degradation)>,
    next: u64,
}

impl Book {
    /// Returns whether it is news: the same at the same block is written down once.
    fn write(&mut self, entry: Degradation) -> bool {
        if self.entries.iter().any(|(_, known)| *known == entry) {
            return false;
        }
        self.entries.push_back((self.next, entry));
        self.next += 1;
        if self.entries.len() > KEPT {
            self.entries.pop_front();
        }
        true
    }

    /// Puts entries of earlier or of other processes where they belong.
    fn merge(&mut self, others: Vec<Degradation>) {
        for other in others {
            if !self.entries.iter().any(|(_, known)| *known == other) {
                self.entries.push_back((self.next, other));
                self.next += 1;
            }
        }
        self.entries.make_contiguous().sort_by_key(|(_, entry)| entry.block);
        let surplus = self.entries.len().saturating_sub(KEPT);
        self.entries.drain(..surplus);
    }
}

/// See the module. Clones are handles to the same book.
#[derive(Debug, Clone, Default)]
pub(crate) struct Degradations(Arc<watch::Sender<Book>>);

impl Degradations {
    /// Writes one down.
    pub(crate) fn note(&self, kind: Kind, detail: impl Into<String>, block: BlockNumber) {
        self.write(Degradation::new(kind, detail.into(), block), kind);
    }

    fn write(&self, entry: Degradation, kind: Kind) {
        metrics::degraded(kind.as_str());
        let mut news = false;
        let logged = entry.clone();
        self.0.send_if_modified(|book| {
            news = book.write(entry);
            news
        });
        let Degradation { detail, block, .. } = logged;
        if news && kind.is_grave() {
            error!(kind = kind.as_str(), detail, %block, "degradation");
        } else if news {
            warn!(kind = kind.as_str(), detail, %block, "degradation");
        }
    }

    /// The last ones, newest first.
    pub(crate) fn list(&self) -> Vec<Degradation> {
        self.0.borrow().entries.iter().rev().map(|(_, entry)| entry.clone()).collect()
    }

    /// Those noticed at or after a block, and then each as it comes.
    pub(crate) fn watch(&self, since: BlockNumber) -> Watcher {
        Watcher { book: self.0.subscribe(), next: 0, since }
    }

    /// Shows what earlier processes noticed, and keeps what this one notices, until `shutdown`.
    pub(crate) async fn keep(self, store: Store, shutdown: Shutdown) {
        let mut book = self.0.subscribe();
        let mut written = None;
        loop {
            let now = book.borrow_and_update().next;
            if written != Some(now) {
                match self.exchange(&store).await {
                    Ok(true) => written = Some(self.0.borrow().next),
                    Ok(false) => debug!("another replica writes its degradations down"),
                    Err(error) => warn!(%error, "degradations cannot be kept"),
                }
            }
            let change = async {
                sleep(PAUSE).await;
                if written == Some(book.borrow().next) {
                    // The sender lives as long as this handle.
                    let _ = book.changed().await;
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = change => {}
            }
        }
    }

    /// Merges the book with what the store has. Returns whether it could.
    async fn exchange(&self, store: &Store) -> Result<bool, StoreError> {
        let Some(lease) = store.acquire(KEY, LEASE).await? else { return Ok(false) };
        let stored = store.get(KEY).await?;
        // What another version wrote and cannot be read is written anew.
        let stored: Vec<Degradation> =
            stored.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        self.0.send_if_modified(|book| {
            let known = |entry| book.entries.iter().any(|(_, known)| known == entry);
            let news = !stored.iter().all(known);
            if news {
                book.merge(stored.clone());
            }
            news
        });
        let mut ours = self.list();
        ours.reverse();
        if ours != stored
            && let Ok(bytes) = serde_json::to_vec(&ours)
        {
            store.put_fenced(&lease, KEY, Bytes::from(bytes)).await?;
        }
        store.release(lease).await?;
        Ok(true)
    }
}

/// The degradations as they come. A watcher that is slower than 64 of them misses some.
#[derive(Debug)]
pub(crate) struct Watcher {
    book: watch::Receiver<Book>,
    next: u64,
    since: BlockNumber,
}

impl Watcher {
    /// Those that were not told yet; waits where there are none.
    pub(crate) async fn next(&mut self) -> Vec<Degradation> {
        loop {
            {
                let book = self.book.borrow_and_update();
                let news = book.entries.iter().filter(|(number, _)| *number >= self.next);
                let news: Vec<_> = news
                    .filter(|(_, entry)| entry.block >= self.since)
                    .map(|(_, entry)| entry.clone())
                    .collect();
                self.next = book.next;
                if !news.is_empty() {
                    return news;
                }
            }
            if self.book.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    fn details(book: &Degradations) -> Vec<String> {
        book.list().into_iter().map(|entry| entry.detail).collect()
    }

    #[tokio::test]
    async fn the_last_ones_are_kept_and_the_same_is_told_once() {
        let book = Degradations::default();
        for block in 0..70 {
            for _ in 0..2 {
                book.note(Kind::EndpointSwitched, format!("{block}"), BlockNumber(block));
            }
        }
        assert_eq!(book.list().len(), KEPT);
        assert_eq!(details(&book)[..2], ["69", "68"]);
    }

    #[tokio::test]
    async fn a_watcher_is_told_of_recent_ones_and_then_of_each_as_it_comes() {
        let book = Degradations::default();
        book.note(Kind::NoQuorum, "old", BlockNumber(1));
        book.note(Kind::NoQuorum, "recent", BlockNumber(9));
        let mut watcher = book.watch(BlockNumber(5));
        assert_eq!(watcher.next().await[0].detail, "recent");
        assert!(timeout(Duration::from_millis(1), watcher.next()).await.is_err());
        book.note(Kind::NoQuorum, "new", BlockNumber(10));
        let told = watcher.next().await;
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].kind.as_str(), told[0].detail.as_str()), ("no_quorum", "new"));
    }

    #[tokio::test]
    async fn a_restart_and_another_replica_show_them_all() {
        let store = Store::in_memory();
        let (first, second) = (Degradations::default(), Degradations::default());
        first.note(Kind::ArchiveUsed, "first", BlockNumber(7));
        second.note(Kind::EndpointLies, "second", BlockNumber(8));
        for book in [&first, &second, &first] {
            assert!(book.exchange(&store).await.unwrap());
        }
        assert_eq!(details(&first), ["second", "first"]);
        let mut watcher = first.watch(BlockNumber(0));
        assert_eq!(watcher.next().await.len(), 2);
        second.note(Kind::ArchiveUsed, "third", BlockNumber(9));
        assert!(second.exchange(&store).await.unwrap());
        assert!(first.exchange(&store).await.unwrap());
        assert_eq!(watcher.next().await.len(), 1, "what was told is not told again");
        let later = Degradations::default();
        assert!(later.exchange(&store).await.unwrap());
        assert_eq!(details(&later), ["third", "second", "first"]);
    }

    #[tokio::test]
    async fn what_cannot_be_read_in_the_store_is_written_anew() {
        let store = Store::in_memory();
        store.put_if_absent(KEY, Bytes::from_static(b"\xff{"), None).await.unwrap();
        let book = Degradations::default();
        book.note(Kind::NoQuorum, "x", BlockNumber(1));
        assert!(book.exchange(&store).await.unwrap());
        let later = Degradations::default();
        assert!(later.exchange(&store).await.unwrap());
        assert_eq!(details(&later), ["x"]);
    }
}
