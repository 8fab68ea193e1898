//! Files that never change: models, submissions, records.

mod error;
mod key;
mod local;
mod read;
mod remote;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
pub use error::ArtifactError;
use object_store::{
    ObjectStore, aws::AmazonS3Builder, memory::InMemory, path::Path as ObjectPath,
    prefix::PrefixStore,
};

pub use self::read::Artifact;
use self::{local::Local, read::Signing, remote::Remote};

/// A file on this disk with the content of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Where it is: the store's own file, or a cached copy.
    pub path: PathBuf,
    /// Bytes that were copied for it; 0 when it was here already.
    pub copied: u64,
}

/// A store of files by key. Cheap to clone.
///
/// A key is a path of segments of ASCII letters, digits and `-_.=+@`, none of which begins with a
/// dot: `models/7/manifest.json`; none may continue another. A file becomes visible whole or not at all, and its content
/// never changes: putting the same bytes again is fine, others are
/// [`ArtifactError::Conflict`].
#[derive(Debug, Clone)]
pub struct Artifacts(Arc<Place>);

#[derive(Debug)]
enum Place {
    Local(Local),
    Remote(Remote),
}

impl Artifacts {
    /// Opens `file:PATH` or `file:///PATH` (made if missing), `s3://bucket/prefix` or `memory://`.
    ///
    /// Access to S3 is configured by the environment (`AWS_ACCESS_KEY_ID`, `AWS_REGION`,
    /// `AWS_ENDPOINT`, ...). What is not on this disk is copied to `cache_dir` to be read as a
    /// file. `memory://` is new each time, for tests.
    ///
    /// # Errors
    ///
    /// [`ArtifactError::Url`], and [`ArtifactError::File`] when a folder can't be made.
    pub fn open(url: &str, cache_dir: &Path) -> Result<Self, ArtifactError> {
        let refused = |reason: String| ArtifactError::Url { url: url.to_owned(), reason };
        let place = if let Some(path) = url.strip_prefix("file:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(refused("it names no folder".to_owned()));
            }
            Place::Local(Local::open(Path::new(path))?)
        } else if let Some(rest) = url.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(refused("it names no bucket".to_owned()));
            }
            let prefix = ObjectPath::parse(prefix).map_err(|error| refused(error.to_string()))?;
            // The client panics without; whoever chose one before keeps it.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let s3 = AmazonS3Builder::from_env()
                .with_bucket_name(bucket)
                .build()
                .map_err(|error| refused(error.to_string()))?;
            let signing = Signing { signer: Arc::new(s3.clone()), prefix: prefix.clone() };
            let objects = Arc::new(PrefixStore::new(s3, prefix));
            Place::Remote(Remote::open(objects, cache_dir)?.signed_by(signing))
        } else if url == "memory://" {
            let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            Place::Remote(Remote::open(memory, cache_dir)?)
        } else {
            return Err(refused("it must begin with file:, s3:// or memory://".to_owned()));
        };
        Ok(Self(Arc::new(place)))
    }

    /// Puts `bytes` at `key`.
    ///
    /// # Errors
    ///
    /// [`ArtifactError::Conflict`] when other bytes are there; [`ArtifactError::Key`], and what
    /// the engine fails with.
    pub async fn put_bytes(&self, key: &str, bytes: Bytes) -> Result<(), ArtifactError> {
        let key = key::checked(key)?;
        match &*self.0 {
            Place::Local(local) => local.put_bytes(&key, bytes).await,
            Place::Remote(remote) => remote.put_bytes(&key, bytes).await,
        }
    }

    /// Puts a copy of the file at `path` at `key`. The file is read as a stream, and left.
    ///
    /// # Errors
    ///
    /// As [`Self::put_bytes`], and [`ArtifactError::File`] when it can't be read.
    pub async fn put_file(&self, key: &str, path: &Path) -> Result<(), ArtifactError> {
        let key = key::checked(key)?;
        match &*self.0 {
            Place::Local(local) => local.put_file(&key, path, false).await,
            Place::Remote(remote) => remote.put_file(&key, path).await,
        }
    }

    /// Moves the file at `path` to `key`: without copying where both are on one disk.
    ///
    /// Nobody may have it open for writing. It is gone afterwards, unless there is an error.
    ///
    /// # Errors
    ///
    /// As [`Self::put_file`].
    pub async fn move_file(&self, key: &str, path: &Path) -> Result<(), ArtifactError> {
        let key = key::checked(key)?;
        match &*self.0 {
            Place::Local(local) => local.put_file(&key, path, true).await,
            Place::Remote(remote) => {
                remote.put_file(&key, path).await?;
                tokio::fs::remove_file(path)
                    .await
                    .map_err(|error| ArtifactError::file("remove", path, &error))
            }
        }
    }

    /// Returns the content of `key`, of at most `max_len` bytes.
    ///
    /// # Errors
    ///
    /// [`ArtifactError::NotFound`], [`ArtifactError::TooLarge`], [`ArtifactError::Key`], and what
    /// the engine fails with.
    pub async fn get_bytes(&self, key: &str, max_len: u64) -> Result<Bytes, ArtifactError> {
        let key = key::checked(key)?;
        match &*self.0 {
            Place::Local(local) => local.get_bytes(&key, max_len).await,
            Place::Remote(remote) => remote.get_bytes(&key, max_len).await,
        }
    }

    /// Returns a file on this disk with the content of `key`: the file itself, or a cached copy.
    ///
    /// It must not be written to. It may be gone once its prefix is deleted.
    ///
    /// # Errors
    ///
    /// [`ArtifactError::NotFound`], [`ArtifactError::Key`], and what the engine fails with.
    pub async fn local_file(&self, key: &str) -> Result<PathBuf, ArtifactError> {
        Ok(self.fetch(key).await?.path)
    }

    /// As [`Self::local_file`], and says what it cost. A download that breaks goes on where it
    /// ended, several times.
    ///
    /// # Errors
    ///
    /// As [`Self::local_file`].
    pub async fn fetch(&self, key: &str) -> Result<Fetched, ArtifactError> {
        let key = key::checked(key)?;
        match &*self.0 {
            Place::Local(local) => Ok(Fetched { path: local.file(&key).await?, copied: 0 }),
            Place::Remote(remote) => remote.file(&key).await,
        }
    }

    /// Removes the cached copy of `key`, never the artifact itself, and returns whether there was
    /// one. Whoever has it open or mapped keeps it.
    ///
    /// # Errors
    ///
    /// [`ArtifactError::Key`], and [`ArtifactError::File`] when it can't be removed.
    pub async fn drop_copy(&self, key: &str) -> Result<bool, ArtifactError> {
        let key = key::checked(key)?;
        match &*self.0 {
            Place::Local(_) => Ok(false),
            Place::Remote(remote) => remote.drop_copy(&key).await,
        }
    }

    /// Returns whether `key` is there.
    ///
    /// # Errors
    ///
    /// [`ArtifactError::Key`], and what the engine fails with.
    pub async fn exists(&self, key: &str) -> Result<bool, ArtifactError> {
        Ok(self.size(key).await?.is_some())
    }

    /// Returns the size of `key` in bytes, if it is there.
    ///
    /// # Errors
    ///
    /// [`ArtifactError::Key`], and what the engine fails with.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, ArtifactError> {
        let key = key::checked(key)?;
        match &*self.0 {
            Place::Local(local) => local.size(&key).await,
            Place::Remote(remote) => remote.size(&key).await,
        }
    }

    /// Returns the keys under `prefix` (all, if it is empty), in ascending order.
    ///
    /// A prefix is whole segments: `rounds/1` is no prefix of `rounds/12/record.json`.
    ///
    /// # Errors
    ///
    /// [`ArtifactError::Key`], and what the engine fails with.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, ArtifactError> {
        let prefix = match prefix {
            "" => None,
            prefix => Some(key::checked(prefix.trim_end_matches('/'))?),
        };
        remote::list(self.objects(), prefix.as_ref()).await
    }

    /// Deletes everything under `prefix`, which must not be empty, and returns how many there
    /// were.
    ///
    /// # Errors
    ///
    /// [`ArtifactError::Key`], and what the engine fails with: then some may be left.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<usize, ArtifactError> {
        let prefix = key::checked(prefix.trim_end_matches('/'))?;
        let count = remote::delete(self.objects(), &prefix).await?;
        if let Place::Remote(remote) = &*self.0 {
            remote.forget(&prefix).await?;
        }
        Ok(count)
    }

    fn objects(&self) -> &dyn ObjectStore {
        match &*self.0 {
            Place::Local(local) => local.objects(),
            Place::Remote(remote) => remote.objects(),
        }
    }
}
