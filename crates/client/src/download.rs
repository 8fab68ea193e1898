//! Downloads that go on to the byte, in this call or in the next, and are whole when they are there.
//!
//! What has come lies in `<file>.part`, and `<file>.etag` says of which file it is. A gateway may send a
//! download to its artifact store; one that goes on asks for the gateway's own bytes, because the store knows
//! nothing of the gateway's tags.

use std::{
    fs::{File, TryLockError},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use checkpoint::{Format, SliceId};
use domain::{GlobalVersion, ModelHash};
use reqwest::{
    Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs,
    io::AsyncWriteExt as _,
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    answer::{self, header},
    error::ClientError,
    gateway::MinerClient,
    progress::Event,
    source::sibling,
    tus,
};

/// Largest file that is taken, in bytes: no model of the subnet comes near.
const LARGEST: u64 = 1 << 40;

/// A file that was downloaded whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// Where it lies.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// How much of it was here before, from a download that had broken off.
    pub resumed_from: u64,
    /// How often it was tried.
    pub tries: u32,
    /// SHA-256 of the file, in hex: announced and found.
    pub sha256: String,
    /// Version of the model that it is of.
    pub global_version: GlobalVersion,
    /// Hash of that model, as committed on chain.
    pub model_hash: ModelHash,
}

/// What the headers say of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Announced {
    etag: String,
    sha256: String,
    global_version: GlobalVersion,
    model_hash: ModelHash,
}

/// A part that this process alone writes to, for as long as this lives.
struct Place {
    path: PathBuf,
    part: PathBuf,
    tag: PathBuf,
    file: File,
}

impl MinerClient {
    /// Downloads a slice of the current global model to `path`. A download that breaks off is gone on with,
    /// in this call or in the next one; what lies at `path` is whole and has the announced SHA-256.
    ///
    /// # Errors
    ///
    /// Any [`ClientError`] but `Flawed`.
    pub async fn download(
        &self,
        slice: SliceId,
        format: Format,
        path: &Path,
    ) -> Result<Downloaded, ClientError> {
        let place = Place::take(path)?;
        let resumed_from = place.length()?;
        let mut tries = self.tries();
        let announced = loop {
            let here = place.length()?;
            let result = self.fetch(slice, format, &place, tries.until()).await;
            let error = match result {
                Ok(announced) => break announced,
                Err(error) => error,
            };
            if place.length()? > here {
                tries.progressed();
            }
            if let Err(error) = tries.pause(error, self.progress.as_ref()).await {
                place.leave();
                return Err(error);
            }
        };
        let bytes = place.finish(&announced).await?;
        let Announced { sha256, global_version, model_hash, .. } = announced;
        let (path, tries) = (path.to_owned(), tries.made());
        Ok(Downloaded { path, bytes, resumed_from, tries, sha256, global_version, model_hash })
    }

    /// Goes on with what is here already, to the end of the file.
    async fn fetch(
        &self,
        slice: SliceId,
        format: Format,
        place: &Place,
        until: Option<Instant>,
    ) -> Result<Announced, ClientError> {
        let here = place.length()?;
        let tag = if here > 0 { place.tag().await } else { None };
        let status = self.status().await?;
        let mut query = self.signed(&status);
        query.push(("format", format.extension().to_owned()));
        if slice != SliceId::Full {
            query.push(("expert_group_id", slice.to_string()));
        }
        let url = self.gateway.url("/get-checkpoint");
        let mut request = self.gateway.http().get(url.clone());
        if let Some(tag) = &tag {
            query.push(("redirect", "no".to_owned()));
            request = request.header(RANGE, format!("bytes={here}-")).header(IF_RANGE, tag);
        }
        let response = self.gateway.send(request.query(&query)).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            let refusal = answer::refusal(response, self.gateway.patience.silence).await?;
            let head = self.gateway.send(self.gateway.http().head(url).query(&query)).await?;
            // Nothing lies behind what is here: it is whole, and only that was not heard of, or of no use.
            if let (true, Ok(announced)) = (head.status().is_success(), announced(head.headers()))
                && header(head.headers(), CONTENT_LENGTH.as_str()) == Some(&here.to_string())
                && tag.is_some_and(|tag| tag == announced.etag.as_str())
            {
                return Ok(announced);
            }
            place.clear()?;
            return Err(ClientError::Refused(refusal));
        }
        if response.status().is_redirection() {
            let announced = announced(response.headers())?;
            let elsewhere = tus::address(&response)?;
            let response = self.gateway.send_plainly(self.gateway.http().get(elsewhere)).await?;
            let response = answer::accepted(response, self.gateway.patience.silence).await?;
            self.write(response, &announced, place, until).await?;
            return Ok(announced);
        }
        let response = answer::accepted(response, self.gateway.patience.silence).await?;
        let announced = announced(response.headers())?;
        self.write(response, &announced, place, until).await?;
        Ok(announced)
    }

    /// Writes the body of an answer behind what is here, or in its place.
    async fn write(
        &self,
        mut response: Response,
        announced: &Announced,
        place: &Place,
        until: Option<Instant>,
    ) -> Result<(), ClientError> {
        let (start, total) = span(&response)?;
        let here = place.length()?;
        if start != here {
            if start != 0 {
                return Err(ClientError::Strange(format!("asked from {here}, sent from {start}")));
            }
            place.clear()?;
        }
        if total > LARGEST {
            return Err(ClientError::Strange(format!("a file of {total} bytes")));
        }
        in_place(fs::write(&place.tag, &announced.etag).await, &place.tag)?;
        let mut file = fs::File::from_std(in_place(place.file.try_clone(), &place.part)?);
        let mut at = start;
        self.progress.on(Event::From { offset: at, total });
        let silence = self.gateway.patience.silence;
        let result = loop {
            let chunk = timeout(silence, response.chunk());
            let piece = match until {
                Some(until) => match timeout_at(until, chunk).await {
                    Ok(piece) => piece,
                    Err(_) => break Err(out_of_time(silence)),
                },
                None => chunk.await,
            };
            match piece {
                Err(_) => break Err(ClientError::Silent(silence)),
                Ok(Err(error)) => break Err(error.into()),
                Ok(Ok(None)) if at == total => break Ok(()),
                Ok(Ok(None)) => break Err(ClientError::Silent(silence)),
                Ok(Ok(Some(piece))) => {
                    at += piece.len() as u64;
                    if at > total {
                        break Err(ClientError::Corrupt(format!("more than {total} bytes came")));
                    }
                    in_place(file.write_all(&piece).await, &place.part)?;
                    self.progress.on(Event::At(at));
                }
            }
        };
        // What came stays, however it ended.
        in_place(file.flush().await, &place.part)?;
        result
    }
}

