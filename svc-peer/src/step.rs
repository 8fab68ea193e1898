//! The outer step along the reduced vector, and the model that it makes.
//!
//! Given the same base, state and reduced chunks, every validator writes the same bits.

use std::{fmt, path::Path};

use checkpoint::{Manifest, OuterSgd, OuterStep, Publication, ReadError, Values};
use store::{ArtifactError, Artifacts};
use tracing::info;

use crate::{
    chunks::{Chunks, Cut},
    model::Model,
    plan::Plan,
    report::Failure,
};

/// The whole reduced vector, in the files of its slices; decoded where it is read.
pub(crate) struct ReducedVector {
    cut: Cut,
    /// In order, without gaps.
    slices: Vec<Chunks>,
}

impl ReducedVector {
    /// `slices` in order, those of the result's [`Cut`]; an empty one may be anywhere.
    pub(crate) fn new(cut: Cut, slices: Vec<Chunks>) -> Result<Self, Failure> {
        let mut due = 0;
        for slice in &slices {
            let range = slice.range();
            if slice.cut() != cut || range.start != due {
                let why = format!("reduced chunks {range:?} where {due} is due");
                return Err(Failure::Write(why));
            }
            due = range.end;
        }
        match due == cut.chunks() {
            true => Ok(Self { cut, slices }),
            false => Err(Failure::Write(format!("no reduced chunk {due}"))),
        }
    }

    /// Fills `out` with elements of one chunk.
    fn read_within(&self, chunk: u32, from: usize, out: &mut [f32]) -> Result<(), ReadError> {
        let source = |error: &dyn fmt::Display| ReadError::Source(error.to_string());
        let nth = self.slices.partition_point(|slice| slice.range().end <= chunk);
        let Some(slice) = self.slices.get(nth) else {
            return Err(ReadError::Source(format!("no reduced chunk {chunk}")));
        };
        let codec = self.cut.codec;
        let to = from + out.len();
        let first = from - from % codec.block();
        let last = to.next_multiple_of(codec.block()).min(self.cut.elements_of(chunk));
        let range = codec.encoded_len(first)..codec.encoded_len(last);
        let bytes = slice.part(chunk, range).map_err(|error| source(&error))?;
        if (first, last) == (from, to) {
            return codec.decode(&bytes, out).map_err(|error| source(&error));
        }
        let mut whole = vec![0.0; last - first];
        codec.decode(&bytes, &mut whole).map_err(|error| source(&error))?;
        out.copy_from_slice(&whole[from - first..to - first]);
        Ok(())
    }
}

impl Values for ReducedVector {
    fn len(&self) -> usize {
        self.cut.elements
    }

    fn read(&self, start: usize, out: &mut [f32]) -> Result<(), ReadError> {
        let (end, len) = (start.saturating_add(out.len()), self.cut.elements);
        if end > len {
            return Err(ReadError::Outside { start, end, len });
        }
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let (chunk, from) = (at / self.cut.chunk, at % self.cut.chunk);
            let (part, after) = rest.split_at_mut(rest.len().min(self.cut.chunk - from));
            at += part.len();
            // There are no more chunks than this type has numbers: see `Cut::chunks`.
            self.read_within(u32::try_from(chunk).unwrap_or(u32::MAX), from, part)?;
            rest = after;
        }
        Ok(())
    }
}

impl fmt::Debug for ReducedVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slices: Vec<_> = self.slices.iter().map(Chunks::range).collect();
        f.debug_struct("ReducedVector").field("cut", &self.cut).field("slices", &slices).finish()
    }
}

/// Steps the optimizer along the reduced vector and writes the new model, with its optimizer's state,
/// into `folder`; tensors outside of the group are copied. Belongs on a blocking thread.
pub(crate) fn step(
    model: Model,
    plan: &Plan,
    optimizer: &OuterSgd,
    reduced: &ReducedVector,
    folder: &Path,
) -> Result<Manifest, Failure> {
    let manifest = model.published().manifest();
    let publication = Publication {
        global_version: plan.new_version,
        expert_group: plan.group,
        parent: Some(plan.base.model_hash),
        config: manifest.config.clone(),
        groups: manifest.groups.clone(),
    };
    let step = OuterStep {
        base: model.published(),
        tensors: model.tensors(),
        state: model.state(),
        optimizer: *optimizer,
        gradient: reduced,
    };
    step.publish(folder, &plan.optimizer_file(), publication)
        .map_err(|error| Failure::Write(error.to_string()))
}

/// Moves the files in `folder` to `prefix`, the manifest last: a model with a manifest is complete.
pub(crate) async fn publish(
    artifacts: &Artifacts,
    folder: &Path,
    prefix: &str,
) -> Result<(), Failure> {
    let io = |error: std::io::Error| Failure::Write(format!("read {}: {error}", folder.display()));
    let mut names = Vec::new();
    let mut entries = tokio::fs::read_dir(folder).await.map_err(io)?;
    while let Some(entry) = entries.next_entry().await.map_err(io)? {
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_by_key(|name| (name == Manifest::FILE_NAME, name.clone()));
    for name in names {
        artifacts.move_file(&format!("{prefix}/{name}"), &folder.join(&name)).await?;
    }
    info!(prefix, "new model published");
    Ok(())
}

/// The manifest of the model at `prefix`, if it is complete there.
pub(crate) async fn published(
    artifacts: &Artifacts,
    prefix: &str,
) -> Result<Option<Manifest>, Failure> {
    const MAX_MANIFEST: u64 = 256 << 20;
    let key = format!("{prefix}/{}", Manifest::FILE_NAME);
    match artifacts.get_bytes(&key, MAX_MANIFEST).await {
        Ok(json) => {
            let manifest = Manifest::from_json(&json)
                .map_err(|error| Failure::Write(format!("{key} is unreadable: {error}")))?;
            Ok(Some(manifest))
        }
        Err(ArtifactError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
