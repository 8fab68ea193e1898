//! Where the bytes of a published file come from: this disk, or the artifact store.

use std::{fs::File, io, sync::Arc, time::SystemTime};

use axum::body::Body;
use checkpoint::FileInfo;
use futures::{StreamExt as _, TryFutureExt as _, stream};
use store::Artifact;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    app::App, config::RemoteDownloads, error::Error, metrics, outgoing::FilePart, view::Base,
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
        Ok(Self { key, artifact })
    }

    /// When it was published, by the artifact store's clock: the same at every gateway, which the age of a
    /// copy on this disk would not be.
    pub(crate) fn modified(&self) -> Option<SystemTime> {
        self.artifact.modified()
    }

    /// `len` bytes from `start`. The permit is given back when they are sent, or will not be.
    pub(crate) async fn content(
        self,
        app: &App,
        start: u64,
        len: u64,
        permit: OwnedSemaphorePermit,
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
                    None => self.stream(app, start, len, permit),
                });
            }
            (None, RemoteDownloads::Stream | RemoteDownloads::Redirect) => {
                return Ok(self.stream(app, start, len, permit));
            }
        };
        let file = open(&path, self.artifact.len())
            .await
            .map_err(|error| Error::unavailable("open the checkpoint", error))?;
        let from = Arc::new(Sending::new(file, permit));
        Ok(Content::File(FilePart { from, start, len }))
    }

    /// The bytes in parts, some of which are asked for ahead. When one can't be had, or is of other content
    /// than was found, the connection breaks, and the client goes on from there.
    fn stream(self, app: &App, start: u64, len: u64, permit: OwnedSemaphorePermit) -> Content {
        let end = start.saturating_add(len);
        let parts = stream::iter(
            (start..end)
                .step_by(usize::try_from(PART).unwrap_or(usize::MAX))
                .map(move |at| at..at.saturating_add(PART).min(end)),
        );
        let shutdown = app.shutdown.clone();
        let artifact = self.artifact;
        let pieces = parts
            .map(move |range| {
                let artifact = artifact.clone();
                // A task: a part arrives whether or not the client takes the one before it.
                let reading = async move { artifact.read(range).await };
                shutdown.spawn(reading).map_err(io::Error::other)
            })
            .buffered(PARTS)
            .map(move |read| {
                let _held = &permit;
                let bytes = read?.map_err(|error| {
                    tracing::warn!(%error, "a download broke off: the artifact store failed");
                    io::Error::other(error)
                })?;
                metrics::download_bytes(bytes.len() as u64);
                Ok::<_, io::Error>(bytes)
            });
        Content::Stream(Body::from_stream(pieces))
    }
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
