//! A loaded model: shared parameters, the routed experts of one group (or all), and a second set of
//! experts, a submission's, that tokens are routed through instead while it is overlaid. The base's
//! experts are never written to, so going back to them is exact and free.
//!
//! At most the base, one set of experts on the device, and what callers have staged is held: on the
//! processor an overlaid set *is* the staged one, on a GPU it is copied into slots that stay.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use checkpoint::{Checkpoint, Limits, Manifest, SliceId, TensorSource};
use data::Batch;
use domain::ExpertGroup;
use serde_json::Value;
use tch::Kind;

use crate::{
    Device, LoadOptions, ModelConfig, ModelError,
    digest::WordSums,
    loss::{batch_loss, run},
    net::{ExpertSet, FiniteCheck, Network},
    stage::{Layout, Room, Staged, Stager},
    weights::Weights,
};

/// The experts of one group: layer -> `(local id, global id)`. Layers without routed experts are
/// ignored.
pub type GroupExperts = BTreeMap<u32, Vec<(u32, u32)>>;

/// A model on a device. `Send`, so that it can move into a blocking task and back.
#[derive(Debug)]
pub struct LanguageModel {
    config: ModelConfig,
    network: Network,
    layout: Arc<Layout>,
    device: Device,
    base: ExpertSet,
    slots: Option<ExpertSet>,
    overlaid: bool,
    /// Where a set that is not needed any more waits for the next submission.
    room: Room,
}

/// What [`LanguageModel::losses_until`] does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next batch.
    Go,
    /// Nothing more: the losses so far will do.
    Enough,
    /// Give up.
    Cancel,
}

impl LanguageModel {
    /// Loads a model from named tensors: the hub's names, and experts in the subnet's form
    /// (`…experts.K.gate_up_proj` `[2I, H]`, `…experts.K.down_proj` `[H, I]`). The first source
    /// that has a name is taken. With a `group`, routing is masked to its experts and only they
    /// need to be there. Each tensor is copied once, straight into its place on the device, conversion
    /// included; nothing else is held but one tensor that a source has to put together.
    ///
    /// # Errors
    ///
    /// A tensor is missing, has another shape or a type that is not floating, or is not finite; the
    /// group leaves a layer with fewer experts than a token goes through; libtorch fails.
    pub fn load(
        config: &Value,
        sources: &[&dyn TensorSource],
        group: Option<&GroupExperts>,
        options: LoadOptions,
    ) -> Result<Self, ModelError> {
        let config = ModelConfig::from_json(config)?;
        let ids = expert_ids(&config, group)?;
        let weights = Weights::new(&config, sources, options);
        let network = Network::load(&weights, group.is_some().then_some(ids.as_slice()), &options)?;
        let layout = Layout::new(&config, &ids, &options);
        let base = layout.fill(|name, shape| weights.take(name, shape))?;
        Ok(Self {
            config,
            network,
            layout: Arc::new(layout),
            device: options.device,
            base,
            slots: None,
            overlaid: false,
            room: Room::default(),
        })
    }

    /// Loads a model from a folder in the hub's layout: `config.json` and safetensors files, with
    /// the hub's, stacked or the subnet's names of experts.
    pub fn from_hub(
        folder: &Path,
        group: Option<&GroupExperts>,
        options: LoadOptions,
    ) -> Result<Self, ModelError> {
        let hub = checkpoint::HubModel::open(folder)?;
        Self::load(hub.config(), &[&hub], group, options)
    }

    /// Loads the partial model of `group` from its two slice files, whose hashes must be the
    /// manifest's.
    pub fn from_slices(
        manifest: &Manifest,
        group: ExpertGroup,
        shared: &Path,
        experts: &Path,
        options: LoadOptions,
    ) -> Result<Self, ModelError> {
        let unknown = || ModelError::Config {
            field: "expert_group",
            why: format!("the manifest knows no group {group}"),
        };
        let shared = open_slice(manifest, SliceId::Shared, shared)?;
        let experts = open_slice(manifest, SliceId::Group(group), experts)?;
        let group = manifest.groups.0.get(&group).ok_or_else(unknown)?;
        Self::load(&manifest.config, &[&shared, &experts], Some(group), options)
    }

    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What stages submissions for this model, on other threads.
    pub fn stager(&self) -> Stager {
        Stager::new(self.layout.clone(), self.room.clone())
    }

    /// Stages a submission and routes through its experts from now on: [`Stager::stage`] and
    /// [`Self::overlay_staged`] in one.
    ///
    /// # Errors
    ///
    /// See [`ModelError::submission_reason`]. After any error the base is in place.
    pub fn overlay(&mut self, submission: &dyn TensorSource) -> Result<(), ModelError> {
        // Before staging: the last overlay's memory can be used for this one.
        self.restore();
        let staged = self.stager().stage(submission)?;
        self.overlay_staged(staged)
    }

    /// Routes through a staged submission's experts from now on. On the processor they are taken as
    /// they are; on a GPU they are copied into slots that are made once.
    ///
    /// # Errors
    ///
    /// [`ModelError::Staged`] when it was staged for a model of another layout; libtorch fails.
    /// After any error the base is in place.
    pub fn overlay_staged(&mut self, staged: Staged) -> Result<(), ModelError> {
        let _no_grad = tch::no_grad_guard();
        self.restore();
        if !staged.fits(&self.layout) {
            return Err(ModelError::Staged);
        }
        self.slots = Some(match self.device {
            Device::Cpu => staged.experts,
            Device::Cuda(_) => {
                let mut slots = match self.slots.take() {
                    Some(slots) => slots,
                    None => self.base.slots()?,
                };
                slots.copy_from(&staged.experts)?;
                self.room.leave(staged.experts);
                slots
            }
        });
        self.overlaid = true;
        Ok(())
    }

