//! Unfinished uploads on this disk: what came of each, and beside it who sends what.
//!
//! Each process has a folder of its own below `<data_dir>/parts`, marked by a locked file, as in the spool;
//! but what a dead process left there is taken over by the next one, unless the machine itself was started
//! again since: what was written before that may not have reached the disk. Knows no HTTP and no store.

use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use checkpoint::Stream;
use domain::{Hotkey, ModelHash, RoundId, Uid};
use rand::{TryRngCore as _, rngs::OsRng};
use serde::{Deserialize, Serialize};
use tempfile::{NamedTempFile, TempPath};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    admit::Claim,
    error::Error,
    marks::Transport,
    spool::{Room, Spool},
};

const LOCK: &str = "lock";
/// Largest description that is read.
const MAX_INFO: u64 = 64 << 10;

/// Names an upload. Whoever knows it may go on with it: 128 random bits, 32 hex digits.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct UploadId(String);

impl UploadId {
    /// A name that nobody can guess.
    pub(crate) fn random() -> io::Result<Self> {
        let mut bits = [0; 16];
        OsRng.try_fill_bytes(&mut bits).map_err(io::Error::other)?;
        Ok(Self(hex::encode(bits)))
    }

    /// As in the path of the upload's URL.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UploadId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fine = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if fine { Ok(Self(text.to_owned())) } else { Err("it is not 32 hex digits") }
    }
}

impl TryFrom<String> for UploadId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<UploadId> for String {
    fn from(id: UploadId) -> Self {
        id.0
    }
}

/// Logs have its beginning only: it is a capability.
impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", self.0.get(..6).unwrap_or_default())
    }
}

/// Who sends what: everything that was settled when the upload was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Info {
    /// Its name.
    pub(crate) id: UploadId,
    /// Length of the whole file.
    pub(crate) length: u64,
    /// The round that it is for.
    pub(crate) round: RoundId,
    /// The miner.
    pub(crate) hotkey: Hotkey,
    /// Its slot.
    pub(crate) uid: Uid,
    /// The hash that it committed.
    pub(crate) model_hash: ModelHash,
    /// Name of the file.
    pub(crate) file_name: String,
    /// Digest of the signature of the creation.
    pub(crate) nonce: String,
    /// `Upload-Metadata` of the creation, to be said back.
    pub(crate) metadata: String,
    /// The run of the machine in which the bytes were written.
    boot: String,
}

impl Info {
    /// The claim that was admitted when it was created.
    pub(crate) fn claim(&self) -> Claim {
        Claim {
            round: self.round,
            hotkey: self.hotkey.clone(),
            uid: self.uid,
            model_hash: self.model_hash,
            file_name: self.file_name.clone(),
            nonce: self.nonce.clone(),
            transport: Transport::Upload,
        }
    }
}

/// An unfinished upload. Dropped, its files stay.
#[derive(Debug)]
pub(crate) struct Part {
    /// Who sends what.
    pub(crate) info: Info,
    /// How much has come.
    pub(crate) offset: u64,
    /// The verification of just that; gone after a while without a byte.
    pub(crate) stream: Option<Box<Stream>>,
    /// When its last byte came, or it was made.
    pub(crate) last: Instant,
    file: File,
    folder: PathBuf,
    /// What is set aside for it on the disk: while bytes come for all of it, else for what is there. What was
    /// there before a restart is not counted.
    room: Option<Room>,
}

impl Part {
    /// Sets room for what is still to come aside.
    pub(crate) fn make_room(&mut self, spool: &Spool) -> Result<(), Error> {
        let coming = spool.reserve(self.info.length - self.offset)?;
        match &mut self.room {
            Some(room) => room.absorb(coming),
            None => self.room = Some(coming),
        }
        Ok(())
    }

    /// No more comes for now: keeps no room that others could use.
    pub(crate) fn settle(&mut self) {
        if let Some(room) = &mut self.room {
            room.settle();
        }
    }

    /// Where its bytes lie.
    pub(crate) fn path(&self) -> PathBuf {
        part_path(&self.folder, &self.info.id)
    }

    /// What has come.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether every byte has come.
    pub(crate) fn is_whole(&self) -> bool {
        self.offset == self.info.length
    }

    /// Appends all of `piece`, or nothing.
    pub(crate) fn append(&mut self, piece: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(piece);
        match written {
            Ok(()) => {
                self.offset += piece.len() as u64;
                if let Some(room) = &mut self.room {
                    room.wrote(piece.len() as u64);
                }
                self.last = Instant::now();
            }
            // What the verification has is not what the file has.
            Err(_) => {
                self.stream = None;
                self.file.set_len(self.offset)?;
            }
        }
        written
    }

    /// Deletes the files.
    pub(crate) fn delete(self) {
        let (part, info) = (self.path(), info_path(&self.folder, &self.info.id));
        for path in [info, part] {
            if let Err(error) = fs::remove_file(&path) {
                warn!(%error, "a file of an ended upload could not be deleted; the next start will");
            }
        }
    }
}