fn out_of_time(silence: std::time::Duration) -> ClientError {
    ClientError::OutOfTime { last: Box::new(ClientError::Silent(silence)) }
}

impl Place {
    fn take(path: &Path) -> Result<Self, ClientError> {
        let (part, tag) = (sibling(path, "part"), sibling(path, "etag"));
        let opened = File::options().create(true).append(true).read(true).open(&part);
        let file = in_place(opened, &part)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ClientError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => return in_place(Err(error), &part),
        }
        // Whoever held it may have put it in its place meanwhile: then this is the finished file.
        let ours = in_place(file.metadata(), &part)?;
        if std::fs::metadata(&part).map(|found| found.ino()).ok() != Some(ours.ino()) {
            return Err(ClientError::Locked(path.to_owned()));
        }
        Ok(Self { path: path.to_owned(), part, tag, file })
    }

    /// What the file is called of which a part is here.
    async fn tag(&self) -> Option<HeaderValue> {
        let text = fs::read_to_string(&self.tag).await.ok()?;
        HeaderValue::from_str(text.trim()).ok().filter(|tag| !tag.is_empty())
    }

    fn length(&self) -> Result<u64, ClientError> {
        in_place(self.file.metadata().map(|metadata| metadata.len()), &self.part)
    }

    fn clear(&self) -> Result<(), ClientError> {
        in_place(self.file.set_len(0), &self.part)
    }

    /// Leaves a part for the next call; an empty one is none.
    fn leave(self) {
        if self.length().is_ok_and(|length| length == 0) {
            for path in [&self.part, &self.tag] {
                // What can't be deleted does no harm: the next download begins with it.
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Compares the finished part with what was announced, and puts it in its place. Returns its length. A
    /// wrong one is deleted.
    async fn finish(self, announced: &Announced) -> Result<u64, ClientError> {
        let part = self.part.clone();
        let digest = spawn_blocking(move || digest(&part)).await;
        let digest = digest.map_err(|_| ClientError::Corrupt("it can't be read".to_owned()))?;
        let (found, bytes) = in_place(digest, &self.part)?;
        if found != announced.sha256 {
            in_place(fs::remove_file(&self.part).await, &self.part)?;
            // The tag is only of use beside a part.
            let _ = fs::remove_file(&self.tag).await;
            let why = format!("its SHA-256 is {found}, not {}", announced.sha256);
            return Err(ClientError::Corrupt(why));
        }
        in_place(self.file.sync_all(), &self.part)?;
        in_place(fs::rename(&self.part, &self.path).await, &self.path)?;
        let _ = fs::remove_file(&self.tag).await;
        Ok(bytes)
    }
}

/// SHA-256 of a file in hex, and its length.
fn digest(path: &Path) -> io::Result<(String, u64)> {
    let (mut file, mut sha256) = (File::open(path)?, Sha256::new());
    let (mut bytes, mut piece) = (0, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok((hex::encode(sha256.finalize()), bytes));
        }
        bytes += read as u64;
        sha256.update(&piece[..read]);
    }
}

fn announced(headers: &HeaderMap) -> Result<Announced, ClientError> {
    let text = |name: &str| {
        let missing = || ClientError::Strange(format!("it has no header {name}"));
        header(headers, name).ok_or_else(missing)
    };
    let wrong = |name: &str| ClientError::Strange(format!("its header {name} is wrong"));
    Ok(Announced {
        etag: text(ETAG.as_str())?.to_owned(),
        sha256: text("x-content-sha256")?.to_ascii_lowercase(),
        global_version: text("x-global-version")?
            .parse()
            .map(GlobalVersion)
            .map_err(|_| wrong("x-global-version"))?,
        model_hash: text("x-model-hash")?.parse().map_err(|_| wrong("x-model-hash"))?,
    })
}

/// Where the body of an answer begins in the file, and how long the file is.
fn span(response: &Response) -> Result<(u64, u64), ClientError> {
    let strange = || ClientError::Strange("it does not say how long the file is".to_owned());
    let headers = response.headers();
    if response.status() != StatusCode::PARTIAL_CONTENT {
        let length = header(headers, CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
        return length.map(|length| (0, length)).ok_or_else(strange);
    }
    let range = header(headers, CONTENT_RANGE.as_str()).ok_or_else(strange)?;
    let span = || {
        let (range, total) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (start, last) = range.split_once('-')?;
        let (start, last, total): (u64, u64, u64) =
            (start.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
        // Another part than all that is left was not asked for.
        (start <= last && last.checked_add(1)? == total).then_some((start, total))
    };
    span().ok_or_else(strange)
}

fn in_place<T>(result: io::Result<T>, path: &Path) -> Result<T, ClientError> {
    result.map_err(|source| ClientError::File { path: path.to_owned(), source })
}
