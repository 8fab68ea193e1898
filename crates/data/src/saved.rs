//! Drawn batches on disk. A file is `connito-batches-1` and a line feed, the length of the header
//! (8 bytes, little endian), the header (JSON), the rows' tokens (4 bytes each, little endian), and
//! BLAKE2b-256 of all that.

use std::{io::Write as _, path::PathBuf, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{DataError, Draw, Drawn, IGNORED_LABEL, Pick, chance::hash, digest, pick::batches};

const MAGIC: &[u8] = b"connito-batches-1\n";
/// How the names of the files end.
const ENDING: &str = "batches";
const HASH: usize = 32;

/// Where one draw is kept.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    /// What the draw depends on, hashed: the file's name.
    pub(crate) key: String,
    /// Files kept in the folder.
    pub(crate) most: usize,
}

#[derive(Serialize, Deserialize)]
struct Header {
    key: String,
    digest: String,
    sources_digest: String,
    pad: u32,
    /// Tokens of each row.
    lengths: Vec<usize>,
    picks: Vec<Pick>,
}

impl Place {
    fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.{ENDING}", self.key))
    }

    /// The batches, where they were kept and are still what they were; a file that is not is
    /// logged, and left to be replaced.
    pub(crate) fn read(&self, by: &Draw) -> Option<Drawn> {
        let path = self.path();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "kept batches cannot be read");
                return None;
            }
        };
        match self.decode(&bytes, by) {
            Ok(drawn) => Some(drawn),
            Err(why) => {
                tracing::warn!(path = %path.display(), why, "kept batches are not used");
                None
            }
        }
    }

    fn decode(&self, bytes: &[u8], by: &Draw) -> Result<Drawn, String> {
        let short = || "it is too short".to_owned();
        let (body, trailer) = bytes.split_last_chunk::<HASH>().ok_or_else(short)?;
        if hash(&[body]) != *trailer {
            return Err("its hash is another".to_owned());
        }
        let body = body.strip_prefix(MAGIC).ok_or("it is of another format")?;
        let (length, body) = body.split_first_chunk::<8>().ok_or_else(short)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| short())?;
        let (header, tokens) = body.split_at_checked(length).ok_or_else(short)?;
        let header: Header =
            serde_json::from_slice(header).map_err(|error| format!("its header: {error}"))?;
        if header.key != self.key || header.lengths.len() != by.rows() {
            return Err("it is of another draw".to_owned());
        }
        let mut tokens = tokens.as_chunks::<4>().0.iter().map(|token| u32::from_le_bytes(*token));
        let rows: Vec<Vec<u32>> =
            header.lengths.iter().map(|length| tokens.by_ref().take(*length).collect()).collect();
        let batches = batches(by, &rows, header.pad).map_err(|error| error.to_string())?;
        if digest(&batches) != header.digest {
            return Err("its batches have another digest".to_owned());
        }
        Ok(Drawn {
            batches: batches.into(),
            digest: header.digest,
            sources_digest: header.sources_digest,
            picks: header.picks,
        })
    }

    /// Writes the batches, whole or not at all, and drops the oldest files. A failure is logged:
    /// the batches are in memory.
    pub(crate) fn write(&self, by: &Draw, drawn: &Drawn, pad: u32) {
        if let Err(error) = self.try_write(by, drawn, pad) {
            tracing::warn!(%error, "drawn batches are not kept on disk");
        }
    }

    fn try_write(&self, by: &Draw, drawn: &Drawn, pad: u32) -> Result<(), DataError> {
        let failed = |error| DataError::file(&self.folder, error);
        let (mut lengths, mut tokens) = (Vec::new(), Vec::new());
        for batch in drawn.batches.iter() {
            let rows = batch.ids().chunks(by.length).zip(batch.labels().chunks(by.length));
            for (ids, labels) in rows {
                let of_row = ids.iter().zip(labels).filter(|(_, label)| **label != IGNORED_LABEL);
                let before = tokens.len();
                for (id, _) in of_row {
                    let id = u32::try_from(*id)
                        .map_err(|_| DataError::Batch { why: format!("token id {id}") })?;
                    tokens.extend(id.to_le_bytes());
                }
                lengths.push((tokens.len() - before) / 4);
            }
        }
        let header = Header {
            key: self.key.clone(),
            digest: drawn.digest.clone(),
            sources_digest: drawn.sources_digest.clone(),
            pad,
            lengths,
            picks: drawn.picks.clone(),
        };
        let header = serde_json::to_vec(&header).map_err(|error| failed(error.into()))?;
        let length = (header.len() as u64).to_le_bytes();
        let parts = [MAGIC, &length, &header, &tokens];
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder).map_err(failed)?;
        for part in parts {
            file.write_all(part).map_err(failed)?;
        }
        file.write_all(&hash(&parts)).map_err(failed)?;
        file.as_file().sync_data().map_err(failed)?;
        file.persist(self.path()).map_err(|error| failed(error.error))?;
        self.drop_oldest()
    }

    fn drop_oldest(&self) -> Result<(), DataError> {
        let failed = |error| DataError::file(&self.folder, error);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|ending| ending == ENDING) && path != self.path() {
                let written = path.metadata().and_then(|file| file.modified());
                files.push((written.unwrap_or(SystemTime::UNIX_EPOCH), path));
            }
        }
        files.sort();
        let surplus = (files.len() + 1).saturating_sub(self.most.max(1));
        for (_, path) in files.into_iter().take(surplus) {
            // Another process may have dropped it.
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }
}
