//! Where an upload lies until it is verified: a folder of temporary files that dies with the process.
//!
//! Each process has a folder of its own below `<data_dir>/spool`, marked by a locked file, so that
//! several gateways may share a disk. On start the folders of processes that are gone are emptied.
//!
//! What an upload may write is set aside before its first byte, in a budget of this process and on the disk that
//! it shares with others.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::statvfs;
use tempfile::{NamedTempFile, TempDir};
use tracing::warn;

use crate::{Config, error::Error, metrics};

const LOCK: &str = "lock";

/// How much may be spooled at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Bytes of all uploads.
    pub(crate) bytes: u64,
    /// Bytes that stay free on the disk.
    pub(crate) min_free: u64,
}

impl Budget {
    /// What the configuration allows.
    pub(crate) fn of(config: &Config) -> Self {
        Self { bytes: config.spool_bytes, min_free: config.min_free_bytes }
    }
}

/// This process's folder of temporary files.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: TempDir,
    budget: Budget,
    taken: Arc<Mutex<Taken>>,
    /// Held as long as the process lives; the system lets go of it when the process dies.
    _lock: File,
}

impl Spool {
    /// Makes this process's folder below `root` and deletes those that dead processes left.
    pub(crate) fn open(root: &Path, budget: Budget) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        // One process at a time sweeps and settles, so that nobody deletes a folder that is being made.
        let gate = File::create(root.join(LOCK))?;
        gate.lock()?;
        for entry in fs::read_dir(root)? {
            let path = entry?.path();
            if path.is_dir() && is_abandoned(&path) {
                fs::remove_dir_all(&path)?;
            }
        }
        let folder = tempfile::Builder::new().prefix("gateway-").tempdir_in(root)?;
        let lock = File::create(folder.path().join(LOCK))?;
        lock.lock()?;
        Ok(Self { folder, budget, taken: Arc::default(), _lock: lock })
    }

    /// Sets room for a file of at most `bytes` aside.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<Room, Error> {
        let disk = statvfs(self.folder.path())
            .map_err(|error| Error::unavailable("look at the spool's disk", error))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let mut taken = lock(&self.taken);
        let reserved = taken.reserved.saturating_add(bytes);
        let unwritten = taken.unwritten.saturating_add(bytes);
        if reserved > self.budget.bytes || unwritten.saturating_add(self.budget.min_free) > free {
            warn!(bytes, reserved = taken.reserved, unwritten = taken.unwritten, free, "no room");
            return Err(Error::NoRoom);
        }
        *taken = Taken { reserved, unwritten };
        metrics::spool_reserved(reserved);
        Ok(Room { taken: Arc::clone(&self.taken), reserved: bytes, unwritten: bytes })
    }

    /// A new file; it disappears when it is dropped, unless it is moved.
    pub(crate) fn file(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(self.folder.path())
    }
}

/// What is set aside.
#[derive(Debug, Default)]
struct Taken {
    reserved: u64,
    /// What of it the disk does not count as taken yet.
    unwritten: u64,
}

/// Room for one file, free again when this is dropped: keep it as long as the file is in the spool.
#[derive(Debug)]
pub(crate) struct Room {
    taken: Arc<Mutex<Taken>>,
    reserved: u64,
    unwritten: u64,
}

impl Room {
    /// So many bytes are on the disk by now.
    pub(crate) fn wrote(&mut self, bytes: u64) {
        let bytes = bytes.min(self.unwritten);
        self.unwritten -= bytes;
        lock(&self.taken).unwritten -= bytes;
    }
}

impl Room {
    /// Keeps no more than what was written.
    pub(crate) fn settle(&mut self) {
        let mut taken = lock(&self.taken);
        taken.reserved -= self.unwritten;
        taken.unwritten -= self.unwritten;
        metrics::spool_reserved(taken.reserved);
        self.reserved -= self.unwritten;
        self.unwritten = 0;
    }

