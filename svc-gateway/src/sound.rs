//! Whether a file on this disk is, byte for byte, the one that the manifest names.
//!
//! The chain has the model's hash, the manifest has that hash and the digest of every file: a file that has
//! its digest is of the model that was revealed. Each file is read once, when it is first asked for, and then
//! known by what the file system says of it. Reading may take long: it goes on when the client that asked
//! for it is told to come back.

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kit::Shutdown;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::timeout,
};
use tracing::{info, warn};

use crate::error::Error;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;
/// Files that are read at a time; each keeps one processor busy.
const READERS: usize = 2;
/// Files that are remembered: those of many models.
const REMEMBERED: usize = 1024;

/// What is known of files.
#[derive(Debug)]
pub(crate) struct Sound {
    known: Arc<Mutex<HashMap<Identity, watch::Receiver<Option<bool>>>>>,
    readers: Arc<Semaphore>,
    shutdown: Shutdown,
}

/// A content, as far as the file system tells contents apart, and what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    sha256: String,
}

impl Identity {
    fn of(found: &Metadata, sha256: &str) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            len: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
            sha256: sha256.to_ascii_lowercase(),
        }
    }
}

impl Sound {
    pub(crate) fn new(shutdown: Shutdown) -> Self {
        let readers = Arc::new(Semaphore::new(READERS));
        Self { known: Arc::default(), readers, shutdown }
    }

    /// Refuses a file whose digest is not `sha256` (lower-case hex), and one of which that is not known in
    /// time.
    pub(crate) async fn check(
        &self,
        file: &File,
        sha256: &str,
        patience: Duration,
    ) -> Result<(), Error> {
        let unreadable = |error| Error::unavailable("check the checkpoint", error);
        let found = file.metadata().map_err(unreadable)?;
        let mut verdict = self.begin(file, Identity::of(&found, sha256)).map_err(unreadable)?;
        let sound = timeout(patience, verdict.wait_for(Option::is_some)).await;
        match sound.map(|known| known.map(|sound| *sound)) {
            Ok(Ok(Some(true))) => Ok(()),
            Ok(Ok(_)) => Err(Error::unavailable("check the checkpoint", "its digest is another")),
            Ok(Err(_)) => Err(Error::unavailable("check the checkpoint", "it can't be read")),
            Err(_) => Err(Error::Checking),
        }
    }

    /// Where the verdict will be; begins to read when nobody has.
    fn begin(&self, file: &File, identity: Identity) -> io::Result<watch::Receiver<Option<bool>>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verdict) = known.get(&identity) {
            return Ok(verdict.clone());
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        let file = file.try_clone()?;
        let (tell, verdict) = watch::channel(None);
        known.insert(identity.clone(), verdict.clone());
        drop(known);

        let (known, readers) = (Arc::clone(&self.known), Arc::clone(&self.readers));
        let shutdown = self.shutdown.clone();
        self.shutdown.spawn(async move {
            let _reading = readers.acquire().await;
            let sha256 = identity.sha256.clone();
            let read = spawn_blocking(move || digest(&file, &shutdown)).await;
            match read.map_err(io::Error::other).flatten() {
                Ok(digest) => {
                    let sound = digest == sha256;
                    if sound {
                        info!(%sha256, "a file of the model is sound");
                    } else {
                        warn!(%digest, expected = %sha256, "a file of the model is damaged");
                    }
                    tell.send_replace(Some(sound));
                }
                Err(error) => {
                    warn!(%error, "a file of the model can't be read");
                    // Another time, perhaps.
                    known.lock().unwrap_or_else(PoisonError::into_inner).remove(&identity);
                }
            }
        });
        Ok(verdict)
    }
}

fn digest(file: &File, shutdown: &Shutdown) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        if shutdown.is_cancelled() {
            return Err(io::Error::other("the gateway is stopping"));
        }
        match file.read_at(&mut piece, at) {
            Ok(0) => return Ok(hex::encode(digest.finalize())),
            Ok(read) => {
                digest.update(piece.get(..read).unwrap_or_default());
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn sha256(bytes: &[u8]) -> String {
        hex::encode(Sha256::digest(bytes))
    }

    #[tokio::test]
    async fn a_file_is_sound_when_every_byte_is_the_manifests() {
        let sound = Sound::new(Shutdown::default());
        let content = vec![3; 3_000_000];
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        sound.check(&file, &sha256(&content), LONG).await.unwrap();
        let other = sound.check(&file, &sha256(b"other"), LONG).await.unwrap_err();
        assert_eq!(other.reason(), "unavailable");
        // One byte, and the length stays.
        file.write_all_at(&[4], 2_999_999).unwrap();
        assert!(sound.check(&file, &sha256(&content), LONG).await.is_err());
    }

    #[tokio::test]
    async fn who_asks_too_early_is_told_to_come_back_and_is_not_waited_for() {
        let sound = Sound::new(Shutdown::default());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        let held = sound.readers.acquire_many(2).await.unwrap();
        let early = sound.check(&file, &sha256(b"content"), Duration::from_millis(1)).await;
        assert_eq!(early.unwrap_err().reason(), "checking");
        drop(held);
        sound.check(&file, &sha256(b"content"), LONG).await.unwrap();
    }
}
