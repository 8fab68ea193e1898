//! The round's base model, and the local pseudo-gradient against it.
//!
//! Everything here reads mapped files and computes: it belongs on a blocking thread.

use std::{collections::BTreeMap, path::Path};

use checkpoint::{
    Checkpoint, Contribution, Limits, OuterSgd, PseudoGradient, PublishedModel, SliceLayout,
    TensorSpec,
};

use crate::{
    messages::{Offer, PROTOCOL},
    metrics,
    plan::Plan,
    reduce,
    report::{Failure, LeftOut},
};

/// The base model, opened for one expert group.
#[derive(Debug)]
pub(crate) struct Base {
    /// The whole model.
    pub(crate) model: PublishedModel,
    /// Tensors of the group: what miners submit.
    pub(crate) layout: SliceLayout,
    /// Momentum of the group's tensors, float32; all zeros where there is none.
    pub(crate) momentum: Option<Checkpoint>,
}

/// The local pseudo-gradient.
#[derive(Debug)]
pub(crate) struct Local {
    /// The values, tensor after tensor in ascending order of name; `None` when no submission is
    /// usable.
    pub(crate) gradient: Option<Vec<f32>>,
    /// Miners that are not in it.
    pub(crate) skipped: Vec<LeftOut>,
}

impl Base {
    /// Opens the model in `folder`, which must be the plan's base, with the momentum at `momentum`.
    pub(crate) fn open(
        folder: &Path,
        momentum: Option<&Path>,
        plan: &Plan,
    ) -> Result<Self, Failure> {
        let unusable = |error: &dyn std::fmt::Display| Failure::Base(error.to_string());
        let model = PublishedModel::open(folder).map_err(|error| unusable(&error))?;
        let manifest = model.manifest();
        if manifest.model_hash != plan.base.model_hash {
            let (is, should) = (manifest.model_hash, plan.base.model_hash);
            return Err(Failure::Base(format!("its hash is {is}, not {should}")));
        }
        if manifest.expert_group != plan.group {
            let (is, should) = (manifest.expert_group, plan.group);
            return Err(Failure::Base(format!("it was published for group {is}, not {should}")));
        }
        let layout = manifest
            .layout(plan.group)
            .ok_or_else(|| Failure::Base(format!("it has no slice of group {}", plan.group)))?;
        if let Some((name, spec)) = layout.tensors.iter().find(|(_, s)| !s.dtype.is_float()) {
            return Err(Failure::Base(format!("{name} is {:?}, not a float", spec.dtype)));
        }
        let momentum = match momentum {
            Some(path) => {
                let file = checkpoint::open(path, Limits::trusted()).map_err(|e| unusable(&e))?;
                let matches = file.tensors().len() == layout.tensors.len()
                    && file.tensors().iter().all(|(name, info)| {
                        let spec = layout.tensors.get(name);
                        spec.is_some_and(|spec| spec.shape == info.shape())
                    });
                if !matches {
                    return Err(Failure::Base("its momentum is of other tensors".to_owned()));
                }
                Some(file)
            }
            None => None,
        };
        Ok(Self { model, layout, momentum })
    }

    /// The group's tensors, ascending: the order of every vector.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.layout.tensors
    }

    /// Number of values in a vector.
    pub(crate) fn len(&self) -> usize {
        self.tensors().values().map(TensorSpec::elements).sum()
    }

    /// What this validator brings to a merge that steps with `optimizer`.
    pub(crate) fn offer(
        &self,
        plan: &Plan,
        optimizer: &OuterSgd,
        has_gradient: bool,
    ) -> Result<Offer, Failure> {
        let momentum = self.momentum.as_ref().map(|file| checkpoint::model_hash(file)).transpose();
        let momentum = momentum.map_err(|error| Failure::Base(error.to_string()))?;
        Ok(Offer {
            group: plan.group,
            base: plan.base.model_hash,
            layout: reduce::layout_digest(self.tensors(), optimizer, momentum),
            has_gradient,
            protocol: PROTOCOL,
        })
    }

    /// The weighted mean of `base - miner` in float32. A file that is refused is left out and
    /// reported; so is the whole gradient should it not be finite.
    pub(crate) fn aggregate(&self, contributions: Vec<Contribution>) -> Result<Local, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::Aggregate(error.to_string());
        let limits = Limits::default();
        let mean = PseudoGradient::new(&self.model, &self.layout, contributions, limits)
            .map_err(|error| failed(&error))?;
        let skipped: Vec<LeftOut> = mean
            .skipped()
            .iter()
            .map(|(hotkey, refusal)| LeftOut {
                hotkey: hotkey.clone(),
                reason: refusal.reason().to_owned(),
                detail: refusal.to_string(),
            })
            .collect();
        mean.skipped().iter().for_each(|(_, refusal)| metrics::skipped(refusal.reason()));
        if mean.weights().is_empty() {
            return Ok(Local { gradient: None, skipped });
        }
        let mut gradient = Vec::with_capacity(self.len());
        for tensor in mean.iter() {
            let (_, values) = tensor.map_err(|error| failed(&error))?;
            gradient.extend_from_slice(&values);
        }
        if let Err(error) = reduce::finite(&gradient) {
            // Finite weights, too far apart for a float32: nobody else should have to add this up.
            tracing::warn!(%error, "the local gradient is not finite, none is offered");
            return Ok(Local { gradient: None, skipped });
        }
        Ok(Local { gradient: Some(gradient), skipped })
    }
}
