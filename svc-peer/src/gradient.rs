//! This validator's own gradient: added up from its miners' files, encoded chunk by chunk into a file.
//!
//! A few chunks are in memory, whatever the model's size; the next ones are added up while these are
//! encoded, hashed and written. Blocking.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use checkpoint::{
    CodecError, Contribution, Feedback, FeedbackError, GradientError, Limits, NextFeedback,
    PseudoGradient,
};
use tracing::warn;

use crate::{
    chunks::{Chunks, Cut, Garbage, Writing},
    metrics,
    model::Model,
    report::{Failure, LeftOut},
};

/// The local gradient.
#[derive(Debug)]
pub(crate) struct Local {
    /// All of it, encoded; `None` when there is nothing to give.
    pub(crate) chunks: Option<Chunks>,
    /// Miners that are not in it.
    pub(crate) skipped: Vec<LeftOut>,
    /// What encoding it has lost: for [`crate::residuals::Residuals::offer`]. `None` where that is nothing.
    pub(crate) residual: Option<PathBuf>,
}

/// Elements that are added up in one go: enough for every core of a large machine.
const AT_ONCE: usize = 1 << 20;

/// Adds the contributions up, adds what the round before has lost (`residual`), and encodes the sum into
/// a file in `folder`. A file that is refused, or that turns bad while it is read, is left out and
/// reported. A sum that is not finite is not given: there is no gradient then.
pub(crate) fn encode(
    model: &Model,
    contributions: Vec<Contribution>,
    cut: Cut,
    residual: Option<&Path>,
    folder: &Path,
) -> Result<Local, Failure> {
    let limits = Limits::default();
    let mean = PseudoGradient::new(model.published(), model.layout(), contributions, limits)
        .map_err(|error| Failure::Aggregate(error.to_string()))?;
    encode_mean(model, mean, cut, residual, folder)
}

