//! Files that are on their way, on the disk: what has come is not asked for again after a restart.
//!
//! A file is kept under the root of its chunk digests, beside the list of them. Which chunks are
//! here is not written down but seen: those that are what the list says.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use checkpoint::{ChunkDigests, WrongChunk};
use domain::ModelHash;

use super::message::ModelFile;

/// Bytes of a digest.
const DIGEST: usize = 32;

/// The folder of one model's files that are on their way.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    folder: PathBuf,
}

/// A file that is being filled. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    file: Arc<File>,
    list: Arc<ChunkDigests>,
    chunk: u64,
}

/// A chunk that was not put into its file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    /// It is not what the list says.
    #[error(transparent)]
    Wrong(#[from] WrongChunk),
    /// The disk failed.
    #[error("write to the disk: {0}")]
    Io(#[from] io::Error),
}

impl Parts {
    /// The files of `model` below `folder`, from which those of other models are removed.
    pub(crate) fn open(folder: &Path, model: &ModelHash) -> io::Result<Self> {
        let own = folder.join(model.to_hex());
        fs::create_dir_all(&own)?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path != own && path.is_dir() {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(Self { folder: own })
    }

    fn path(&self, file: &ModelFile, what: &str) -> PathBuf {
        self.folder.join(format!("{}.{what}", hex::encode(file.root)))
    }

    /// A folder for what is made of the files, empty.
    pub(crate) fn fresh_folder(&self, name: &str) -> io::Result<PathBuf> {
        let folder = self.folder.join(name);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// The list of a file's digests, where it has come before.
    pub(crate) fn list(&self, file: &ModelFile) -> Option<ChunkDigests> {
        digests(file, &fs::read(self.path(file, "list")).ok()?)
    }

    /// Keeps a list that [`signed`] has seen.
    pub(crate) fn keep_list(&self, file: &ModelFile, list: &ChunkDigests) -> io::Result<()> {
        let (path, draft) = (self.path(file, "list"), self.path(file, "draft"));
        fs::write(&draft, list.digests().as_flattened())?;
        fs::rename(draft, path)
    }

    /// Opens a file to be filled, and says which of its chunks are here. Reads what is on the disk.
    pub(crate) fn fill(
        &self,
        file: &ModelFile,
        list: ChunkDigests,
    ) -> io::Result<(Part, Vec<bool>)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let open = options.open(self.path(file, "part"))?;
        let before = open.metadata()?.len();
        open.set_len(file.len)?;
        let mut buffer = vec![0; file.chunk as usize];
        let mut here = vec![false; list.digests().len()];
        for (index, here) in here.iter_mut().enumerate() {
            let start = index as u64 * u64::from(file.chunk);
            if start >= before {
                break;
            }
            let len = (file.len - start).min(u64::from(file.chunk)) as usize;
            open.read_exact_at(&mut buffer[..len], start)?;
            *here = list.check(index, &buffer[..len]).is_ok();
        }
        let part = Part { file: Arc::new(open), list: Arc::new(list), chunk: file.chunk.into() };
        Ok((part, here))
    }

    /// Whether a file on the disk is, byte for byte, what was signed.
    pub(crate) fn is_sound(&self, file: &ModelFile) -> io::Result<bool> {
        let Some(list) = self.list(file) else { return Ok(false) };
        Ok(self.fill(file, list)?.1.into_iter().all(|here| here))
    }

    /// The whole content of a small file that is complete.
    pub(crate) fn read(&self, file: &ModelFile) -> io::Result<Vec<u8>> {
        fs::read(self.path(file, "part"))
    }

    /// A folder that shows these files, all complete, under their names.
    pub(crate) fn show<'a>(
        &self,
        files: impl IntoIterator<Item = &'a ModelFile>,
    ) -> io::Result<PathBuf> {
        let folder = self.fresh_folder("whole")?;
        for file in files {
            fs::hard_link(self.path(file, "part"), folder.join(&file.name))?;
        }
        Ok(folder)
    }

    /// Removes a file that nobody honest has.
    pub(crate) fn remove(&self, file: &ModelFile) {
        for what in ["part", "list", "draft"] {
            let _ = fs::remove_file(self.path(file, what));
        }
    }

    /// Removes everything.
    pub(crate) fn remove_all(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.folder)
    }
}

