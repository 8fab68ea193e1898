//! The plan.

use std::{cmp::Reverse, fmt};

use serde_json::Value;

use super::{Available, readable};
use crate::{
    Device, GroupExperts, LoadOptions, ModelConfig, ModelError, init::parameters,
    language_model::expert_ids, loss::CHUNK, net::BLOCK, stage::Layout,
};

/// What libtorch takes of the host before it does anything, what its kernels keep for themselves, and
/// what the allocator keeps of small tensors.
const RUNTIME_HOST: u64 = 192 << 20;
/// What CUDA's context and the libraries' workspaces take of a GPU. Not measured here.
const RUNTIME_DEVICE: u64 = 768 << 20;

/// Where a processor has units for a short type, oneDNN compiles a kernel for each shape of a product in
/// it, and keeps as many as this (its default), …
const KERNELS: u64 = 1024;
/// … of about this size: 48 layers of the small width held 362 MB of them.
const KERNEL: u64 = 256 << 10;

/// Size of the largest batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchShape {
    /// Sequences.
    pub rows: usize,
    /// Tokens of a sequence.
    pub length: usize,
}

/// Which memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The processor's.
    Host,
    /// The GPU's.
    Gpu,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Host => "host",
            Self::Gpu => "GPU",
        })
    }
}

/// Something that takes memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What, for a reader.
    pub name: &'static str,
    /// Where.
    pub place: Place,
    /// How much.
    pub bytes: u64,
}

/// Memory that a model, its overlay, what is staged meanwhile and one batch need at most. Files are
/// mapped: their pages are the kernel's to give up and are not counted.
///
/// The largest tensors of each step are added up as if they lived at once, experts as if every token
/// went to the same one, and kernels are granted as much again for their copies and for what the
/// allocator cannot use twice. It is computed, not measured, and on the high side: on the processor a
/// test holds it between the measured peak and twice that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What is there all the time.
    pub parts: Vec<Part>,
    /// Steps of a forward pass, of which the largest counts: never two at once.
    pub steps: Vec<Part>,
}

impl MemoryPlan {
    /// Plans for the model of this `config.json` with the experts of `group`, or all; batches of
    /// `shape`; and `staged` submissions beside the overlaid one.
    ///
    /// # Errors
    ///
    /// The configuration or the group is refused, as it would be at the load.
    pub fn new(
        config: &Value,
        group: Option<&GroupExperts>,
        options: LoadOptions,
        shape: BatchShape,
        staged: u32,
    ) -> Result<Self, ModelError> {
        let config = ModelConfig::from_json(config)?;
        let experts = expert_ids(&config, group)?;
        let layout = Layout::new(&config, &experts, &options);
        let weight = options.weights.kind().elt_size_in_bytes() as u64;
        let shapes = parameters(&config);
        let tensors = shapes.iter().filter(|(name, _)| !name.contains(".mlp.experts."));
        let sizes: Vec<u64> = tensors
            .map(|(_, shape)| shape.iter().map(|size| *size as u64).product::<u64>() * weight)
            .collect();
        let (place, runtime) = match options.device {
            Device::Cpu => (Place::Host, None),
            Device::Cuda(_) => (Place::Gpu, Some(RUNTIME_DEVICE)),
        };
        let part = |name, place, bytes| Part { name, place, bytes };
        let tokens = shape.rows as u64 * shape.length as u64;
        // Before and after an addition, and what is added.
        let residual = 3 * tokens * config.hidden_size.unsigned_abs() * weight;
        let mut parts = vec![
            part("libtorch", Place::Host, RUNTIME_HOST),
            part("shared parameters", place, sizes.iter().sum()),
            part("experts of the base", place, layout.bytes()),
            part("experts of the overlaid submission", place, layout.bytes()),
            part("staged submissions", Place::Host, u64::from(staged) * layout.bytes()),
            part("residual stream", place, residual),
        ];
        parts.extend(runtime.map(|bytes| part("CUDA", Place::Gpu, bytes)));
        if compiles_kernels(&options) {
            let products = 2 * experts.iter().map(|ids| ids.len() as u64).sum::<u64>()
                + 6 * config.layers.unsigned_abs();
            parts.push(part("compiled kernels", Place::Host, products.min(KERNELS) * KERNEL));
            // They take weights in an order of their own, and what that takes is not given back.
            parts.push(part("reordered experts", Place::Host, layout.bytes()));
        }
        parts.retain(|part| part.bytes > 0);
        let steps = Steps { config: &config, options: &options, shape, tokens };
        let steps = vec![
            part("attention", place, 2 * steps.attention()),
            part("experts and MLP", place, 2 * steps.feed_forward()),
            part("logits of a chunk", place, 2 * steps.logits()),
        ];
        Ok(Self { parts, steps })
    }

