//! Artifacts in an object store, with copies on this disk for what must be read as a file.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{
    Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, buffered::BufWriter,
    path::Path as Key,
};
use tokio::{
    fs::{self, File},
    io::{AsyncReadExt as _, AsyncWriteExt as _},
};
use uuid::Uuid;

use super::{ArtifactError, local, read::Signing};

const STAGING: &str = ".staging";
/// Smallest part of an upload; S3 takes at most 10 000 parts.
const PART: u64 = 16 << 20;
const MOST_PARTS: u64 = 9_000;

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
    pub(super) async fn file(&self, key: &Key) -> Result<PathBuf, ArtifactError> {
        let lock = self.lock(key);
        let _copying = lock.lock().await;

        let len = self
            .size(key)
            .await?
            .ok_or_else(|| ArtifactError::NotFound { key: key.to_string() })?;
        let path = self.cache.join(key.as_ref());
        if fs::metadata(&path).await.is_ok_and(|found| found.is_file() && found.len() == len) {
            return Ok(path);
        }

        let staged = self.cache.join(STAGING).join(Uuid::new_v4().to_string());
        let copied = self.copy(key, len, &staged, &path).await;
        if copied.is_err() {
            let _ = fs::remove_file(&staged).await;
        }
        copied.map(|()| path)
    }

    async fn copy(
        &self,
        key: &Key,
        len: u64,
        staged: &Path,
        path: &Path,
    ) -> Result<(), ArtifactError> {
        let failed = |error| ArtifactError::file("write", staged, &error);
        let engine = |error| ArtifactError::engine(key, error);
        // The lock tells a sweep that somebody is still writing.
        let file = std::fs::File::create_new(staged).map_err(failed)?;
        file.lock().map_err(failed)?;
        let mut file = File::from_std(file);
        let mut chunks = self.objects.get(key).await.map_err(engine)?.into_stream();
        let mut written = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(engine)?;
            written += chunk.len() as u64;
            file.write_all(&chunk).await.map_err(failed)?;
        }
        if written != len {
            let reason = format!("{written} bytes came instead of {len}");
            return Err(ArtifactError::Engine { key: key.to_string(), reason });
        }
        file.sync_all().await.map_err(failed)?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).await.map_err(failed)?;
        }
        fs::rename(staged, path).await.map_err(failed)
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