/// A second name of a part's file, under which it may be moved away: the part itself stays until it is known
/// what became of it.
pub(super) fn whole(part: &Path) -> io::Result<TempPath> {
    let whole = part.with_extension("whole");
    // Of a try before this one.
    let _ = fs::remove_file(&whole);
    if fs::hard_link(part, &whole).is_err() {
        fs::copy(part, &whole)?;
    }
    TempPath::try_from_path(whole)
}

/// This process's folders of unfinished uploads.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The first is where new ones go.
    folders: Vec<PathBuf>,
    boot: String,
    /// Held as long as the process lives.
    _locks: Vec<File>,
}

impl Parts {
    /// Takes every folder below `root` that no living process has, and what is good in them. `boot` names
    /// the present run of the machine.
    pub(crate) fn open(root: &Path, boot: &str) -> io::Result<(Self, Vec<Part>)> {
        fs::create_dir_all(root)?;
        // One process at a time looks around, so that nobody takes a folder that is being made.
        let gate = File::create(root.join(LOCK))?;
        gate.lock()?;
        let (mut folders, mut locks, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for entry in fs::read_dir(root)? {
            let path = entry?.path();
            if path.is_dir()
                && let Some(lock) = take(&path)?
            {
                load(&path, boot, &mut parts)?;
                folders.push(path);
                locks.push(lock);
            }
        }
        if folders.is_empty() {
            let path = tempfile::Builder::new().prefix("gateway-").tempdir_in(root)?.keep();
            locks.extend(take(&path)?);
            folders.push(path);
        }
        // Others were left by processes that shared this disk: empty ones are of no use.
        let mut kept = 0..;
        folders.retain(|path| {
            let used = parts.iter().any(|part: &Part| part.folder == *path);
            let keep = kept.next() == Some(0) || used;
            if !keep && let Err(error) = fs::remove_dir_all(path) {
                warn!(%error, "an empty folder of uploads could not be deleted");
            }
            keep
        });
        Ok((Self { folders, boot: boot.to_owned(), _locks: locks }, parts))
    }

    /// Makes the files of an upload that has no byte yet.
    pub(crate) fn create(
        &self,
        id: UploadId,
        claim: &Claim,
        length: u64,
        metadata: String,
    ) -> io::Result<Part> {
        let folder = self.folders.first().ok_or(io::ErrorKind::NotFound)?.clone();
        let info = Info {
            id,
            length,
            round: claim.round,
            hotkey: claim.hotkey.clone(),
            uid: claim.uid,
            model_hash: claim.model_hash,
            file_name: claim.file_name.clone(),
            nonce: claim.nonce.clone(),
            metadata,
            boot: self.boot.clone(),
        };
        let file = open_part(&part_path(&folder, &info.id), true)?;
        // Whole or not at all: what has no description is deleted by the next start.
        let mut described = NamedTempFile::new_in(&folder)?;
        described.write_all(&serde_json::to_vec(&info)?)?;
        described.persist(info_path(&folder, &info.id))?;
        Ok(Part { info, offset: 0, stream: None, last: Instant::now(), file, folder, room: None })
    }
}

fn part_path(folder: &Path, id: &UploadId) -> PathBuf {
    folder.join(format!("{}.part", id.as_str()))
}

fn info_path(folder: &Path, id: &UploadId) -> PathBuf {
    folder.join(format!("{}.json", id.as_str()))
}

fn open_part(path: &Path, new: bool) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create_new(new).mode(0o600).open(path)
}

/// The lock of this folder, if nobody has it.
fn take(folder: &Path) -> io::Result<Option<File>> {
    let lock = File::create(folder.join(LOCK))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Reads what a dead process left, and deletes what is of no use.
fn load(folder: &Path, boot: &str, parts: &mut Vec<Part>) -> io::Result<()> {
    let before = parts.len();
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        paths.push(entry?.path());
    }
    for path in paths.iter().filter(|path| path.extension().is_some_and(|end| end == "json")) {
        match load_one(folder, path, boot) {
            Ok(part) => parts.push(part),
            Err(why) => info!(%why, "an unfinished upload is given up"),
        }
    }
    let good = parts.get(before..).unwrap_or_default();
    for path in paths {
        let known =
            |part: &Part| path == part.path() || path == info_path(&part.folder, &part.info.id);
        if path.file_name().is_some_and(|name| name != LOCK) && !good.iter().any(known) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn load_one(folder: &Path, path: &Path, boot: &str) -> io::Result<Part> {
    if fs::metadata(path)?.len() > MAX_INFO {
        return Err(io::Error::other("its description is too long"));
    }
    let info: Info = serde_json::from_slice(&fs::read(path)?)?;
    if info_path(folder, &info.id) != path {
        return Err(io::Error::other("its description is of another one"));
    }
    if info.boot != boot {
        return Err(io::Error::other("the machine was started again since"));
    }
    let file = open_part(&part_path(folder, &info.id), false)?;
    let offset = file.metadata()?.len();
    if offset > info.length {
        return Err(io::Error::other("it is longer than it was to be"));
    }
    let (last, folder) = (Instant::now(), folder.to_owned());
    Ok(Part { info, offset, stream: None, last, file, folder, room: None })
}

#[cfg(test)]
mod tests;