    /// Bytes that are needed of a place.
    pub fn needed(&self, place: Place) -> u64 {
        let of = |parts: &[Part]| -> Vec<u64> {
            parts.iter().filter(|part| part.place == place).map(|part| part.bytes).collect()
        };
        of(&self.parts).iter().sum::<u64>() + of(&self.steps).into_iter().max().unwrap_or(0)
    }

    /// Whether it fits.
    ///
    /// # Errors
    ///
    /// [`ModelError::NotEnough`] for a place whose memory is known and less than needed.
    pub fn check(&self, available: &Available) -> Result<(), ModelError> {
        for (place, available) in [(Place::Host, available.host), (Place::Gpu, available.device)] {
            let needed = self.needed(place);
            if let Some(available) = available.filter(|available| *available < needed) {
                return Err(ModelError::NotEnough { place, needed, available });
            }
        }
        Ok(())
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, place: Place, bytes| {
            writeln!(f, "{name:<36} {place:<5} {:>12}", readable(bytes))
        };
        for part in &self.parts {
            row(f, part.name, part.place, part.bytes)?;
        }
        let mut steps: Vec<&Part> = self.steps.iter().collect();
        steps.sort_by_key(|step| Reverse(step.bytes));
        for (n, step) in steps.into_iter().enumerate() {
            let note = if n == 0 { step.name.to_owned() } else { format!("({})", step.name) };
            row(f, &note, step.place, step.bytes)?;
        }
        for place in [Place::Host, Place::Gpu] {
            let needed = self.needed(place);
            if needed > 0 {
                row(f, "together", place, needed)?;
            }
        }
        Ok(())
    }
}

/// Whether products on this processor are computed by kernels that oneDNN compiles for each shape. Seen
/// for bfloat16; float16 is taken to be alike, and was not measured.
fn compiles_kernels(options: &LoadOptions) -> bool {
    let kind = options.autocast.map_or(options.weights.kind(), |cast| cast.kind());
    matches!(options.device, Device::Cpu) && has_units_for(kind)
}

#[cfg(target_arch = "x86_64")]
fn has_units_for(kind: tch::Kind) -> bool {
    (kind == tch::Kind::BFloat16 && std::arch::is_x86_feature_detected!("avx512bf16"))
        || (kind == tch::Kind::Half && std::arch::is_x86_feature_detected!("avx512fp16"))
}

#[cfg(not(target_arch = "x86_64"))]
fn has_units_for(_: tch::Kind) -> bool {
    false
}

/// Tensors that live at once in the steps of a layer, in bytes.
struct Steps<'a> {
    config: &'a ModelConfig,
    options: &'a LoadOptions,
    shape: BatchShape,
    tokens: u64,
}

const FLOAT: u64 = 4;

