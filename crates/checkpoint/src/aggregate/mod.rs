//! Local aggregation: the weighted pseudo-gradient of a validator's miners, as a flat vector that is computed where it
//! is asked for.
//!
//! Every file is verified before the first element is computed; a part is computed on all cores from mapped files in
//! pieces that stay in the cache. Each element is a sum over miners in ascending order of hotkey and depends on nothing
//! but its own place, so that its bits are the same whatever is asked for first and whoever computes it. A file that
//! turns bad while sums are made is no reason to be wrong in part: the sum fails by name, and is made anew without it.

mod admit;
mod sum;

use std::{fmt, ops::Range, path::PathBuf};

use domain::{Hotkey, ModelHash};
use rayon::prelude::*;

use crate::{
    checkpoint::{Checkpoint, Limits},
    layout::SliceLayout,
    refusal::{Refusal, clip},
    source::TensorSource,
    vector::VectorLayout,
};

/// A miner's checkpoint and its say in the mean.
#[derive(Debug, Clone)]
pub struct Contribution {
    pub hotkey: Hotkey,
    /// Relative to the others'. Zero: left out without being read.
    pub weight: f64,
    /// The submission, in either format.
    pub path: PathBuf,
    /// The hash the miner committed to, where it must be checked again.
    pub model_hash: Option<ModelHash>,
}

/// An aggregation that was asked for wrongly.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AggregateError {
    #[error("the weight of {hotkey} is {weight}, neither zero nor positive and finite")]
    Weight { hotkey: Hotkey, weight: f64 },
    #[error("{0} contributes twice")]
    Twice(Hotkey),
    #[error("the base model does not have the layout's tensors: {0}")]
    Base(Refusal),
}

/// A part of the vector that could not be computed. Nothing of it may be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GradientError {
    /// The file was verified and is not what it was: go on with [`PseudoGradient::without`] it, from the beginning.
    #[error("the file of {hotkey} turned bad: {refusal}")]
    Contribution { hotkey: Hotkey, refusal: Box<Refusal> },
    #[error("the base model: {0}")]
    Base(Refusal),
    #[error("elements {start}..{end} of {len}")]
    Range { start: usize, end: usize, len: usize },
    #[error("there is no tensor {0}")]
    NoTensor(String),
    /// Weights at the edge of float32, rounded beyond it.
    #[error("element {index} is not finite")]
    NonFinite { index: usize },
}

/// The mean of `global - miner` over miners by their weights, in float32.
///
/// What can be computed does not depend on the order of the contributions: miners are summed in ascending order of
/// hotkey, and tensors come in ascending order of name. Sums are made in float32, one rounding per operation.
pub struct PseudoGradient<'a> {
    base: Box<dyn TensorSource + 'a>,
    layout: VectorLayout,
    /// In ascending order of hotkey.
    accepted: Vec<Accepted>,
    skipped: Vec<(Hotkey, Refusal)>,
}

struct Accepted {
    hotkey: Hotkey,
    /// As it was given.
    raw: f64,
    /// Of the accepted ones, summing to 1.
    weight: f64,
    path: PathBuf,
    checkpoint: Checkpoint,
}

impl<'a> PseudoGradient<'a> {
    /// Opens and verifies every contribution, several at a time. One that is refused is skipped and reported, and the
    /// weights of the others are renormalised.
    ///
    /// Beyond [`crate::verify()`], a contribution is refused as `non_finite` where its difference to the base is: a
    /// finite parameter of 1e38 would otherwise be everybody's infinity.
    pub fn new(
        base: impl TensorSource + 'a,
        layout: &SliceLayout,
        mut contributions: Vec<Contribution>,
        limits: Limits,
    ) -> Result<Self, AggregateError> {
        check_base(&base, layout)?;
        contributions.sort_by(|a, b| a.hotkey.cmp(&b.hotkey));
        for pair in contributions.windows(2) {
            if pair[0].hotkey == pair[1].hotkey {
                return Err(AggregateError::Twice(pair[0].hotkey.clone()));
            }
        }
        for Contribution { hotkey, weight, .. } in &contributions {
            if !weight.is_finite() || *weight < 0.0 {
                let (hotkey, weight) = (hotkey.clone(), *weight);
                return Err(AggregateError::Weight { hotkey, weight });
            }
        }
        contributions.retain(|one| one.weight > 0.0);
        let vector = VectorLayout::new(&layout.tensors);
        let opened: Vec<_> = contributions
            .into_par_iter()
            .map(|one| (admit::open_and_verify(&base, layout, &one, limits), one))
            .collect();
        let (mut accepted, mut skipped) = (Vec::new(), Vec::new());
        for (opened, Contribution { hotkey, weight: raw, path, .. }) in opened {
            match opened {
                Ok(checkpoint) => {
                    accepted.push(Accepted { hotkey, raw, weight: 0.0, path, checkpoint });
                }
                Err(refusal) => skipped.push((hotkey, refusal)),
            }
        }
        let gradient = Self { base: Box::new(base), layout: vector, accepted, skipped };
        Ok(gradient.renormalised())
    }

