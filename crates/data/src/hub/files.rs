//! Shards on disk. A file that is read holds a shared lock, one that is written an exclusive one,
//! so that no process drops what another uses or fetches what another fetches.

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    io::{Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use reqwest::{
    Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE},
};
use tokio::io::AsyncWriteExt as _;

use super::{
    Kept,
    client::{Client, Failed, shown, told},
};
use crate::{DataError, Repo, Revision, chance::hash, shard::Shard, work::blocking};

/// Folder of what is not whole yet; no owner's name begins with a dot.
const PARTIAL: &str = ".partial";
/// Bytes that a try has to bring to count as progress.
const PROGRESS: u64 = 64 << 10;
/// Bytes per second below which a try is broken off.
const SLOWEST: u64 = 32 << 10;
/// How often to look whether another process has finished.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Times that a whole file of another hash is fetched anew.
const MOST_WRONG: usize = 2;

/// The folder of a hub's files.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    most_bytes: u64,
    /// When this process last used which file, by a count of uses.
    used: Mutex<(u64, HashMap<PathBuf, u64>)>,
}

impl Files {
    pub(super) fn new(folder: PathBuf, most_bytes: u64) -> Self {
        Self { folder, most_bytes, used: Mutex::default() }
    }

    /// Where a listing is remembered.
    pub(super) fn listing(&self, repo: &Repo, revision: &Revision) -> PathBuf {
        self.folder.join(repo.as_str()).join(format!("{}.json", revision.as_str()))
    }

    /// Where a shard is kept. `path` stays within its folder: it was checked when it was listed.
    pub(super) fn shard(&self, repo: &Repo, revision: &Revision, path: &str) -> Kept {
        let whole = self.folder.join(repo.as_str()).join(revision.as_str()).join(path);
        let name = format!("{repo}/{}/{path}", revision.as_str());
        let partial = self.folder.join(PARTIAL).join(hex::encode(hash(&[name.as_bytes()])));
        Kept { whole, partial }
    }

    /// The file, with the content of `shard`: as it was kept, or fetched from `url`.
    pub(super) async fn get_or_fetch(
        &self,
        client: &Client,
        url: Url,
        kept: Kept,
        shard: &Shard,
    ) -> Result<File, DataError> {
        self.note_use(&kept.whole);
        loop {
            let (place, wanted) = (kept.clone(), shard.clone());
            match blocking(move || open(&place, &wanted)).await? {
                Opened::Whole(file) => return Ok(file),
                Opened::Busy => tokio::time::sleep(LOOK_AGAIN).await,
                Opened::Partial(mut file) => {
                    fetch(client, &url, &mut file, &kept.partial, shard).await?;
                    let place = kept.clone();
                    let file = blocking(move || finish(file, &place)).await?;
                    let dropping = self.dropping();
                    blocking(dropping).await?;
                    return Ok(file);
                }
            }
        }
    }

    fn note_use(&self, path: &Path) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.0 += 1;
        let now = used.0;
        used.1.insert(path.to_owned(), now);
    }

    /// Drops the files that were used, or else written, the longest ago, until the rest fits; those
    /// in use stay.
    fn dropping(&self) -> impl FnOnce() -> Result<(), DataError> + Send + 'static {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner).1.clone();
        let (folder, most) = (self.folder.clone(), self.most_bytes);
        move || {
            let mut files = Vec::new();
            collect(&folder, &mut files).map_err(|error| DataError::file(&folder, error))?;
            let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
            files.sort_by_key(|(path, _, written)| (used.get(path).copied(), *written));
            for (path, size, _) in files {
                if total <= most {
                    break;
                }
                let Ok(file) = File::open(&path) else { continue };
                if file.try_lock().is_ok() && std::fs::remove_file(&path).is_ok() {
                    tracing::debug!(path = %path.display(), "dropped a shard for its space");
                    total = total.saturating_sub(size);
                }
            }
            Ok(())
        }
    }
}

/// What is at a shard's place.
enum Opened {
    /// The shard, checked.
    Whole(File),
    /// Its first part, perhaps none, locked for writing.
    Partial(File),
    /// Another process writes it.
    Busy,
}

fn open(kept: &Kept, shard: &Shard) -> Result<Opened, DataError> {
    if let Ok(mut file) = File::open(&kept.whole) {
        file.lock_shared().map_err(|error| DataError::file(&kept.whole, error))?;
        match shard.content.check(&mut file, shard.size) {
            Ok(()) => return Ok(Opened::Whole(file)),
            Err(why) => {
                tracing::warn!(path = %kept.whole.display(), why, "a kept shard is fetched anew");
                let _ = std::fs::remove_file(&kept.whole);
            }
        }
    }
    let failed = |error| DataError::file(&kept.partial, error);
    let folder = kept.partial.parent().unwrap_or(&kept.partial);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&kept.partial)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Opened::Busy),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    // Whoever had the lock before may have moved or dropped the file.
    let same = |there: std::fs::Metadata| {
        file.metadata().is_ok_and(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
    };
    if !std::fs::metadata(&kept.partial).is_ok_and(same) {
        return Ok(Opened::Busy);
    }
    if kept.whole.exists() {
        // Another process has finished in the meantime; this part is a new and empty one.
        let _ = std::fs::remove_file(&kept.partial);
        return Ok(Opened::Busy);
    }
    Ok(Opened::Partial(file))
}

