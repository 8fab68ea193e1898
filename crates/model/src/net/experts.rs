//! Softmax-routed experts and the shared ones.

use tch::{Kind, Tensor};

use super::{Compute, FiniteCheck, Mlp};
use crate::{ModelError, weights::Weights};

/// What the router's probabilities of experts outside the group are set to before the choice.
const OUTSIDE_GROUP: f64 = -10_000.0;

/// One routed expert, in the subnet's form.
#[derive(Debug)]
pub(crate) struct Expert {
    /// Id among all experts of the layer.
    pub(crate) id: i64,
    /// `[2I, H]`: gate rows, then up rows.
    pub(crate) gate_up: Tensor,
    /// `[H, I]`.
    pub(crate) down: Tensor,
}

impl Expert {
    fn forward(
        &self,
        compute: Compute,
        x: &Tensor,
        check: &mut FiniteCheck,
    ) -> Result<Tensor, ModelError> {
        let inner = self.gate_up.size2()?.0 / 2;
        let both = compute.linear(x, &self.gate_up)?;
        check.see(&both)?;
        let (gate, up) = (both.f_narrow(-1, 0, inner)?, both.f_narrow(-1, inner, inner)?);
        let inner = gate.f_silu()?.f_mul(&up)?;
        check.see(&inner)?;
        let out = compute.linear(&inner, &self.down)?;
        check.see(&out)?;
        Ok(out)
    }
}

/// The routed experts of every layer that has them, in ascending order of layer and id.
#[derive(Debug)]
pub(crate) struct ExpertSet(Vec<Vec<Expert>>);

impl ExpertSet {
    pub(crate) fn new(mut layers: Vec<Vec<Expert>>) -> Self {
        for layer in &mut layers {
            layer.sort_by_key(|expert| expert.id);
        }
        Self(layers)
    }

    pub(crate) fn layers(&self) -> &[Vec<Expert>] {
        &self.0
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Expert)> {
        self.0.iter_mut().enumerate().flat_map(|(n, layer)| layer.iter_mut().map(move |e| (n, e)))
    }

    /// Shows every tensor in order of layer and id.
    pub(crate) fn for_each_parameter(
        &self,
        see: &mut dyn FnMut(&Tensor) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        self.0.iter().flatten().try_for_each(|expert| {
            see(&expert.gate_up)?;
            see(&expert.down)
        })
    }

    /// Overwrites these experts by others of the same ids and shapes, wherever they lie.
    pub(crate) fn copy_from(&mut self, other: &Self) -> Result<(), ModelError> {
        let others = other.0.iter().flatten();
        for (mine, other) in self.0.iter_mut().flatten().zip(others) {
            mine.gate_up.f_copy_(&other.gate_up)?;
            mine.down.f_copy_(&other.down)?;
        }
        Ok(())
    }

    /// Room of the same shapes and types on the same device, to be written before it is read.
    pub(crate) fn slots(&self) -> Result<Self, ModelError> {
        let slot = |expert: &Expert| {
            Ok(Expert {
                id: expert.id,
                gate_up: expert.gate_up.f_zeros_like()?,
                down: expert.down.f_zeros_like()?,
            })
        };
        let layers = self
            .0
            .iter()
            .map(|layer| layer.iter().map(slot).collect())
            .collect::<Result<_, ModelError>>()?;
        Ok(Self(layers))
    }
}

/// The part of a layer that chooses experts and adds up what they say.
#[derive(Debug)]
pub(crate) struct Moe {
    gate: Tensor,
    /// Experts outside the group, `[E]` bool; `None` when all are in.
    outside: Option<Tensor>,
    top_k: i64,
    scale: f64,
    shared: Mlp,
}

impl Moe {
    pub(crate) fn load(
        weights: &Weights<'_>,
        at: &str,
        allowed: Option<&[i64]>,
    ) -> Result<Self, ModelError> {
        let c = weights.config();
        let gate = weights.take(&format!("{at}gate.weight"), &[c.routed_experts, c.hidden_size])?;
        let outside = match allowed {
            None => None,
            Some(allowed) => {
                let flags: Vec<bool> =
                    (0..c.routed_experts).map(|id| !allowed.contains(&id)).collect();
                Some(Tensor::f_from_slice(&flags)?.f_to_device(gate.device())?)
            }
        };
        let inner = c.shared_experts * c.moe_intermediate_size;
        Ok(Self {
            gate,
            outside,
            top_k: c.top_k,
            scale: c.routed_scaling_factor,
            shared: Mlp::load(weights, &format!("{at}shared_experts."), inner)?,
        })
    }

    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.gate).chain(self.shared.parameters())
    }

    /// `x` is `[B, T, H]`, and so is the result.
    pub(crate) fn forward(
        &self,
        compute: Compute,
        x: &Tensor,
        experts: &[Expert],
        check: &mut FiniteCheck,
    ) -> Result<Tensor, ModelError> {
        let shape = x.size();
        let tokens = x.f_reshape([-1, x.size3()?.2])?;
        let (weight, chosen) = self.route(compute, &tokens, check)?;
        let mut out = tokens.f_zeros_like()?;
        let kind = out.f_kind()?;
        for expert in experts {
            let hits = chosen.f_eq(expert.id)?.f_nonzero()?;
            if hits.size2()?.0 == 0 {
                continue;
            }
            let (row, place) = (hits.f_select(1, 0)?, hits.f_select(1, 1)?);
            let y = expert.forward(compute, &tokens.f_index_select(0, &row)?, check)?;
            let w = weight.f_index(&[Some(&row), Some(&place)])?.f_unsqueeze(-1)?;
            out = out.f_index_add_(0, &row, &y.f_mul(&w)?.f_to_kind(kind)?)?;
        }
        check.see(&out)?;
        let shared = self.shared.forward(compute, x, check)?;
        Ok(out.f_view(shape.as_slice())?.f_add(&shared)?)
    }

    /// Weights (float32) and ids of the experts of each token, both `[tokens, k]`. The softmax is
    /// over all experts and the chosen probabilities stay what they are: neither the group's mask
    /// nor the choice renormalises them.
    fn route(
        &self,
        compute: Compute,
        tokens: &Tensor,
        check: &mut FiniteCheck,
    ) -> Result<(Tensor, Tensor), ModelError> {
        let logits =
            compute.linear(&tokens.f_to_kind(Kind::Float)?, &self.gate.f_to_kind(Kind::Float)?)?;
        let probabilities = logits.f_softmax(-1, Kind::Float)?;
        check.see(&probabilities)?;
        let (weight, chosen) = match &self.outside {
            None => probabilities.f_topk(self.top_k, -1, true, false)?,
            Some(outside) => {
                let masked = probabilities.f_masked_fill(outside, OUTSIDE_GROUP)?;
                let (_, chosen) = masked.f_topk(self.top_k, -1, true, false)?;
                (probabilities.f_gather(-1, &chosen, false)?, chosen)
            }
        };
        Ok((weight.f_mul_scalar(self.scale)?, chosen))
    }
}
