//! Where the bytes of a published file come from: this disk, or the artifact store.

use std::{fs::File, io, ops::Range, sync::Arc, time::SystemTime};

use axum::body::Body;
use bytes::Bytes;
use checkpoint::FileInfo;
use futures::{Stream, StreamExt as _, stream};
use kit::Shutdown;
use store::Artifact;

use crate::{
    app::{App, Slot},
    config::RemoteDownloads,
    error::Error,
    metrics,
    outgoing::FilePart,
    view::Base,
    wire::Sending,
};

/// Bytes that are asked of the artifact store at a time.
const PART: u64 = 1 << 20;
/// Parts of one download that are asked for at a time, or wait for the client: the memory it costs.
const PARTS: usize = 4;

/// A published file that was found, of the length that the manifest says.
#[derive(Debug)]
pub(crate) struct Source {
    key: String,
    sha256: String,
    artifact: Artifact,
}

/// What an answer's body is made of.
#[derive(Debug)]
pub(crate) enum Content {
    /// A part of a file on this disk.
    File(FilePart),
    /// Bytes that come from elsewhere.
    Stream(Body),
    /// A URL at which the artifact store gives them out.
    Elsewhere(String),
}

impl Source {
    /// Looks for a file of the model.
    pub(crate) async fn find(app: &App, base: &Base, file: &FileInfo) -> Result<Self, Error> {
        let key = format!("{}/{}", base.prefix, file.name);
        let artifact = app
            .artifacts
            .find(&key)
            .await
            .map_err(|error| Error::unavailable("find the checkpoint", error))?;
        check_length(artifact.len(), file.bytes)
            .map_err(|error| Error::unavailable("find the checkpoint", error))?;
        Ok(Self { key, sha256: file.sha256.clone(), artifact })
    }

    /// When it was published, by the artifact store's clock: the same at every gateway, which the age of a
    /// copy on this disk would not be.
    pub(crate) fn modified(&self) -> Option<SystemTime> {
        self.artifact.modified()
    }

    /// `len` bytes from `start`. The slot is given back when they are sent, or will not be.
    pub(crate) async fn content(
        self,
        app: &App,
        start: u64,
        len: u64,
        slot: Slot,
        may_redirect: bool,
    ) -> Result<Content, Error> {
        let failed = |error| Error::unavailable("read the checkpoint", error);
        let mode = app.config.remote_downloads;
        let path = match (self.artifact.path(), mode) {
            (Some(path), _) => path.to_owned(),
            (None, RemoteDownloads::Copy) => {
                app.artifacts.local_file(&self.key).await.map_err(failed)?
            }
            (None, RemoteDownloads::Redirect) if may_redirect => {
                let valid = app.config.redirect_lifetime;
                let url = app.artifacts.signed_url(&self.key, valid).await.map_err(failed)?;
                return Ok(match url {
                    Some(url) => Content::Elsewhere(url),
                    None => self.stream(app, start, len, slot),
                });
            }
            (None, RemoteDownloads::Stream | RemoteDownloads::Redirect) => {
                return Ok(self.stream(app, start, len, slot));
            }
        };
        let file = open(&path, self.artifact.len())
            .await
            .map_err(|error| Error::unavailable("open the checkpoint", error))?;
        // A form is waited for as long.
        app.sound.check(&file, &self.sha256, app.config.header_timeout).await?;
        let from = Arc::new(Sending::new(file, slot));
        Ok(Content::File(FilePart { from, start, len }))
    }

    fn stream(self, app: &App, start: u64, len: u64, slot: Slot) -> Content {
        let range = start..start.saturating_add(len);
        let pieces = pieces(self.artifact, range, app.shutdown.clone()).inspect(move |piece| {
            let _held = &slot;
            match piece {
                Ok(bytes) => metrics::download_bytes(bytes.len() as u64),
                Err(error) => tracing::warn!(%error, "a download broke off"),
            }
        });
        Content::Stream(Body::from_stream(pieces))
    }
}

/// The bytes in parts, some of which are asked for ahead. When one can't be had, or is of other content
/// than was found, the connection breaks, and the client goes on from there.
fn pieces(
    artifact: Artifact,
    range: Range<u64>,
    shutdown: Shutdown,
) -> impl Stream<Item = io::Result<Bytes>> {
    let end = range.end;
    let parts = range
        .step_by(usize::try_from(PART).unwrap_or(usize::MAX))
        .map(move |at| at..at.saturating_add(PART).min(end));
    stream::iter(parts)
        .map(move |part| {
            let artifact = artifact.clone();
            // A task: a part arrives whether or not the client takes the one before it.
            shutdown.spawn(async move { artifact.read(part).await })
        })
        .buffered(PARTS)
        .map(|read| read.map_err(io::Error::other)?.map_err(io::Error::other))
}

async fn open(path: &std::path::Path, len: u64) -> io::Result<File> {
    let file = tokio::fs::File::open(path).await?;
    check_length(file.metadata().await?.len(), len)?;
    Ok(file.into_std().await)
}

fn check_length(found: u64, wanted: u64) -> io::Result<()> {
    if found == wanted {
        Ok(())
    } else {
        Err(io::Error::other(format!("{found} bytes instead of {wanted}")))
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;
    use store::Artifacts;

    use super::*;

    async fn read(artifact: &Artifact, range: Range<u64>) -> io::Result<Vec<u8>> {
        let parts: Vec<Bytes> =
            pieces(artifact.clone(), range, Shutdown::default()).try_collect().await?;
        assert!(parts.iter().all(|part| part.len() as u64 <= PART));
        Ok(parts.concat())
    }

    #[tokio::test]
    async fn a_file_of_the_artifact_store_is_read_in_parts_from_any_byte_to_any_byte() {
        let cache = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open("memory://", cache.path()).unwrap();
        let content: Vec<u8> = (0..5_000_001_u32).map(|n| (n / 3) as u8).collect();
        artifacts.put_bytes("models/1/a.pt", content.clone().into()).await.unwrap();
        let artifact = artifacts.find("models/1/a.pt").await.unwrap();
        assert!(artifact.modified().is_some() && artifact.path().is_none());
        let len = content.len();
        for (from, to) in [(0, len), (1, len), (7, 8), (len - 1, len), (PART as usize, len), (5, 5)]
        {
            let read = read(&artifact, from as u64..to as u64).await.unwrap();
            assert!(read == content[from..to], "{from}..{to}");
        }
    }

    #[tokio::test]
    async fn a_stream_breaks_when_the_file_is_another_one_by_now_or_gone() {
        let cache = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open("memory://", cache.path()).unwrap();
        artifacts.put_bytes("models/1/a.pt", Bytes::from(vec![1; 1000])).await.unwrap();
        let artifact = artifacts.find("models/1/a.pt").await.unwrap();
        assert_eq!(read(&artifact, 0..1000).await.unwrap(), vec![1; 1000]);
        artifacts.delete_prefix("models/1").await.unwrap();
        assert!(read(&artifact, 0..1000).await.is_err());
        artifacts.put_bytes("models/1/a.pt", Bytes::from(vec![2; 1000])).await.unwrap();
        assert!(read(&artifact, 500..1000).await.is_err());
    }
}
