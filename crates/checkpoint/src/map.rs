//! A file's bytes in memory without reading them: the crate's only unsafe code.

use std::{fs::File, io, ops::Deref};

/// The bytes that a checkpoint is read from.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a whole file, read-only.
    ///
    /// Callers keep the file in a folder that only this program writes to: who truncates it while it is mapped
    /// ends the process by a bus error.
    pub(crate) fn map(file: &File) -> io::Result<Self> {
        #[expect(
            unsafe_code,
            reason = "a mapped file; nobody else writes to the private folder it lies in"
        )]
        let map = unsafe { memmap2::Mmap::map(file) }?;
        Ok(Self::Mapped(map))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
