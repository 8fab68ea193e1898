//! A file in the making: hashed as it is written, under another name until it is complete.

use std::{
    io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::{FileInfo, WriteError};

pub(super) struct Output {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    /// `None` once something was written out of order.
    sha256: Option<Sha256>,
    len: u64,
}

impl Output {
    pub(super) fn create(path: &Path) -> Result<Self, WriteError> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new().prefix(".writing-").tempfile_in(folder);
        let file = file.map_err(|source| WriteError::Io { path: path.to_owned(), source })?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_owned(), file, sha256: Some(Sha256::new()), len: 0 })
    }

    /// Bytes written at the end so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Writes at the end.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.file.write_all(bytes).map_err(|e| self.error(e))?;
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Writes somewhere; the file's hash then costs reading it again.
    pub(super) fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<(), WriteError> {
        if at == self.len {
            return self.write(bytes);
        }
        self.sha256 = None;
        let written = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|e| self.error(e))?;
        self.len = at + bytes.len() as u64;
        Ok(())
    }

    /// Makes the file visible, replacing one of the same name.
    pub(super) fn finish(self) -> Result<FileInfo, WriteError> {
        let Self { path, file, sha256, .. } = self;
        let error = |source| WriteError::Io { path: path.clone(), source };
        let mut file = file.into_inner().map_err(|e| error(e.into_error()))?;
        let sha256 = match sha256 {
            Some(sha256) => sha256,
            None => hash(&mut file).map_err(error)?,
        };
        file.as_file().sync_all().map_err(error)?;
        let bytes = file.as_file().metadata().map_err(error)?.len();
        readable(file.as_file()).map_err(error)?;
        file.persist(&path).map_err(|e| error(e.error))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(FileInfo { name, bytes, sha256: hex::encode(sha256.finalize()) })
    }

    fn error(&self, source: io::Error) -> WriteError {
        WriteError::Io { path: self.path.clone(), source }
    }
}

/// Temporary files are private; a model is not.
#[cfg(unix)]
pub(crate) fn readable(file: &std::fs::File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
pub(crate) fn readable(_: &std::fs::File) -> io::Result<()> {
    Ok(())
}

fn hash(file: &mut NamedTempFile) -> io::Result<Sha256> {
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    file.seek(SeekFrom::Start(0))?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(sha256),
            n => sha256.update(&buffer[..n]),
        }
    }
}