impl Part {
    /// Checks a chunk and puts it in its place. Belongs on a blocking thread.
    pub(crate) fn put(&self, index: u32, bytes: &Bytes) -> Result<(), PutError> {
        self.list.check(index as usize, bytes)?;
        Ok(self.file.write_all_at(bytes, u64::from(index) * self.chunk)?)
    }
}

/// A list of digests, where they are those that were signed as `file`.
pub(crate) fn signed(file: &ModelFile, digests: Vec<[u8; DIGEST]>) -> Option<ChunkDigests> {
    let list = ChunkDigests::from_parts(file.chunk as usize, file.len, digests).ok()?;
    (list.root() == file.root).then_some(list)
}

/// As [`signed`], of digests in `bytes`, joined.
fn digests(file: &ModelFile, bytes: &[u8]) -> Option<ChunkDigests> {
    let (digests, rest) = bytes.as_chunks::<DIGEST>();
    signed(file, digests.to_vec()).filter(|_| rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u32 = 1 << 16;

    fn file(bytes: &[u8]) -> (ModelFile, ChunkDigests) {
        let list = ChunkDigests::of(CHUNK as usize, bytes).unwrap();
        let (len, root) = (bytes.len() as u64, list.root());
        (ModelFile { name: "f.safetensors".to_owned(), len, chunk: CHUNK, root }, list)
    }

    #[test]
    fn what_has_come_is_seen_after_a_restart_and_what_was_torn_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..CHUNK * 2 + 9).map(|n| (n % 251) as u8 + 1).collect();
        let (file, list) = file(&bytes);
        let chunk = |n: usize| Bytes::copy_from_slice(bytes.chunks(CHUNK as usize).nth(n).unwrap());
        let parts = Parts::open(dir.path(), &ModelHash([1; 24])).unwrap();
        assert_eq!(parts.list(&file), None);
        parts.keep_list(&file, &list).unwrap();
        let (part, here) = parts.fill(&file, list.clone()).unwrap();
        assert_eq!(here, [false; 3]);
        part.put(2, &chunk(2)).unwrap();
        part.put(0, &chunk(0)).unwrap();
        assert!(matches!(part.put(1, &chunk(0)), Err(PutError::Wrong(_))));
        part.file.write_all_at(&chunk(1)[..100], u64::from(CHUNK)).unwrap();

        let parts = Parts::open(dir.path(), &ModelHash([1; 24])).unwrap();
        let (part, here) = parts.fill(&file, parts.list(&file).unwrap()).unwrap();
        assert_eq!(here, [true, false, true]);
        part.put(1, &chunk(1)).unwrap();
        let folder = parts.show([&file]).unwrap();
        assert_eq!(fs::read(folder.join("f.safetensors")).unwrap(), bytes);
        assert!(parts.is_sound(&file).unwrap());
        part.file.write_all_at(&[0], 5).unwrap();
        assert!(!parts.is_sound(&file).unwrap());

        Parts::open(dir.path(), &ModelHash([2; 24])).unwrap();
        assert!(!folder.exists(), "files of another model are removed");
    }

    #[test]
    fn a_list_that_was_not_signed_is_none() {
        let (file, list) = file(&[7; 100]);
        let bytes = list.digests().as_flattened();
        assert_eq!(digests(&file, bytes), Some(list.clone()));
        assert_eq!(digests(&file, &[9; 32]), None);
        assert_eq!(digests(&file, &bytes[1..]), None);
        assert_eq!(digests(&file, &[bytes, bytes].concat()), None);
    }
}
