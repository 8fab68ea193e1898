//! Whether a stored file is what the gateway took, and can be evaluated: verified once more, whoever
//! did before.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use checkpoint::{Checkpoint, Limits, Refusal, SliceId};
use domain::{Seed, Sketch};
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Failure, OwnFailure},
    fetch::ModelFiles,
    job::Submission,
};

/// Bytes that are read and hashed at a time.
const CHUNK: usize = 1 << 20;

/// Opens a submission and checks size, SHA-256, format, layout, model hash and that every value is
/// finite; asks `stop` now and then. Two passes over the file: one in its own order for the SHA-256,
/// one in the order of names for the model hash and the values. It is in the page cache for the second.
pub(crate) fn submission(
    submission: &Submission,
    path: &Path,
    model: &ModelFiles,
    stop: &dyn Fn() -> bool,
) -> Result<Checkpoint, Failure> {
    // Bytes that are not those that the gateway took are not the miner's.
    check_stored(submission, path, stop)?;
    let layout = model
        .manifest
        .layout(model.id.group)
        .ok_or_else(|| Failure::Own(OwnFailure::NoSlice(format!("group {}", model.id.group))))?;
    let limits = Limits { max_file_bytes: submission.bytes, ..Limits::default() };
    let verified = || -> Result<Checkpoint, Refusal> {
        let file = checkpoint::open(path, limits)?;
        checkpoint::verify(&file, &layout, Some(&submission.hash))?;
        Ok(file)
    };
    verified().map_err(Failure::of_file)
}

/// Sketches what a verified submission changes in the model's slice. When that does not work, the slice
/// is looked at before the miner is blamed: the submission has been verified, the slice is not before
/// it is loaded.
pub(crate) fn sketch(
    submission: &Checkpoint,
    model: &ModelFiles,
    seed: &Seed,
) -> Result<Sketch, Failure> {
    let ours = |refusal| Failure::Own(OwnFailure::Slice(refusal));
    let base = checkpoint::open(&model.experts, Limits::trusted()).map_err(ours)?;
    checkpoint::sketch(submission, &base, seed).map_err(|refusal| {
        let group = model.id.group;
        let slice = model.manifest.slice(SliceId::Group(group));
        match model.manifest.layout(group).zip(slice) {
            None => Failure::Own(OwnFailure::NoSlice(format!("group {group}"))),
            Some((layout, slice)) => {
                match checkpoint::verify(&base, &layout, Some(&slice.model_hash)) {
                    Ok(_) => Failure::of_file(refusal),
                    Err(refusal) => ours(refusal),
                }
            }
        }
    })
}

/// Whether the stored file is the one that the scheduler means.
fn check_stored(
    submission: &Submission,
    path: &Path,
    stop: &dyn Fn() -> bool,
) -> Result<(), Failure> {
    let stored = |why: String| Failure::Own(OwnFailure::Stored(why));
    let failed = |error: io::Error| stored(format!("{}: {error}", path.display()));
    let mut file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?.len();
    // First: a file of another size need not be read.
    if found != submission.bytes {
        return Err(stored(format!("{found} bytes instead of {}", submission.bytes)));
    }
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        if stop() {
            return Err(Failure::Lost);
        }
        let read = file.read(&mut chunk).map_err(failed)?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
    }
    if hash.finalize()[..] != submission.sha256 {
        return Err(stored("its SHA-256 is not the one that was stored".to_owned()));
    }
    Ok(())
}