/// Moves a fetched file to its place, and keeps it open for reading.
fn finish(file: File, kept: &Kept) -> Result<File, DataError> {
    let failed = |error| DataError::file(&kept.whole, error);
    let folder = kept.whole.parent().unwrap_or(&kept.whole);
    std::fs::create_dir_all(folder).map_err(failed)?;
    file.sync_data().map_err(failed)?;
    std::fs::rename(&kept.partial, &kept.whole).map_err(failed)?;
    file.lock_shared().map_err(failed)?;
    Ok(file)
}

/// Fills `file` up from `url`, from where it ends, until it is the shard.
async fn fetch(
    client: &Client,
    url: &Url,
    file: &mut File,
    path: &Path,
    shard: &Shard,
) -> Result<(), DataError> {
    let local = |error: std::io::Error| DataError::file(path, error);
    for wrong in 0..=MOST_WRONG {
        let copy = || file.try_clone().map_err(local);
        let handle = copy()?;
        client
            .retry(url, async |progress| {
                let handle = handle.try_clone().map_err(local)?;
                let before = length(&handle).map_err(local)?;
                // A connection that gives a byte now and then would hold a round for ever.
                let patience = Duration::from_secs(60 + shard.size / SLOWEST);
                let fetched =
                    tokio::time::timeout(patience, append(client, url, handle, path, shard));
                let fetched = fetched.await.unwrap_or_else(|_| Err(Failed::again("too slow")));
                let after = length(&copy()?).map_err(local)?;
                *progress = after.saturating_sub(before) >= PROGRESS;
                fetched
            })
            .await?;
        let (mut checked, wanted) = (copy()?, shard.clone());
        let differs =
            blocking(move || Ok(wanted.content.check(&mut checked, wanted.size).err())).await?;
        let Some(why) = differs else { return Ok(()) };
        if wrong == MOST_WRONG {
            return Err(DataError::HubAnswer { url: shown(url), why });
        }
        // Its beginning may be of an earlier, broken fetch.
        tracing::warn!(url = %shown(url), why, "a fetched shard is fetched anew");
        file.set_len(0).map_err(local)?;
    }
    Ok(())
}

fn length(file: &File) -> std::io::Result<u64> {
    Ok(file.metadata()?.len())
}

/// One request for the rest of the file.
async fn append(
    client: &Client,
    url: &Url,
    mut file: File,
    path: &Path,
    shard: &Shard,
) -> Result<(), Failed> {
    let local = |error: std::io::Error| Failed::For(DataError::file(path, error));
    let lies = |why: String| Failed::For(DataError::HubAnswer { url: shown(url), why });
    let mut have = length(&file).map_err(local)?;
    if have > shard.size {
        file.set_len(0).map_err(local)?;
        have = 0;
    }
    if have == shard.size {
        return Ok(());
    }
    let mut response = client.get(url, have).await?;
    let begins = begin(&response, have, shard.size).map_err(lies)?;
    if begins != have {
        // The range was ignored: the answer is the whole file.
        file.set_len(begins).map_err(local)?;
        have = begins;
    }
    file.seek(SeekFrom::Start(have)).map_err(local)?;
    let mut file = tokio::fs::File::from_std(file);
    loop {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                // What came is kept for the next try.
                file.flush().await.map_err(local)?;
                return Err(Failed::again(told(&error)));
            }
        };
        have += chunk.len() as u64;
        if have > shard.size {
            return Err(lies(format!("more than the {} bytes that are listed", shard.size)));
        }
        file.write_all(&chunk).await.map_err(local)?;
    }
    file.flush().await.map_err(local)?;
    if have < shard.size {
        return Err(Failed::again(format!("{have} of {} bytes", shard.size)));
    }
    Ok(())
}

/// Where the answer to a request from `from` on begins, of a file of `size` bytes.
fn begin(response: &Response, from: u64, size: u64) -> Result<u64, String> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = header(CONTENT_RANGE).unwrap_or_default();
        let expected = format!("bytes {from}-{}/", size - 1);
        let total = range.strip_prefix(expected.as_str());
        return match total {
            Some(total) if total == "*" || total == size.to_string() => Ok(from),
            Some(_) | None => Err(format!("the range `{range:.80}`, asked for from {from} on")),
        };
    }
    match header(CONTENT_LENGTH).map(str::parse::<u64>) {
        Some(Ok(length)) if length != size => {
            Err(format!("{length} bytes where {size} are listed"))
        }
        Some(_) | None => Ok(0),
    }
}

/// Shards and parts of shards below `folder`, with size and time of writing.
fn collect(folder: &Path, files: &mut Vec<(PathBuf, u64, SystemTime)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        // Another process may drop it in the meantime.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_none_or(|ending| ending != "json") {
            let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            files.push((path, metadata.len(), written));
        }
    }
    Ok(())
}
