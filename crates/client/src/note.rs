//! What a submission leaves beside the checkpoint, so that the next process goes on where this one ended: the
//! address of the upload, and for what it is. Whoever knows the address may write to the upload: only the file's
//! owner may read it.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use domain::{Hotkey, ModelHash, RoundId};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::{error::ClientError, source::sibling};

/// Longest note that is read, in bytes.
const LONGEST: u64 = 16 << 10;

/// What an upload is for. One of another round, validator, hotkey, model or length is another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Purpose {
    pub(crate) validator: Hotkey,
    pub(crate) hotkey: Hotkey,
    pub(crate) round: RoundId,
    pub(crate) model_hash: ModelHash,
    pub(crate) bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    purpose: Purpose,
    url: String,
    /// How the gateway was reached. An upload at the same address is one that it did not say another of.
    gateway: String,
}

/// Where the note of a checkpoint for a validator lies.
pub(crate) fn place(checkpoint: &Path, validator: &Hotkey) -> PathBuf {
    sibling(checkpoint, &format!("{validator}.upload"))
}

/// The upload that was begun for this purpose, if one was. Where it is at the gateway's own address, it is looked
/// for at `gateway`, as which the same one may be reached today.
pub(crate) async fn read(checkpoint: &Path, purpose: &Purpose, gateway: &Url) -> Option<Url> {
    let path = place(checkpoint, &purpose.validator);
    if tokio::fs::metadata(&path).await.ok()?.len() > LONGEST {
        return None;
    }
    let json = tokio::fs::read(&path).await.ok()?;
    let note: Note = serde_json::from_slice(&json).ok()?;
    if note.purpose != *purpose {
        return None;
    }
    let (mut url, then): (Url, Url) = (note.url.parse().ok()?, note.gateway.parse().ok()?);
    if url.origin() == then.origin() {
        url.set_scheme(gateway.scheme()).ok()?;
        url.set_host(gateway.host_str()).ok()?;
        url.set_port(gateway.port()).ok()?;
    }
    matches!(url.scheme(), "http" | "https").then_some(url)
}

/// Notes an upload, in place of the one before.
pub(crate) async fn write(
    checkpoint: &Path,
    purpose: &Purpose,
    url: &Url,
    gateway: &Url,
) -> Result<(), ClientError> {
    let path = place(checkpoint, &purpose.validator);
    let note =
        Note { purpose: purpose.clone(), url: url.to_string(), gateway: gateway.to_string() };
    let target = path.clone();
    let written = spawn_blocking(move || {
        let json = serde_json::to_vec_pretty(&note)?;
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        // Such a file is its owner's alone from the beginning.
        let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
        file.write_all(&json)?;
        file.as_file().sync_all()?;
        file.persist(&target)?;
        io::Result::Ok(())
    });
    let written = written.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    written.map_err(|source| ClientError::File { path, source })
}

/// Forgets the upload: it is over.
pub(crate) async fn forget(checkpoint: &Path, validator: &Hotkey) {
    let path = place(checkpoint, validator);
    match tokio::fs::remove_file(&path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(%error, path = %path.display(), "a note of an upload that is over stays behind");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn purpose() -> Purpose {
        Purpose {
            validator: Hotkey::from_public_key([1; 32]),
            hotkey: Hotkey::from_public_key([2; 32]),
            round: RoundId(336),
            model_hash: ModelHash([3; 24]),
            bytes: 10,
        }
    }

    #[tokio::test]
    async fn a_note_is_good_for_its_purpose_alone_and_for_its_owners_eyes() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("model.pt");
        let (purpose, url) = (purpose(), "http://host/files/abc".parse().unwrap());
        let gateway = "http://host/".parse().unwrap();
        assert_eq!(read(&checkpoint, &purpose, &gateway).await, None);
        write(&checkpoint, &purpose, &url, &gateway).await.unwrap();
        assert_eq!(read(&checkpoint, &purpose, &gateway).await, Some(url.clone()));
        let path = place(&checkpoint, &purpose.validator);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0);
        for other in [
            Purpose { round: RoundId(808), ..purpose.clone() },
            Purpose { model_hash: ModelHash([4; 24]), ..purpose.clone() },
            Purpose { hotkey: Hotkey::from_public_key([9; 32]), ..purpose.clone() },
            Purpose { bytes: 11, ..purpose.clone() },
        ] {
            assert_eq!(read(&checkpoint, &other, &gateway).await, None);
        }
        // Another validator has a note of its own.
        let other = Purpose { validator: Hotkey::from_public_key([5; 32]), ..purpose.clone() };
        write(&checkpoint, &other, &url, &gateway).await.unwrap();
        assert_eq!(read(&checkpoint, &purpose, &gateway).await, Some(url));
        forget(&checkpoint, &purpose.validator).await;
        assert_eq!(read(&checkpoint, &purpose, &gateway).await, None);
    }

    #[tokio::test]
    async fn an_upload_is_looked_for_where_its_gateway_is_reached_today() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("model.pt");
        let parsed = |url: &str| url.parse::<Url>().unwrap();
        let (then, now) = (parsed("http://10.0.0.1:8091/"), parsed("https://gateway.example/"));
        for (begun, today) in [
            ("http://10.0.0.1:8091/files/abc", "https://gateway.example/files/abc"),
            // The gateway said that it is elsewhere: there it is.
            ("http://other:8091/files/abc", "http://other:8091/files/abc"),
        ] {
            write(&checkpoint, &purpose(), &parsed(begun), &then).await.unwrap();
            assert_eq!(read(&checkpoint, &purpose(), &now).await, Some(parsed(today)));
        }
    }

    #[tokio::test]
    async fn a_note_that_is_none_is_as_good_as_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("model.pt");
        let path = place(&checkpoint, &purpose().validator);
        for content in [&b"{}"[..], b"", b"\xff", &[b' '; 1 << 20]] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(read(&checkpoint, &purpose(), &"http://host/".parse().unwrap()).await, None);
        }
    }
}