    /// The gradient of the others, from its beginning: whatever was computed with this contribution in it is void.
    /// Nothing changes where the hotkey is not in it.
    pub fn without(mut self, hotkey: &Hotkey, refusal: Refusal) -> Self {
        let before = self.accepted.len();
        self.accepted.retain(|one| one.hotkey != *hotkey);
        if self.accepted.len() < before {
            self.skipped.push((hotkey.clone(), refusal));
            self.skipped.sort_by(|a, b| a.0.cmp(&b.0));
        }
        self.renormalised()
    }

    fn renormalised(mut self) -> Self {
        let total = self.total_weight();
        self.accepted.iter_mut().for_each(|one| one.weight = one.raw / total);
        self
    }

    /// Who was left out and why, in ascending order of hotkey.
    pub fn skipped(&self) -> &[(Hotkey, Refusal)] {
        &self.skipped
    }

    /// The weights used, in ascending order of hotkey; they sum to 1.
    pub fn weights(&self) -> Vec<(&Hotkey, f64)> {
        self.accepted.iter().map(|one| (&one.hotkey, one.weight)).collect()
    }

    /// Sum of the accepted contributions' weights as they were given.
    pub fn total_weight(&self) -> f64 {
        self.accepted.iter().map(|one| one.raw).sum()
    }

    /// The order of the elements.
    pub fn layout(&self) -> &VectorLayout {
        &self.layout
    }

    /// Fills `out` with the elements from `start`, on all cores of the present thread pool; zeros when no contribution
    /// was accepted. After an error, `out` holds nothing of use.
    ///
    /// Each file's length and time of modification are looked at before and after every 64 Ki elements that are read
    /// of it. What remains: a file that is truncated between a look and the reads after it ends the process by a bus
    /// error, and one that is changed with its time set back is not noticed. Both take another program that writes to
    /// the folder of the verified files.
    pub fn fill(&self, start: usize, out: &mut [f32]) -> Result<(), GradientError> {
        let (end, len) = (start.saturating_add(out.len()), self.layout.len());
        if end > len {
            return Err(GradientError::Range { start, end, len });
        }
        out.par_chunks_mut(sum::PIECE)
            .enumerate()
            .try_for_each(|(nth, out)| self.piece(start + nth * sum::PIECE, out))
    }

    /// Looks at every file once more: with `Ok`, everything that was computed so far is the gradient.
    pub fn confirm(&self) -> Result<(), GradientError> {
        self.accepted.iter().try_for_each(Accepted::unchanged)
    }

    /// One tensor of the pseudo-gradient, row-major. For one vector of all, ask for ranges.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>, GradientError> {
        let Range { start, end } =
            self.layout.range(name).ok_or_else(|| GradientError::NoTensor(clip(name)))?;
        let mut values = vec![0.0; end - start];
        self.fill(start, &mut values)?;
        Ok(values)
    }

    /// Every tensor of the layout, in ascending order of name, each computed when it is asked for.
    pub fn iter(&self) -> impl Iterator<Item = Result<(&str, Vec<f32>), GradientError>> {
        self.layout.names().map(|name| Ok((name, self.tensor(name)?)))
    }

    fn piece(&self, start: usize, out: &mut [f32]) -> Result<(), GradientError> {
        self.confirm()?;
        let mut rest = &mut *out;
        for segment in self.layout.segments(start..start + rest.len()) {
            let (part, after) = rest.split_at_mut(segment.at.len());
            rest = after;
            sum::segment(&*self.base, &self.accepted, &segment, part)?;
        }
        self.confirm()?;
        match out.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(GradientError::NonFinite { index: start + index }),
            None => Ok(()),
        }
    }
}

impl Accepted {
    fn unchanged(&self) -> Result<(), GradientError> {
        self.checkpoint.unchanged().map_err(|why| {
            // It was verified: whatever happened to it since is not the miner's doing.
            self.fault(Refusal::unreadable(&self.path, format!("after it was verified, {why}")))
        })
    }

    fn fault(&self, refusal: Refusal) -> GradientError {
        GradientError::Contribution { hotkey: self.hotkey.clone(), refusal: Box::new(refusal) }
    }
}

fn check_base(base: &dyn TensorSource, layout: &SliceLayout) -> Result<(), AggregateError> {
    for (name, spec) in &layout.tensors {
        let found = base.spec(name).map_err(AggregateError::Base)?;
        if found.shape != spec.shape {
            return Err(AggregateError::Base(Refusal::WrongShape {
                name: clip(name),
                expected: spec.shape.clone(),
                found: found.shape.clone(),
            }));
        }
        if !found.dtype.is_float() {
            let (name, found) = (clip(name), found.dtype);
            return Err(AggregateError::Base(Refusal::WrongDtype { name, found }));
        }
    }
    Ok(())
}

impl fmt::Debug for PseudoGradient<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PseudoGradient")
            .field("weights", &self.weights())
            .field("skipped", &self.skipped)
            .finish()
    }
}
