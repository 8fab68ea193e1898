//! Local aggregation: the weighted pseudo-gradient of a validator's miners.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use domain::{Hotkey, ModelHash};

use crate::{
    checkpoint::{Checkpoint, Limits, open},
    dtype::decode_into,
    layout::SliceLayout,
    refusal::{Refusal, clip},
    source::TensorSource,
    verify::verify,
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

/// A merge that was asked for wrongly.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AggregateError {
    #[error("the weight of {hotkey} is {weight}, neither zero nor positive and finite")]
    Weight { hotkey: Hotkey, weight: f64 },
    #[error("{0} contributes twice")]
    Twice(Hotkey),
    #[error("the base model does not have the layout's tensors: {0}")]
    Base(Refusal),
    #[error("{param} parameters, {velocity} of momentum and {gradient} of gradient")]
    Length { param: usize, velocity: usize, gradient: usize },
}

/// The mean of `global - miner` over miners by their weights, in float32, one tensor at a time.
///
/// What can be computed does not depend on the order of the contributions: miners are summed in ascending order of
/// hotkey, and tensors come in ascending order of name.
pub struct PseudoGradient<'a> {
    base: &'a dyn TensorSource,
    layout: &'a SliceLayout,
    accepted: BTreeMap<Hotkey, Accepted>,
    skipped: Vec<(Hotkey, Refusal)>,
}

struct Accepted {
    raw: f64,
    /// Of the accepted ones, summing to 1.
    weight: f64,
    checkpoint: Checkpoint,
}

/// Elements of a miner's tensor that are widened to float32 at a time.
const BATCH: usize = 8192;

impl<'a> PseudoGradient<'a> {
    /// Opens and verifies every contribution. One that is refused is skipped and reported, and the weights of the
    /// others are renormalised.
    pub fn new(
        base: &'a dyn TensorSource,
        layout: &'a SliceLayout,
        contributions: Vec<Contribution>,
        limits: Limits,
    ) -> Result<Self, AggregateError> {
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
        let (mut accepted, mut skipped) = (BTreeMap::new(), Vec::new());
        for Contribution { hotkey, weight, path, model_hash } in contributions {
            if !weight.is_finite() || weight < 0.0 {
                return Err(AggregateError::Weight { hotkey, weight });
            }
            if accepted.contains_key(&hotkey) || skipped.iter().any(|(other, _)| *other == hotkey) {
                return Err(AggregateError::Twice(hotkey));
            }
            if weight == 0.0 {
                continue;
            }
            let opened = open(&path, limits)
                .and_then(|file| verify(&file, layout, model_hash.as_ref()).map(|_| file));
            match opened {
                Ok(checkpoint) => {
                    accepted.insert(hotkey, Accepted { raw: weight, weight: 0.0, checkpoint });
                }
                Err(refusal) => skipped.push((hotkey, refusal)),
            }
        }
        skipped.sort_by(|a, b| a.0.cmp(&b.0));
        let mut gradient = Self { base, layout, accepted, skipped };
        let total = gradient.total_weight();
        for one in gradient.accepted.values_mut() {
            one.weight = one.raw / total;
        }
        Ok(gradient)
    }

    /// Who was left out and why, in ascending order of hotkey.
    pub fn skipped(&self) -> &[(Hotkey, Refusal)] {
        &self.skipped
    }

    /// The weights used, in ascending order of hotkey; they sum to 1.
    pub fn weights(&self) -> Vec<(&Hotkey, f64)> {
        self.accepted.iter().map(|(hotkey, one)| (hotkey, one.weight)).collect()
    }

    /// Sum of the accepted contributions' weights as they were given.
    pub fn total_weight(&self) -> f64 {
        self.accepted.values().map(|one| one.raw).sum()
    }

    /// One tensor of the pseudo-gradient, row-major; zeros when no contribution was accepted.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>, Refusal> {
        if !self.layout.tensors.contains_key(name) {
            return Err(Refusal::missing(name));
        }
        let base = self.base.to_f32(name)?;
        let mut sum = vec![0.0f32; base.len()];
        let mut wide = [0.0f32; BATCH];
        for one in self.accepted.values() {
            let weight = one.weight as f32;
            let data = one.checkpoint.bytes(name)?;
            let dtype = one.checkpoint.spec(name)?.dtype;
            let parts = data.chunks(BATCH * dtype.size());
            for ((sum, base), part) in sum.chunks_mut(BATCH).zip(base.chunks(BATCH)).zip(parts) {
                if !decode_into(dtype, part, &mut wide) {
                    return Err(Refusal::WrongDtype { name: clip(name), found: dtype });
                }
                for ((sum, base), miner) in sum.iter_mut().zip(base).zip(&wide) {
                    *sum += weight * (base - miner);
                }
            }
        }
        Ok(sum)
    }

    /// Every tensor of the layout, in ascending order of name, each computed when it is asked for.
    pub fn iter(&self) -> impl Iterator<Item = Result<(&'a str, Vec<f32>), Refusal>> {
        self.layout.tensors.keys().map(|name| Ok((name.as_str(), self.tensor(name)?)))
    }
}

impl fmt::Debug for PseudoGradient<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PseudoGradient")
            .field("weights", &self.weights())
            .field("skipped", &self.skipped)
            .finish()
    }
}
