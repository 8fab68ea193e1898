//! Where an upload lies until it is verified: a folder of temporary files that dies with the process.
//!
//! Each process has a folder of its own below `<data_dir>/spool`, marked by a locked file, so that
//! several gateways may share a disk. On start the folders of processes that are gone are emptied.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
};

use tempfile::{NamedTempFile, TempDir};

const LOCK: &str = "lock";

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

    /// A new file; it disappears when it is dropped, unless it is moved.
    pub(crate) fn file(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(self.folder.path())
    }
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
        let spool = Spool::open(root.path()).unwrap();
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
        let living = Spool::open(root.path()).unwrap();
        assert!(!dead.exists());
        fs::write(living.folder.path().join("being written"), "x").unwrap();
        let _other = Spool::open(root.path()).unwrap();
        assert_eq!(files(root.path()).len(), 1);
    }
}
