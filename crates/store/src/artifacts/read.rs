//! Reading an artifact where it lies: in ranges, without a copy of the whole, or by a signed URL.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use object_store::{
    Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _,
    path::Path as Key,
    signer::{Method, Signer},
};

use super::{ArtifactError, Artifacts, Place, key};

/// An artifact that was found, as it was then.
#[derive(Debug, Clone)]
pub struct Artifact {
    key: Key,
    len: u64,
    modified: Option<SystemTime>,
    at: At,
}

#[derive(Debug, Clone)]
enum At {
    Disk(PathBuf),
    Objects {
        objects: Arc<dyn ObjectStore>,
        /// What the object store calls this content, where it has names for contents.
        tag: Option<String>,
    },
}

/// Who signs URLs, and the prefix of what it signs for.
#[derive(Debug, Clone)]
pub(super) struct Signing {
    pub(super) signer: Arc<dyn Signer>,
    pub(super) prefix: Key,
}

impl Artifacts {
    /// Finds `key`, to be read in ranges.
    ///
    /// # Errors
    ///
    /// [`ArtifactError::NotFound`], [`ArtifactError::Key`], and what the engine fails with.
    pub async fn find(&self, key: &str) -> Result<Artifact, ArtifactError> {
        let key = key::checked(key)?;
        match &*self.0 {
            Place::Local(local) => {
                let path = local.file(&key).await?;
                let failed = |error| ArtifactError::file("look at", &path, &error);
                let found = tokio::fs::metadata(&path).await.map_err(failed)?;
                let (len, modified) = (found.len(), found.modified().ok());
                Ok(Artifact { key, len, modified, at: At::Disk(path) })
            }
            Place::Remote(remote) => {
                let objects = remote.shared();
                let found = objects.head(&key).await;
                let found = found.map_err(|error| ArtifactError::engine(&key, error))?;
                Ok(Artifact {
                    key,
                    len: found.size,
                    modified: Some(found.last_modified.into()),
                    at: At::Objects { objects, tag: found.e_tag },
                })
            }
        }
    }

    /// A URL at which whoever has it may read `key` for as long as `valid`, and nothing else; `None` where
    /// the engine can't make one. Whether the key is there is not looked at.
    ///
    /// # Errors
    ///
    /// [`ArtifactError::Key`], and what the engine fails with.
    pub async fn signed_url(
        &self,
        key: &str,
        valid: Duration,
    ) -> Result<Option<String>, ArtifactError> {
        let key = key::checked(key)?;
        let Place::Remote(remote) = &*self.0 else { return Ok(None) };
        let Some(Signing { signer, prefix }) = remote.signing() else { return Ok(None) };
        let path: Key = prefix.parts().chain(key.parts()).collect();
        let url = signer.signed_url(Method::GET, &path, valid).await;
        let url = url.map_err(|error| ArtifactError::engine(&key, error))?;
        Ok(Some(url.into()))
    }
}

impl Artifact {
    /// Its size in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty artifact is like any other")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// When it was put where it lies, by the clock of the disk or the object store: the same for everybody
    /// who shares that.
    #[must_use]
    pub fn modified(&self) -> Option<SystemTime> {
        self.modified
    }

    /// The file, where it lies on this disk.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.at {
            At::Disk(path) => Some(path),
            At::Objects { .. } => None,
        }
    }

    /// Reads these bytes, of the content that was found and of no other. They are in memory all at once.
    ///
    /// # Errors
    ///
    /// [`ArtifactError::NotFound`], [`ArtifactError::Conflict`] when there is other content by now, and what
    /// the engine fails with, reading behind the end among it.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, ArtifactError> {
        let wanted = range.end.saturating_sub(range.start);
        let bytes = match &self.at {
            At::Disk(path) => read_file(path.clone(), range).await?,
            At::Objects { objects, tag } => {
                let options = GetOptions {
                    if_match: tag.clone(),
                    range: Some(GetRange::Bounded(range)),
                    ..GetOptions::default()
                };
                let engine = |error| {
                    if matches!(error, Error::Precondition { .. }) {
                        return ArtifactError::Conflict { key: self.key.to_string() };
                    }
                    ArtifactError::engine(&self.key, error)
                };
                let found = objects.get_opts(&self.key, options).await.map_err(engine)?;
                found.bytes().await.map_err(engine)?
            }
        };
        if bytes.len() as u64 != wanted {
            let reason = format!("{} bytes came instead of {wanted}", bytes.len());
            return Err(ArtifactError::Engine { key: self.key.to_string(), reason });
        }
        Ok(bytes)
    }
}

async fn read_file(path: PathBuf, range: Range<u64>) -> Result<Bytes, ArtifactError> {
    use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, SeekFrom};
    let failed = |error| ArtifactError::file("read", &path, &error);
    let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
    file.seek(SeekFrom::Start(range.start)).await.map_err(failed)?;
    let mut bytes = Vec::new();
    let wanted = range.end.saturating_sub(range.start);
    file.take(wanted).read_to_end(&mut bytes).await.map_err(failed)?;
    Ok(bytes.into())
}
