//! Artifacts in an object store, with copies on this disk for what must be read as a file.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{
    Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
    buffered::BufWriter, path::Path as Key,
};
use tokio::{
    fs::{self, File},
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};
use uuid::Uuid;

use super::{ArtifactError, Fetched, local, read::Signing};

const STAGING: &str = ".staging";
/// Smallest part of an upload; S3 takes at most 10 000 parts.
const PART: u64 = 16 << 20;
const MOST_PARTS: u64 = 9_000;
/// Tries in a row of a download that bring not a byte.
const VAIN_TRIES: u32 = 5;
/// Pause after the first of them; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Remote {
    objects: Arc<dyn ObjectStore>,
    cache: PathBuf,
    /// One lock per key that is being copied, so that it is copied once.
    copying: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Who signs URLs of objects, if anybody can.
    signing: Option<Signing>,
}

impl Remote {
    pub(super) fn open(objects: Arc<dyn ObjectStore>, cache: &Path) -> Result<Self, ArtifactError> {
        let failed = |error| ArtifactError::file("open the cache", cache, &error);
        std::fs::create_dir_all(cache.join(STAGING)).map_err(failed)?;
        let cache = cache.canonicalize().map_err(failed)?;
        local::sweep(&cache.join(STAGING)).map_err(failed)?;
        Ok(Self { objects, cache, copying: Mutex::default(), signing: None })
    }

    pub(super) fn signed_by(self, signing: Signing) -> Self {
        Self { signing: Some(signing), ..self }
    }

    pub(super) fn signing(&self) -> Option<&Signing> {
        self.signing.as_ref()
    }

