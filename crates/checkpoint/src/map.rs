//! A file's bytes in memory without reading them: the crate's only unsafe code.

use std::{fs::File, io, ops::Deref, time::SystemTime};

/// The bytes that a checkpoint is read from.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped { map: memmap2::Mmap, file: File, modified: Option<SystemTime> },
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a whole file, read-only.
    ///
    /// Callers keep the file in a folder that only this program writes to: who truncates it while it is mapped
    /// ends the process by a bus error, unless [`Bytes::unchanged`] sees it first.
    pub(crate) fn map(file: File) -> io::Result<Self> {
        let modified = file.metadata()?.modified().ok();
        #[expect(
            unsafe_code,
            reason = "a mapped file; nobody else writes to the private folder it lies in"
        )]
        let map = unsafe { memmap2::Mmap::map(&file) }?;
        Ok(Self::Mapped { map, file, modified })
    }

    /// Whether the file still has the length and the time of modification that it had when it was mapped; what
    /// differs where it has not. Costs one system call.
    pub(crate) fn unchanged(&self) -> Result<(), String> {
        let Self::Mapped { map, file, modified } = self else { return Ok(()) };
        let now = file.metadata().map_err(|error| error.to_string())?;
        if now.len() != map.len() as u64 {
            return Err(format!("it had {} bytes and has {}", map.len(), now.len()));
        }
        if now.modified().ok() != *modified {
            return Err("it was written to".to_owned());
        }
        Ok(())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped { map, .. } => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
