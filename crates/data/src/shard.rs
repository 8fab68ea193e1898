//! Files of a source and what they hold, told by hashes.

use std::{
    fmt::Write as _,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use blake2::{Blake2b, digest::consts::U32};
use sha2::digest::Digest;

use crate::{DataError, Glob, Limits, format::Format};

/// Folders within folders of a local source.
const DEEPEST: usize = 16;
/// Bytes of a path.
const LONGEST_PATH: usize = 1024;

/// A file of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shard {
    /// Relative to the source, with `/` between folders.
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) content: Content,
    pub(crate) format: Format,
}

/// What shows that a file is the one that is meant, in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// BLAKE2b-256, of local files.
    Blake2b(String),
    /// SHA-256, of a hub's large files.
    Sha256(String),
    /// The id of a git blob, of a hub's small files: SHA-1 of `blob <size>`, a zero byte and the
    /// content.
    GitBlob(String),
}

impl Content {
    /// The kind and the hash, as the description of the sources has it.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Blake2b(hash) => format!("blake2b:{hash}"),
            Self::Sha256(hash) => format!("sha256:{hash}"),
            Self::GitBlob(hash) => format!("git:{hash}"),
        }
    }

    /// Whether `file` holds this, in `size` bytes; `Err` says how it differs.
    pub(crate) fn check(&self, file: &mut File, size: u64) -> Result<(), String> {
        let found = file.metadata().map_err(|error| error.to_string())?.len();
        if found != size {
            return Err(format!("{found} bytes and not {size}"));
        }
        let (expected, found) = match self {
            Self::Blake2b(hash) => (hash, hash_file::<Blake2b<U32>>(file, b"")),
            Self::Sha256(hash) => (hash, hash_file::<sha2::Sha256>(file, b"")),
            Self::GitBlob(hash) => {
                let head = format!("blob {size}\0");
                (hash, hash_file::<sha1::Sha1>(file, head.as_bytes()))
            }
        };
        let found = found.map_err(|error| error.to_string())?;
        if found == *expected {
            return Ok(());
        }
        Err(format!("its hash is {found} and not {expected}"))
    }
}

/// The hash of `head` and the whole file, which is left at its start.
fn hash_file<D: Digest>(file: &mut File, head: &[u8]) -> std::io::Result<String> {
    let mut hash = D::new();
    hash.update(head);
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(buffer.get(..read).unwrap_or_default()),
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(hex::encode(hash.finalize()))
}

/// Whether a path stays within its folder and can stand in a line of text.
pub(crate) fn is_plain(path: &str) -> bool {
    let part = |part: &str| !matches!(part, "" | "." | "..");
    path.len() <= LONGEST_PATH
        && !path.contains(char::is_control)
        && !path.contains('\\')
        && path.split('/').all(part)
}

/// Opens a local file and tells what it holds.
pub(crate) fn open_local(folder: &Path, path: &str) -> Result<File, DataError> {
    let path = folder.join(path);
    File::open(&path).map_err(|error| DataError::file(&path, error))
}

/// The shards below `folder` that `files` names, in ascending order of path, hashed.
pub(crate) fn list_local(
    folder: &Path,
    files: Option<&Glob>,
    limits: &Limits,
) -> Result<Vec<Shard>, DataError> {
    let mut paths = Vec::new();
    walk(folder, "", 0, &mut |path| {
        let known = Format::of(&path).filter(|_| files.is_none_or(|files| files.matches(&path)));
        if let Some(format) = known {
            if !is_plain(&path) {
                return Err(DataError::file(folder, format!("{path:?} cannot be a shard")));
            }
            paths.push((path, format));
        }
        if paths.len() > limits.shards {
            let shard = folder.display().to_string();
            let limit = limits.shards as u64;
            return Err(DataError::Limit { shard, what: "the number of shards", limit });
        }
        Ok(())
    })?;
    paths.sort_by(|(one, _), (other, _)| one.cmp(other));
    let shard = |(path, format): (String, Format)| {
        let mut file = open_local(folder, &path)?;
        let failed = |error| DataError::file(&folder.join(&path), error);
        let size = file.metadata().map_err(failed)?.len();
        if size > limits.shard_bytes {
            let (what, limit) = ("its size", limits.shard_bytes);
            return Err(DataError::Limit { shard: path, what, limit });
        }
        let content = Content::Blake2b(hash_file::<Blake2b<U32>>(&mut file, b"").map_err(failed)?);
        Ok(Shard { path, size, content, format })
    };
    paths.into_iter().map(shard).collect()
}

fn walk(
    folder: &Path,
    prefix: &str,
    depth: usize,
    found: &mut dyn FnMut(String) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let failed = |error| DataError::file(folder, error);
    if depth > DEEPEST {
        return Err(DataError::file(folder, "too many folders in each other"));
    }
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A name that is no text cannot be a shard: no two machines would write it alike.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        // Of links, only those to files are followed: folders cannot form a ring.
        if entry.file_type().map_err(failed)?.is_dir() {
            walk(&entry.path(), &format!("{path}/"), depth + 1, found)?;
        } else if entry.path().is_file() {
            found(path)?;
        }
    }
    Ok(())
}

/// The lines of a source in the description that is hashed.
pub(crate) fn describe(shards: &[Shard], into: &mut String) {
    for Shard { path, size, content, .. } in shards {
        // Writing to a string does not fail.
        let _ = writeln!(into, "shard {} {size} {path}", content.label());
    }
}