impl Steps<'_> {
    /// Bytes of a parameter's element, and of a product's.
    fn sizes(&self) -> (u64, u64) {
        let weight = self.options.weights.kind().elt_size_in_bytes() as u64;
        let product = self.options.autocast.map(|cast| cast.kind().elt_size_in_bytes() as u64);
        (weight, product.unwrap_or(weight))
    }

    /// A parameter of `rows` and `columns` in the type of products, where it has another.
    fn cast(&self, rows: u64, columns: u64) -> u64 {
        let (_, product) = self.sizes();
        if self.options.autocast.is_some() { rows * columns * product } else { 0 }
    }

    fn attention(&self) -> u64 {
        let c = self.config;
        let (weight, product) = self.sizes();
        let [heads, hidden] = [c.heads, c.hidden_size].map(i64::unsigned_abs);
        let [nope, rope, value] =
            [c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim].map(i64::unsigned_abs);
        let key = nope + rope;
        let (rows, length) = (self.shape.rows as u64, self.shape.length as u64);
        // Query, key, key without position and value together, what comes out, its blocks; the input.
        let narrow = heads * (2 * key + nope + value + 2 * value) * product + hidden * weight;
        let kernel = match self.options.device {
            Device::Cpu => {
                let block = rows * heads * length * length.min(BLOCK.unsigned_abs());
                let copies = if product == FLOAT { key } else { 2 * key + value };
                2 * block * FLOAT + self.tokens * heads * copies * FLOAT
            }
            // The padding's mask, as flags and as numbers.
            Device::Cuda(_) => rows * length * length * (1 + product),
        };
        self.tokens * narrow + kernel + self.cast(heads * key, hidden)
    }

    fn feed_forward(&self) -> u64 {
        let c = self.config;
        let (weight, product) = self.sizes();
        let [hidden, top_k, experts] =
            [c.hidden_size, c.top_k, c.routed_experts].map(i64::unsigned_abs);
        let shared = (c.shared_experts * c.moe_intermediate_size).unsigned_abs();
        // Gate and up together, the gate's silu, their product; what goes in and comes out.
        let expert = 4 * c.moe_intermediate_size.unsigned_abs() * product + 2 * hidden * product;
        // What all chosen experts say, piece by piece and as a whole; the router's numbers; the sum.
        let moe = 2 * top_k * hidden * weight
            + experts * 3 * FLOAT
            + top_k * 48
            + 2 * hidden * weight
            + hidden * product
            + expert.max(4 * shared * product);
        let dense = if c.dense_layers > 0 { c.intermediate_size.unsigned_abs() } else { 0 };
        let widest = dense.max(shared);
        self.tokens * moe.max(4 * dense * product + hidden * weight) + self.cast(widest, hidden)
    }

    fn logits(&self) -> u64 {
        let vocabulary = self.config.vocab_size.unsigned_abs();
        let (_, product) = self.sizes();
        let chunk = self.tokens.min(CHUNK.unsigned_abs()) * vocabulary;
        // Logits, in float32 where they are not, their logarithms.
        let converted = if product == FLOAT { 0 } else { FLOAT };
        chunk * (product + converted + FLOAT)
            + self.cast(vocabulary, self.config.hidden_size.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        WeightType,
        init::{Width, deepseek_config, demo_groups},
    };

    const SHAPE: BatchShape = BatchShape { rows: 1, length: 4096 };

    fn plan(device: Device, weights: WeightType) -> MemoryPlan {
        let options = LoadOptions { device, weights, ..LoadOptions::default() };
        MemoryPlan::new(&deepseek_config(Width::Full), None, options, SHAPE, 1).unwrap()
    }

    #[test]
    fn the_whole_real_model_in_bfloat16_needs_its_parameters_and_two_sets_of_experts() {
        let plan = plan(Device::Cuda(0), WeightType::BFloat16);
        let bytes = |name: &str| plan.parts.iter().find(|part| part.name == name).unwrap().bytes;
        let experts = 26 * 64 * 3 * 1408 * 2048 * 2;
        assert_eq!(bytes("experts of the base"), experts);
        assert_eq!(bytes("shared parameters") + experts, 15_706_484_224 * 2);
        assert_eq!(plan.needed(Place::Host), experts + RUNTIME_HOST);
        assert!(plan.needed(Place::Gpu) > 15_706_484_224 * 2 + experts);
        let text = plan.to_string();
        assert!(
            text.contains("together") && text.contains("GPU") && text.contains("GiB"),
            "{text}"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_figures_and_what_is_not_known_is_not() {
        let plan = plan(Device::Cpu, WeightType::Float32);
        let needed = plan.needed(Place::Host);
        assert_eq!(plan.needed(Place::Gpu), 0);
        let of = |host| plan.check(&Available { host, device: None });
        of(Some(needed)).unwrap();
        of(None).unwrap();
        let error = of(Some(needed - 1)).unwrap_err();
        assert!(
            matches!(error, ModelError::NotEnough { place: Place::Host, needed: n, available }
                if n == needed && available == needed - 1),
            "{error}"
        );
        assert_eq!(error.submission_reason(), None);
    }

    #[test]
    fn a_group_needs_less_and_a_longer_batch_more() {
        let config = deepseek_config(Width::Small);
        let groups = demo_groups(&config, 8).unwrap();
        let of = |group: Option<&GroupExperts>, length| {
            let shape = BatchShape { rows: 1, length };
            let plan = MemoryPlan::new(&config, group, LoadOptions::default(), shape, 1).unwrap();
            plan.needed(Place::Host)
        };
        let group = groups.0.values().next();
        assert!(of(group, 512) < of(None, 512) / 2);
        assert!(of(group, 4096) > of(group, 512));
    }
}
