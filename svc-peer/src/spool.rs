//! Files of a round: written and read at any place, and gone with whoever holds them last.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use tracing::warn;

/// An open file that is deleted when this is dropped. Read by `pread`, never mapped: a file that gets
/// shorter is an error then and not the end of the process.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    path: PathBuf,
}

impl Spool {
    /// Makes the file, which must not be there.
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { file, path })
    }

    /// Writes all of `bytes` at this place.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Reads exactly `len` bytes from this place.
    pub(crate) fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            // The folder may have been emptied meanwhile.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, path = %self.path.display(), "file of a round left behind");
            }
            Ok(()) | Err(_) => {}
        }
    }
}