    /// Routes through the base's experts again, bit for bit what they were. On the processor the memory
    /// of what was overlaid is left to the next submission that is staged.
    pub fn restore(&mut self) {
        self.overlaid = false;
        if self.device == Device::Cpu
            && let Some(experts) = self.slots.take()
        {
            self.room.leave(experts);
        }
    }

    /// Digest of the base, shared parameters and experts, as it lies on the device, whatever is
    /// overlaid: 32 hexadecimal digits. Two integer sums of every tensor's words, so it costs about
    /// as much as reading the model once, and no memory; it depends on the group and the type of the
    /// weights. It shows what a run may have spoilt, not what somebody has forged.
    pub fn digest(&self) -> Result<String, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let mut sums = WordSums::new();
        self.network.for_each_parameter(&mut |tensor| sums.add(tensor))?;
        self.base.for_each_parameter(&mut |tensor| sums.add(tensor))?;
        sums.finish()
    }

    /// Loss of each batch in nats: mean over the unpadded tokens, each predicted from those before
    /// it (protocol, section 6). The same experts and batch give the same bits on the same device with
    /// the same number of threads, whatever ran before and whatever else is in `batches`.
    ///
    /// # Errors
    ///
    /// [`ModelError::NonFinite`] when any activation or loss is not finite, padding included.
    pub fn losses(&self, batches: &[Batch]) -> Result<Vec<f64>, ModelError> {
        self.losses_until(batches, &mut |_| Next::Go)
    }

    /// As [`Self::losses`]; asks `next` before each batch, with the losses so far. On
    /// [`Next::Enough`] these are returned, on [`Next::Cancel`] it is [`ModelError::Stopped`].
    pub fn losses_until(
        &self,
        batches: &[Batch],
        next: &mut dyn FnMut(&[f64]) -> Next,
    ) -> Result<Vec<f64>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let mut losses = Vec::with_capacity(batches.len());
        for (n, batch) in batches.iter().enumerate() {
            match next(&losses) {
                Next::Go => (),
                Next::Enough => break,
                Next::Cancel => return Err(ModelError::Stopped),
            }
            let mut check = FiniteCheck::default();
            let loss = batch_loss(&self.network, self.experts(), &self.config, batch, &mut check)?
                .f_double_value(&[])?;
            check.verdict()?;
            if !loss.is_finite() {
                return Err(ModelError::NonFinite { place: format!("the loss of batch {n}") });
            }
            losses.push(loss);
        }
        Ok(losses)
    }

    /// Logits of one batch as float32, `[rows, length, vocabulary]` in row-major order: to compare
    /// with other implementations.
    pub fn logits(&self, batch: &Batch) -> Result<Vec<f32>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let mut check = FiniteCheck::default();
        let h = run(&self.network, self.experts(), &self.config, batch, &mut check)?;
        let logits = self.network.logits(&h, &mut check)?;
        check.verdict()?;
        Ok(Vec::try_from(logits.f_to_kind(Kind::Float)?.f_reshape([-1])?)?)
    }

    fn experts(&self) -> &ExpertSet {
        match &self.slots {
            Some(slots) if self.overlaid => slots,
            Some(_) | None => &self.base,
        }
    }

    pub(crate) fn into_parts(self) -> (ModelConfig, Network, ExpertSet) {
        (self.config, self.network, self.base)
    }
}

/// The mean of per-batch losses; NaN for none.
pub fn mean_loss(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// Ids of the experts to load, per layer with experts.
pub(crate) fn expert_ids(
    config: &ModelConfig,
    group: Option<&GroupExperts>,
) -> Result<Vec<Vec<i64>>, ModelError> {
    let Some(group) = group else {
        return Ok(config.moe_layers().map(|_| (0..config.routed_experts).collect()).collect());
    };
    let bad = |why| ModelError::Config { field: "expert_group", why };
    config
        .moe_layers()
        .map(|layer| {
            let pairs = group.get(&layer).map_or(&[][..], Vec::as_slice);
            let mut ids: Vec<i64> = pairs.iter().map(|(_, id)| i64::from(*id)).collect();
            ids.sort_unstable();
            ids.dedup();
            if ids.len() != pairs.len() || ids.iter().any(|id| *id >= config.routed_experts) {
                return Err(bad(format!("layer {layer} names an expert twice or one too many")));
            }
            // With fewer, the masked choice would fall on experts that are not there.
            if i64::try_from(ids.len()).is_ok_and(|n| n < config.top_k) {
                let (n, k) = (ids.len(), config.top_k);
                return Err(bad(format!("layer {layer} has {n} experts, a token needs {k}")));
            }
            Ok(ids)
        })
        .collect()
}

fn open_slice(manifest: &Manifest, id: SliceId, path: &Path) -> Result<Checkpoint, ModelError> {
    let slice = manifest.slice(id).ok_or_else(|| ModelError::Config {
        field: "slices",
        why: format!("the manifest has no slice {id}"),
    })?;
    let checkpoint = checkpoint::open(path, Limits::trusted())?;
    let found = checkpoint::model_hash(&checkpoint)?;
    if found != slice.model_hash {
        let expected = slice.model_hash;
        return Err(ModelError::file(path, format!("hash {found} instead of {expected}")));
    }
    Ok(checkpoint)
}