    pub(super) fn shared(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.objects)
    }

    pub(super) fn objects(&self) -> &dyn ObjectStore {
        &*self.objects
    }

    pub(super) async fn put_bytes(&self, key: &Key, bytes: Bytes) -> Result<(), ArtifactError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.objects.put_opts(key, bytes.clone().into(), options).await {
            Ok(_) => Ok(()),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                match self.get_bytes(key, bytes.len() as u64).await {
                    Ok(there) if there == bytes => Ok(()),
                    Ok(_) | Err(ArtifactError::TooLarge { .. }) => {
                        Err(ArtifactError::Conflict { key: key.to_string() })
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(ArtifactError::engine(key, error)),
        }
    }

    /// Uploads in parts, which become visible together.
    ///
    /// Unlike bytes, two files put at one key at the same moment are not told apart: the later
    /// one stays.
    pub(super) async fn put_file(&self, key: &Key, path: &Path) -> Result<(), ArtifactError> {
        let failed = |error| ArtifactError::file("read", path, &error);
        let mut file = File::open(path).await.map_err(failed)?;
        let len = file.metadata().await.map_err(failed)?.len();
        if let Some(there) = self.size(key).await? {
            return if there == len && self.same(key, &mut file, path).await? {
                Ok(())
            } else {
                Err(ArtifactError::Conflict { key: key.to_string() })
            };
        }

        let part = usize::try_from(PART.max(len / MOST_PARTS + 1)).unwrap_or(usize::MAX);
        let mut upload = BufWriter::with_capacity(Arc::clone(&self.objects), key.clone(), part);
        let copied = async {
            tokio::io::copy(&mut file, &mut upload).await?;
            upload.shutdown().await
        };
        if let Err(error) = copied.await {
            // Parts of what was begun cost money until they are taken back.
            let _ = upload.abort().await;
            return Err(ArtifactError::Engine { key: key.to_string(), reason: error.to_string() });
        }
        Ok(())
    }

    /// Returns whether `key` has the content of `file`.
    async fn same(&self, key: &Key, file: &mut File, path: &Path) -> Result<bool, ArtifactError> {
        let there =
            self.objects.get(key).await.map_err(|error| ArtifactError::engine(key, error))?;
        let mut chunks = there.into_stream();
        let mut here = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| ArtifactError::engine(key, error))?;
            here.resize(chunk.len(), 0);
            match file.read_exact(&mut here).await {
                Ok(_) if here == chunk => {}
                Ok(_) => return Ok(false),
                Err(error) => return Err(ArtifactError::file("read", path, &error)),
            }
        }
        Ok(true)
    }

    pub(super) async fn get_bytes(&self, key: &Key, max: u64) -> Result<Bytes, ArtifactError> {
        let engine = |error| ArtifactError::engine(key, error);
        let found = self.objects.get(key).await.map_err(engine)?;
        let len = found.meta.size;
        if len > max {
            return Err(ArtifactError::TooLarge { key: key.to_string(), len, max });
        }
        found.bytes().await.map_err(engine)
    }

    pub(super) async fn size(&self, key: &Key) -> Result<Option<u64>, ArtifactError> {
        match self.objects.head(key).await {
            Ok(found) => Ok(Some(found.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(ArtifactError::engine(key, error)),
        }
    }

    /// Returns the copy of `key` on this disk, made if there is none.
    pub(super) async fn file(&self, key: &Key) -> Result<Fetched, ArtifactError> {
        let lock = self.lock(key);
        let _copying = lock.lock().await;

        let len = self
            .size(key)
            .await?
            .ok_or_else(|| ArtifactError::NotFound { key: key.to_string() })?;
        let path = self.cache.join(key.as_ref());
        if fs::metadata(&path).await.is_ok_and(|found| found.is_file() && found.len() == len) {
            return Ok(Fetched { path, copied: 0 });
        }

        let staged = Staged(self.cache.join(STAGING).join(Uuid::new_v4().to_string()));
        self.copy(key, len, &staged.0, &path).await?;
        Ok(Fetched { path, copied: len })
    }

    /// Removes the copy of `key`, and returns whether there was one.
    pub(super) async fn drop_copy(&self, key: &Key) -> Result<bool, ArtifactError> {
        let path = self.cache.join(key.as_ref());
        match fs::remove_file(&path).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ArtifactError::file("remove", &path, &error)),
        }
    }

    async fn copy(
        &self,
        key: &Key,
        len: u64,
        staged: &Path,
        path: &Path,
    ) -> Result<(), ArtifactError> {
        let failed = |error| ArtifactError::file("write", staged, &error);
        // The lock tells a sweep that somebody is still writing.
        let file = std::fs::File::create_new(staged).map_err(failed)?;
        file.lock().map_err(failed)?;
        let mut file = File::from_std(file);
        let (mut written, mut vain) = (0, 0);
        loop {
            let before = written;
            let broken = match self.append(key, &mut file, staged, &mut written).await {
                Ok(()) if written == len => break,
                Ok(()) => {
                    let reason = format!("{written} bytes came instead of {len}");
                    ArtifactError::Engine { key: key.to_string(), reason }
                }
                Err(error) => error,
            };
            vain = if written > before { 0 } else { vain + 1 };
            let again = matches!(broken, ArtifactError::Engine { .. })
                && written < len
                && vain < VAIN_TRIES;
            if !again {
                return Err(broken);
            }
            sleep(FIRST_PAUSE * 2u32.pow(vain.saturating_sub(1))).await;
        }
        file.sync_all().await.map_err(failed)?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).await.map_err(failed)?;
        }
        fs::rename(staged, path).await.map_err(failed)
    }

    /// Appends what `file` does not have yet of `key`: content never changes, so a download that
    /// broke goes on where it ended.
    async fn append(
        &self,
        key: &Key,
        file: &mut File,
        staged: &Path,
        written: &mut u64,
    ) -> Result<(), ArtifactError> {
        let failed = |error| ArtifactError::file("write", staged, &error);
        let engine = |error| ArtifactError::engine(key, error);
        let range = (*written > 0).then_some(GetRange::Offset(*written));
        let options = GetOptions { range, ..GetOptions::default() };
        let found = self.objects.get_opts(key, options).await.map_err(engine)?;
        if found.range.start != *written {
            let reason = format!("it begins at {} instead of {written}", found.range.start);
            return Err(ArtifactError::Engine { key: key.to_string(), reason });
        }
        let mut chunks = found.into_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(engine)?;
            file.write_all(&chunk).await.map_err(failed)?;
            *written += chunk.len() as u64;
        }
        // What is still in the handle's buffer belongs to `written`.
        file.flush().await.map_err(failed)
    }

    fn lock(&self, key: &Key) -> Arc<tokio::sync::Mutex<()>> {
        let mut copying = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        copying.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = copying.get(key.as_ref()).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        copying.insert(key.to_string(), Arc::downgrade(&lock));
        lock
    }

    /// Removes the copies of what is under `prefix`.
    pub(super) async fn forget(&self, prefix: &Key) -> Result<(), ArtifactError> {
        let folder = self.cache.join(prefix.as_ref());
        match fs::remove_dir_all(&folder).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(ArtifactError::file("remove", &folder, &error)),
        }
    }
}

/// A file that nobody sees yet. Removed when dropped, also when the caller gives up waiting.
struct Staged(PathBuf);

impl Drop for Staged {
    fn drop(&mut self) {
        // It has its name already, or what can't be removed now is swept later.
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(super) async fn list(
    objects: &dyn ObjectStore,
    prefix: Option<&Key>,
) -> Result<Vec<String>, ArtifactError> {
    let found: Result<Vec<_>, _> =
        objects.list(prefix).map_ok(|meta| meta.location.to_string()).try_collect().await;
    let mut keys = found.map_err(|error| ArtifactError::engine(named(prefix), error))?;
    keys.retain(|key| !key.starts_with('.'));
    keys.sort_unstable();
    Ok(keys)
}

pub(super) async fn delete(
    objects: &dyn ObjectStore,
    prefix: &Key,
) -> Result<usize, ArtifactError> {
    let keys = objects.list(Some(prefix)).map_ok(|meta| meta.location).boxed();
    let mut deleted = objects.delete_stream(keys);
    let mut count = 0;
    while let Some(result) = deleted.next().await {
        match result {
            Ok(_) => count += 1,
            // Somebody else was faster.
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(ArtifactError::engine(prefix, error)),
        }
    }
    Ok(count)
}

fn named(prefix: Option<&Key>) -> String {
    prefix.map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests;
