//! Where an upload lies until it is verified: a folder of temporary files that dies with the process.
//!
//! Each process has a folder of its own below `<data_dir>/spool`, marked by a locked file, so that
//! several gateways may share a disk. On start the folders of processes that are gone are emptied.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempDir, TempPath};
use tokio::{sync::mpsc, task::JoinHandle};

const LOCK: &str = "lock";
/// Pieces on their way to the disk, per upload.
const IN_FLIGHT: usize = 8;

/// This process's folder of temporary files.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: TempDir,
    /// Held as long as the process lives; the system lets go of it when the process dies.
    _lock: File,
}

impl Spool {
    /// Makes this process's folder below `root` and deletes those that dead processes left.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
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
        Ok(Self { folder, _lock: lock })
    }

    /// Begins a file. The caller feeds it; it disappears unless it is finished and kept.
    pub(crate) fn begin(&self) -> SpoolFile {
        let (pieces, receiver) = mpsc::channel(IN_FLIGHT);
        let folder = self.folder.path().to_owned();
        let writer = tokio::task::spawn_blocking(move || write(&folder, receiver));
        SpoolFile { pieces, writer, bytes: 0 }
    }
}

/// Whether nobody holds the lock of this folder.
fn is_abandoned(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)) {
        Ok(lock) => !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)),
        Err(_) => true,
    }
}

/// A file that is being written. Dropped, it leaves nothing.
#[derive(Debug)]
pub(crate) struct SpoolFile {
    pieces: mpsc::Sender<Bytes>,
    writer: JoinHandle<io::Result<Spooled>>,
    bytes: u64,
}

/// A file that was received whole. Dropped, it is deleted.
#[derive(Debug)]
pub(crate) struct Spooled {
    path: TempPath,
    /// SHA-256 of the content, 64 lower-case hex digits.
    pub(crate) sha256: String,
    /// Length of the content.
    pub(crate) bytes: u64,
}

impl Spooled {
    /// Where it lies.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }
}

impl SpoolFile {
    /// Bytes taken so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a piece, waiting while the disk is behind.
    pub(crate) async fn write(&mut self, piece: Bytes) -> io::Result<()> {
        self.bytes += piece.len() as u64;
        if self.pieces.send(piece).await.is_ok() {
            return Ok(());
        }
        // The writer only stops early when it failed.
        match (&mut self.writer).await {
            Ok(Err(error)) => Err(error),
            _ => Err(io::Error::other("the spool's writer stopped")),
        }
    }

    /// Waits until everything is written.
    pub(crate) async fn finish(self) -> io::Result<Spooled> {
        drop(self.pieces);
        self.writer.await.map_err(io::Error::other)?
    }
}

fn write(folder: &Path, mut pieces: mpsc::Receiver<Bytes>) -> io::Result<Spooled> {
    let mut file = NamedTempFile::new_in(folder)?;
    let (mut sha256, mut bytes) = (Sha256::new(), 0);
    while let Some(piece) = pieces.blocking_recv() {
        file.write_all(&piece)?;
        sha256.update(&piece);
        bytes += piece.len() as u64;
    }
    Ok(Spooled { path: file.into_temp_path(), sha256: hex::encode(sha256.finalize()), bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[tokio::test]
    async fn a_finished_file_has_its_hash_and_disappears_when_dropped() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::open(root.path()).unwrap();
        let mut file = spool.begin();
        file.write(Bytes::from_static(b"ab")).await.unwrap();
        file.write(Bytes::from_static(b"c")).await.unwrap();
        let done = file.finish().await.unwrap();
        assert_eq!(done.bytes, 3);
        assert_eq!(done.sha256, hex::encode(Sha256::digest(b"abc")));
        assert_eq!(fs::read(done.path()).unwrap(), b"abc");
        drop(done);
        assert!(files(root.path()).is_empty());
    }

    #[test]
    fn files_of_a_dead_process_are_deleted_and_those_of_a_living_one_are_not() {
        let root = tempfile::tempdir().unwrap();
        let dead = root.path().join("gateway-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        fs::write(dead.join("half an upload"), "x").unwrap();
        let living = Spool::open(root.path()).unwrap();
        assert!(!dead.exists());
        fs::write(living.folder.path().join("being written"), "x").unwrap();
        let _other = Spool::open(root.path()).unwrap();
        assert_eq!(files(root.path()).len(), 1);
    }
}