fn encode_mean(
    model: &Model,
    mut mean: PseudoGradient<'_>,
    cut: Cut,
    residual: Option<&Path>,
    folder: &Path,
) -> Result<Local, Failure> {
    let before = residual.and_then(|path| load(model, path));
    let lossless = cut.codec.is_exact() && before.is_none();
    let lost = before.unwrap_or_else(|| Feedback::none(model.vector()));
    let files = Files { cut, lost, lossless, folder };
    let mut written = None;
    // Without a contribution there is nothing to say, not even what the round before has lost.
    while !mean.weights().is_empty() {
        match files.write(model, &mean) {
            Ok(done) => {
                written = Some(done);
                break;
            }
            Err(Unwritten::Gradient(GradientError::Contribution { hotkey, refusal })) => {
                warn!(%hotkey, %refusal, "begun again without a file that turned bad");
                mean = mean.without(&hotkey, *refusal);
            }
            Err(error) if error.is_not_finite() => {
                // Finite weights, too far apart for a float32: nobody else should have to add it up.
                warn!(%error, "the local gradient is not finite, none is offered");
                break;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let (chunks, residual) = written.unzip();
    Ok(Local { chunks, skipped: skipped(&mean), residual: residual.flatten() })
}

fn skipped(mean: &PseudoGradient<'_>) -> Vec<LeftOut> {
    let left_out = |(hotkey, refusal): &(domain::Hotkey, checkpoint::Refusal)| {
        metrics::skipped(refusal.reason());
        let (reason, detail) = (refusal.reason().to_owned(), refusal.to_string());
        LeftOut { hotkey: hotkey.clone(), reason, detail }
    };
    mean.skipped().iter().map(left_out).collect()
}

/// What the round before has lost. A file that cannot be used is as good as none: what it held is lost
/// for good, which costs some precision once.
fn load(model: &Model, path: &Path) -> Option<Feedback> {
    match Feedback::load(path, model.vector()) {
        Ok(feedback) => Some(feedback),
        Err(error) => {
            warn!(%error, path = %path.display(), "what encoding has lost before is forgotten");
            None
        }
    }
}

/// A gradient that could not be written.
#[derive(Debug, thiserror::Error)]
enum Unwritten {
    #[error(transparent)]
    Gradient(#[from] GradientError),
    #[error(transparent)]
    Feedback(#[from] FeedbackError),
    #[error(transparent)]
    Chunks(#[from] Garbage),
}

impl Unwritten {
    fn is_not_finite(&self) -> bool {
        matches!(
            self,
            Self::Gradient(GradientError::NonFinite { .. })
                | Self::Feedback(FeedbackError::Encode(CodecError::NonFinite { .. }))
        )
    }
}

impl From<Unwritten> for Failure {
    fn from(error: Unwritten) -> Self {
        match error {
            Unwritten::Gradient(error) => Self::Aggregate(error.to_string()),
            Unwritten::Feedback(error) => Self::Scratch(error.to_string()),
            Unwritten::Chunks(error) => Self::Scratch(error.to_string()),
        }
    }
}

/// Where a gradient is written to.
struct Files<'a> {
    cut: Cut,
    /// What the round before has lost.
    lost: Feedback,
    /// An exact codec, and nothing to make up for.
    lossless: bool,
    folder: &'a Path,
}

impl Files<'_> {
    const GRADIENT: &'static str = "gradient";
    const RESIDUAL: &'static str = "residual.next";

    /// From the beginning, whatever was written before.
    fn write(
        &self,
        model: &Model,
        mean: &PseudoGradient<'_>,
    ) -> Result<(Chunks, Option<PathBuf>), Unwritten> {
        let (cut, chunks) = (self.cut, self.cut.chunks());
        let mut own = self.open(model)?;
        let (mut this, mut next) = (Vec::new(), Vec::new());
        let at_once = u32::try_from(AT_ONCE / self.cut.chunk).unwrap_or(u32::MAX).max(1);
        self.fill(mean, 0..at_once, &mut this)?;
        for first in (0..chunks).step_by(at_once as usize) {
            let (filled, pushed) = rayon::join(
                || self.fill(mean, first + at_once..first + 2 * at_once, &mut next),
                || own.push(cut.start_of(first), &mut this),
            );
            pushed?;
            filled?;
            std::mem::swap(&mut this, &mut next);
        }
        mean.confirm()?;
        own.finish()
    }

    fn open(&self, model: &Model) -> Result<Own<'_>, Unwritten> {
        let path = self.folder.join(Self::GRADIENT);
        let writing =
            Writing::create(path, self.cut, 0..self.cut.chunks()).map_err(Garbage::from)?;
        let residual = self.folder.join(Self::RESIDUAL);
        let feedback = match self.lossless {
            true => None,
            false => Some((&self.lost, NextFeedback::create(&residual, model.vector())?)),
        };
        Ok(Own { cut: self.cut, writing, feedback, residual, encoded: Vec::new() })
    }

    /// The elements of some chunks; none beyond the last.
    fn fill(
        &self,
        mean: &PseudoGradient<'_>,
        chunks: Range<u32>,
        values: &mut Vec<f32>,
    ) -> Result<(), GradientError> {
        let (start, end) = (self.cut.start_of(chunks.start), self.cut.start_of(chunks.end));
        values.resize(end.min(self.cut.elements).saturating_sub(start), 0.0);
        match values.is_empty() {
            true => Ok(()),
            false => mean.fill(start, values),
        }
    }
}

/// The files while they are written.
struct Own<'a> {
    cut: Cut,
    writing: Writing,
    feedback: Option<(&'a Feedback, NextFeedback)>,
    residual: PathBuf,
    encoded: Vec<u8>,
}

impl Own<'_> {
    /// Encodes whole chunks, the first of which begins at `start`.
    fn push(&mut self, start: usize, values: &mut [f32]) -> Result<(), Unwritten> {
        let Cut { codec, chunk, .. } = self.cut;
        for (nth, values) in values.chunks_mut(chunk).enumerate() {
            self.encoded.resize(codec.encoded_len(values.len()), 0);
            match &mut self.feedback {
                None => codec.encode(values, &mut self.encoded).map_err(FeedbackError::from)?,
                Some((lost, next)) => {
                    lost.encode(codec, start + nth * chunk, values, &mut self.encoded, next)?;
                }
            }
            self.writing.push(&self.encoded)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(Chunks, Option<PathBuf>), Unwritten> {
        let chunks = self.writing.finish()?;
        match self.feedback {
            Some((_, next)) if !self.cut.codec.is_exact() => {
                next.finish()?;
                Ok((chunks, Some(self.residual)))
            }
            Some(_) | None => Ok((chunks, None)),
        }
    }
}

#[cfg(test)]
mod tests;