    /// One room of two, of the same spool.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        self.reserved += std::mem::take(&mut other.reserved);
        self.unwritten += std::mem::take(&mut other.unwritten);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.reserved -= self.reserved;
        taken.unwritten -= self.unwritten;
        metrics::spool_reserved(taken.reserved);
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether nobody holds the lock of this folder.
fn is_abandoned(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)) {
        Ok(lock) => !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const ANY: Budget = Budget { bytes: 1000, min_free: 0 };

    fn files(root: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(root).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(files(&path));
            } else if path.file_name().unwrap() != LOCK {
                found.push(path);
            }
        }
        found
    }

    #[test]
    fn a_file_disappears_when_it_is_dropped() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::open(root.path(), ANY).unwrap();
        let file = spool.file().unwrap();
        assert_eq!(files(root.path()).len(), 1);
        drop(file);
        assert!(files(root.path()).is_empty());
    }

    #[test]
    fn files_of_a_dead_process_are_deleted_and_those_of_a_living_one_are_not() {
        let root = tempfile::tempdir().unwrap();
        let dead = root.path().join("gateway-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        fs::write(dead.join("half an upload"), "x").unwrap();
        let living = Spool::open(root.path(), ANY).unwrap();
        assert!(!dead.exists());
        fs::write(living.folder.path().join("being written"), "x").unwrap();
        let _other = Spool::open(root.path(), ANY).unwrap();
        assert_eq!(files(root.path()).len(), 1);
    }

    #[test]
    fn what_rests_keeps_room_for_what_it_has_and_no_more() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::open(root.path(), ANY).unwrap();
        let mut part = spool.reserve(900).unwrap();
        part.wrote(300);
        part.settle();
        let other = spool.reserve(700).unwrap();
        assert_eq!(spool.reserve(1).unwrap_err().reason(), "no_room");
        drop(other);
        part.absorb(spool.reserve(600).unwrap());
        part.wrote(600);
        part.settle();
        assert_eq!(spool.reserve(101).unwrap_err().reason(), "no_room");
        drop(part);
        spool.reserve(1000).unwrap();
    }

    #[test]
    fn no_more_is_set_aside_than_the_budget_has_and_all_of_it_is_given_back() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::open(root.path(), ANY).unwrap();
        let mut first = spool.reserve(600).unwrap();
        assert_eq!(spool.reserve(401).unwrap_err().reason(), "no_room");
        let second = spool.reserve(400).unwrap();
        // What is written is still the file's.
        first.wrote(600);
        assert_eq!(spool.reserve(1).unwrap_err().reason(), "no_room");
        drop(first);
        drop(second);
        drop(spool.reserve(1000).unwrap());
        assert_eq!(spool.reserve(u64::MAX).unwrap_err().reason(), "no_room");
        let taken = lock(&spool.taken);
        assert_eq!((taken.reserved, taken.unwritten), (0, 0));
    }

    #[test]
    fn what_must_stay_free_and_what_is_not_written_yet_is_not_given_out() {
        let root = tempfile::tempdir().unwrap();
        let (bytes, disk) = (u64::MAX, statvfs(root.path()).unwrap());
        let free = disk.f_bavail * disk.f_frsize;
        let full = Spool::open(root.path(), Budget { bytes, min_free: u64::MAX }).unwrap();
        assert_eq!(full.reserve(1).unwrap_err().reason(), "no_room");
        // Others write to this disk: a tenth of it leaves them room to do so.
        let spool = Spool::open(root.path(), Budget { bytes, min_free: free / 10 }).unwrap();
        let mut most = spool.reserve(free / 2).unwrap();
        assert_eq!(spool.reserve(free / 2).unwrap_err().reason(), "no_room");
        // As if it had been written: the disk counts it now, and it does not count twice.
        most.wrote(free / 2);
        assert!(spool.reserve(free / 2).is_ok());
    }
}
