//! Artifacts in a folder.
//!
//! A file is written to a staging folder on the same disk, synced, and then linked to its name: a
//! link is made at once, and never replaces what is there. Writers hold a lock on what they stage,
//! so that what a killed process left behind can be told apart and removed.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use object_store::{ObjectStore, local::LocalFileSystem, path::Path as Key};
use uuid::Uuid;

use super::ArtifactError;

const STAGING: &str = ".staging";

#[derive(Debug)]
pub(super) struct Local {
    root: PathBuf,
    objects: LocalFileSystem,
}

impl Local {
    pub(super) fn open(root: &Path) -> Result<Self, ArtifactError> {
        let failed = |error| ArtifactError::file("open the folder", root, &error);
        fs::create_dir_all(root.join(STAGING)).map_err(failed)?;
        let root = root.canonicalize().map_err(failed)?;
        sweep(&root.join(STAGING)).map_err(failed)?;
        let objects = LocalFileSystem::new_with_prefix(&root)
            .map_err(|error| ArtifactError::engine(root.display(), error))?
            .with_automatic_cleanup(true);
        Ok(Self { root, objects })
    }

    pub(super) fn objects(&self) -> &dyn ObjectStore {
        &self.objects
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_ref())
    }

    pub(super) async fn file(&self, key: &Key) -> Result<PathBuf, ArtifactError> {
        match self.size(key).await? {
            Some(_) => Ok(self.path(key)),
            None => Err(ArtifactError::NotFound { key: key.to_string() }),
        }
    }

    pub(super) async fn size(&self, key: &Key) -> Result<Option<u64>, ArtifactError> {
        let path = self.path(key);
        match tokio::fs::metadata(&path).await {
            Ok(found) => Ok(found.is_file().then_some(found.len())),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(ArtifactError::file("look for", &path, &error)),
        }
    }

    pub(super) async fn get_bytes(&self, key: &Key, max: u64) -> Result<Bytes, ArtifactError> {
        let missing = || ArtifactError::NotFound { key: key.to_string() };
        let len = self.size(key).await?.ok_or_else(missing)?;
        if len > max {
            return Err(ArtifactError::TooLarge { key: key.to_string(), len, max });
        }
        let path = self.path(key);
        match tokio::fs::read(&path).await {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) if is_absence(&error) => Err(missing()),
            Err(error) => Err(ArtifactError::file("read", &path, &error)),
        }
    }

    pub(super) async fn put_bytes(&self, key: &Key, bytes: Bytes) -> Result<(), ArtifactError> {
        let staging = self.root.join(STAGING);
        self.put(key, move |to| {
            if to.exists() {
                return same(bytes.as_ref(), to);
            }
            let mut staged = Staged::create(&staging)?;
            staged.file.write_all(&bytes)?;
            staged.publish(to, || Ok(bytes.as_ref()))
        })
        .await
    }

    /// Puts the file at `from`; if `take`, the file itself where that is possible.
    pub(super) async fn put_file(
        &self,
        key: &Key,
        from: &Path,
        take: bool,
    ) -> Result<(), ArtifactError> {
        let (staging, from) = (self.root.join(STAGING), from.to_owned());
        self.put(key, move |to| {
            let done = put_file(&staging, &from, to, take)?;
            if take && done {
                fs::remove_file(&from)?;
            }
            Ok(done)
        })
        .await
    }

    /// Runs `put`, which returns whether `to` has its content now, off the runtime.
    async fn put(
        &self,
        key: &Key,
        put: impl FnOnce(&Path) -> io::Result<bool> + Send + 'static,
    ) -> Result<(), ArtifactError> {
        let to = self.path(key);
        let task = tokio::task::spawn_blocking({
            let to = to.clone();
            move || put(&to)
        });
        match task.await.map_err(io::Error::other).flatten() {
            Ok(true) => Ok(()),
            Ok(false) => Err(ArtifactError::Conflict { key: key.to_string() }),
            Err(error) => Err(ArtifactError::file("write", &to, &error)),
        }
    }
}

fn put_file(staging: &Path, from: &Path, to: &Path, take: bool) -> io::Result<bool> {
    let mut source = File::open(from)?;
    if to.exists() {
        return same(source, to);
    }
    if take && !fs::symlink_metadata(from)?.is_symlink() {
        source.sync_all()?;
        match link(from, to) {
            Ok(true) => return Ok(true),
            Ok(false) => return same(source, to),
            // On another disk, or one that has no links: copy.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let mut staged = Staged::create(staging)?;
    io::copy(&mut source, &mut staged.file)?;
    staged.publish(to, || File::open(from))
}

/// A file that nobody sees yet. Removed when dropped.
struct Staged {
    path: PathBuf,
    file: File,
}

impl Staged {
    fn create(staging: &Path) -> io::Result<Self> {
        let path = staging.join(Uuid::new_v4().to_string());
        let file = File::create_new(&path)?;
        let staged = Self { path, file };
        staged.file.lock()?;
        Ok(staged)
    }

    /// Gives the file its name. Returns false if something other than `content` has that name.
    fn publish<R: Read>(
        self,
        to: &Path,
        content: impl FnOnce() -> io::Result<R>,
    ) -> io::Result<bool> {
        self.file.sync_all()?;
        if link(&self.path, to)? { Ok(true) } else { same(content()?, to) }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // What can't be removed now is swept later.
        let _ = fs::remove_file(&self.path);
    }
}

/// Gives `from` the name `to` as well. Returns false if that is taken.
fn link(from: &Path, to: &Path) -> io::Result<bool> {
    let folder = to.parent().unwrap_or(Path::new("."));
    let mut tries = 3;
    loop {
        match make_folder(folder).and_then(|()| fs::hard_link(from, to)) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            // A deletion may take the empty folder away in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries > 0 => tries -= 1,
            Err(error) => return Err(error),
        }
    }
    File::open(folder)?.sync_all()?;
    Ok(true)
}

/// Makes a folder, and those above it, so that they are there after a crash: a folder's own name is only on the disk
/// once the one above it is synced.
fn make_folder(folder: &Path) -> io::Result<()> {
    let Some(above) = folder.parent().filter(|_| !folder.is_dir()) else { return Ok(()) };
    make_folder(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !folder.is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
        }
        made => made?,
    }
    File::open(above)?.sync_all()
}

/// Returns whether the file at `path` is what `content` reads.
fn same(mut content: impl Read, path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let (mut left, mut right) = (vec![0; 1 << 18], vec![0; 1 << 18]);
    loop {
        let read = fill(&mut content, &mut left)?;
        if fill(&mut file, &mut right)? != read || left.get(..read) != right.get(..read) {
            return Ok(false);
        }
        if read == 0 {
            return Ok(true);
        }
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Removes what processes that are gone have left in `staging`.
pub(super) fn sweep(staging: &Path) -> io::Result<()> {
    for entry in fs::read_dir(staging)? {
        let path = entry?.path();
        let Ok(file) = File::open(&path) else { continue };
        match file.try_lock() {
            Ok(()) => {
                let _ = fs::remove_file(&path);
            }
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
    Ok(())
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
