//! The file that is submitted, as bodies are made of it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use reqwest::{Body, RequestBuilder, Response};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _, SeekFrom},
    time::{Instant, sleep_until},
};
use tokio_util::io::{InspectReader, ReaderStream};

use crate::{
    error::ClientError,
    gateway::MinerClient,
    progress::{Event, Progress},
};

/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;
/// Endings of names that gateways take.
const ENDINGS: [&str; 5] = [".pt", ".bin", ".ckpt", ".safetensors", ".tar"];
/// Longest name that gateways take, in bytes.
const LONGEST_NAME: usize = 128;

/// A checkpoint on this disk.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// What the gateway is told that it is called.
    pub(crate) name: String,
}

/// How much of a body has left, as whoever sends it sees.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moved(Arc<AtomicU64>);

impl Moved {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Source {
    pub(crate) async fn open(path: &Path) -> Result<Self, ClientError> {
        let here = |source| ClientError::File { path: path.to_owned(), source };
        let metadata = tokio::fs::metadata(path).await.map_err(here)?;
        if !metadata.is_file() {
            return Err(here(io::Error::other("it is not a file")));
        }
        Ok(Self { path: path.to_owned(), bytes: metadata.len(), name: name(path) })
    }

    /// The file from `offset` on, as a body. `progress` is told how far it got.
    pub(crate) async fn body(
        &self,
        offset: u64,
        progress: &Arc<dyn Progress>,
    ) -> Result<(Body, Moved), ClientError> {
        let here = |source| ClientError::File { path: self.path.clone(), source };
        let mut file = File::open(&self.path).await.map_err(here)?;
        file.set_max_buf_size(PIECE);
        file.seek(SeekFrom::Start(offset)).await.map_err(here)?;
        let moved = Moved::default();
        let (counted, progress) = (moved.clone(), Arc::clone(progress));
        progress.on(Event::From { offset, total: self.bytes });
        // A file that grows meanwhile must not make the body longer than was announced.
        let rest = file.take(self.bytes.saturating_sub(offset));
        let total = self.bytes;
        let inspected = InspectReader::new(rest, move |piece: &[u8]| {
            let before = counted.0.fetch_add(piece.len() as u64, Ordering::Relaxed);
            let at = offset + before + piece.len() as u64;
            progress.on(Event::At(at));
            if at == total && !piece.is_empty() {
                progress.on(Event::Sent);
            }
        });
        Ok((Body::wrap_stream(ReaderStream::with_capacity(inspected, PIECE)), moved))
    }
}

impl MinerClient {
    /// Sends a request with a body of many bytes, of which `length` are to come. As long as they move there is no
    /// limit but `until`; after the last one the gateway has its time to look at them.
    pub(crate) async fn send_file(
        &self,
        request: RequestBuilder,
        moved: &Moved,
        length: u64,
        until: Option<Instant>,
    ) -> Result<Response, ClientError> {
        let stalled = async {
            let mut seen = moved.bytes();
            loop {
                let sent = seen >= length;
                let limit = if sent {
                    self.gateway.patience.verdict
                } else {
                    self.gateway.patience.silence
                };
                sleep_until(Instant::now() + limit).await;
                let now = moved.bytes();
                if now == seen {
                    return ClientError::Silent(limit);
                }
                seen = now;
            }
        };
        let late = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            response = self.gateway.with_token(request).send() => Ok(response?),
            error = stalled => Err(error),
            () = late => {
                let last = Box::new(ClientError::Silent(self.gateway.patience.silence));
                Err(ClientError::OutOfTime { last })
            }
        }
    }
}

/// The path with another ending behind its own.
pub(crate) fn sibling(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    path.with_file_name(name)
}

/// The file's own name where a gateway would take it; else one that says as much.
fn name(path: &Path) -> String {
    let own = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let plain = own.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.=+@".contains(&b));
    let ending = ENDINGS.into_iter().find(|ending| own.ends_with(ending));
    let safe = plain && own.len() <= LONGEST_NAME && !own.starts_with('.') && !own.contains("..");
    match ending {
        Some(_) if safe => own.to_owned(),
        ending => format!("model{}", ending.unwrap_or(".pt")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_be_refused_is_not_sent() {
        for (own, sent) in [
            ("submission.pt", "submission.pt"),
            ("/a/b c.safetensors", "model.safetensors"),
            ("modèle.pt", "model.pt"),
            (".pt", "model.pt"),
            ("a..pt", "model.pt"),
            ("model", "model.pt"),
            ("model.PT", "model.pt"),
        ] {
            assert_eq!(name(Path::new(own)), sent);
        }
        assert_eq!(name(Path::new(&format!("{}.ckpt", "a".repeat(200)))), "model.ckpt");
    }
}
