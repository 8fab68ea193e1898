//! Routed experts and the shared ones.

use tch::{Device, Kind, Tensor};

use super::{Compute, FiniteCheck, Mlp, router::Router};
use crate::{ModelError, weights::Weights};

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
    fn forward(&self, compute: Compute, x: &Tensor) -> Result<Tensor, ModelError> {
        let inner = self.gate_up.size2()?.0 / 2;
        let both = compute.linear(x, &self.gate_up)?;
        let (gate, up) = (both.f_narrow(-1, 0, inner)?, both.f_narrow(-1, inner, inner)?);
        compute.linear(&gate.f_silu()?.f_mul(&up)?, &self.down)
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
                gate_up: expert.gate_up.f_empty_like()?,
                down: expert.down.f_empty_like()?,
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

/// The part of a layer that sends tokens to experts and adds up what they say.
#[derive(Debug)]
pub(crate) struct Moe {
    router: Router,
    /// Experts of the layer, in the group or not.
    experts: i64,
    shared: Mlp,
}

impl Moe {
    pub(crate) fn load(
        weights: &Weights<'_>,
        at: &str,
        allowed: Option<&[i64]>,
    ) -> Result<Self, ModelError> {
        let c = weights.config();
        let inner = c.shared_experts * c.moe_intermediate_size;
        Ok(Self {
            router: Router::load(weights, at, allowed)?,
            experts: c.routed_experts,
            shared: Mlp::load(weights, &format!("{at}shared_experts."), inner)?,
        })
    }

    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(self.router.gate()).chain(self.shared.parameters())
    }

    /// `x` is `[B, T, H]`, and so is the result.
    ///
    /// Tokens are sorted by expert once, so that an expert is one gather and its products, and the
    /// host waits for the device once. What a token's experts say is added up in ascending order of
    /// id, one after the other: by gathering it back, because a scattered addition has no order on a
    /// GPU.
    pub(crate) fn forward(
        &self,
        compute: Compute,
        x: &Tensor,
        experts: &[Expert],
        check: &mut FiniteCheck,
    ) -> Result<Tensor, ModelError> {
        let tokens = x.f_reshape([-1, x.size3()?.2])?;
        let choice = self.router.choose(compute, &tokens, check)?;
        let (n, k) = choice.experts.size2()?;
        let flat = choice.experts.f_reshape([-1])?;
        let order = flat.f_argsort_stable(true, 0, false)?;
        let counts = flat.f_bincount::<&Tensor>(None, self.experts)?.f_to_device(Device::Cpu)?;
        let counts = Vec::<i64>::try_from(counts)?;
        let token = order.f_floor_divide_scalar(k)?;
        let weights = choice.weights.f_reshape([-1])?.f_index_select(0, &order)?.f_unsqueeze(-1)?;

        let cast = compute.cast(&tokens)?;
        let kind = x.f_kind()?;
        let mut said = Vec::with_capacity(experts.len());
        let mut from = 0;
        for expert in experts {
            let count = usize::try_from(expert.id).ok().and_then(|id| counts.get(id).copied());
            let count = count.unwrap_or(0);
            if count == 0 {
                continue;
            }
            let rows = cast.f_index_select(0, &token.f_narrow(0, from, count)?)?;
            let y = expert.forward(compute, &rows)?;
            said.push(y.f_mul(&weights.f_narrow(0, from, count)?)?.f_to_kind(kind)?);
            from += count;
        }
        if from != n * k {
            return Err(ModelError::NoExpert { tokens: n * k - from });
        }
        let said = Tensor::f_cat(&said, 0)?;

        // Where each token's places are among the sorted ones.
        let places = Tensor::f_arange(n * k, (Kind::Int64, x.device()))?;
        let places = order.f_empty_like()?.f_scatter_(0, &order, &places)?.f_view([n, k])?;
        let mut out = said.f_index_select(0, &places.f_select(1, 0)?)?;
        for place in 1..k {
            out = out.f_add_(&said.f_index_select(0, &places.f_select(1, place)?)?)?;
        }
        let out = out.f_view(x.size().as_slice())?;
        Ok(out.f_add(&self.shared.forward(compute, x)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What lets [`FiniteCheck`] look at so little.
    #[test]
    fn whatever_goes_wrong_in_an_expert_comes_out_of_it_and_of_a_weight_of_zero() {
        tch::set_num_threads(1);
        let compute = Compute { autocast: None };
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            tch::manual_seed(1);
            let random =
                |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
            for (bad, row) in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY]
                .into_iter()
                // A gate's row, and one of what it gates.
                .flat_map(|bad| [3, 11].map(|row| (bad, row)))
            {
                let (gate_up, down) = (random([16, 6]), random([6, 8]));
                let expert = |gate_up: &Tensor| Expert {
                    id: 0,
                    gate_up: gate_up.shallow_clone(),
                    down: down.shallow_clone(),
                };
                let x = random([5, 6]).abs();
                let fine = expert(&gate_up).forward(compute, &x).unwrap();
                assert!(fine.isfinite().all().int64_value(&[]) == 1);
                // The whole row of `both` is then not finite, for every token.
                let _ = gate_up.get(row).fill_(bad);
                let y = expert(&gate_up).forward(compute, &x).unwrap();
                let weight = Tensor::zeros([5, 1], (Kind::Float, Device::Cpu));
                let out = (y * weight).to_kind(kind);
                let finite = out.isfinite().any().int64_value(&[]);
                assert_eq!(finite, 0, "{kind:?}: {bad} in row {row} of an expert");
            }
        }
    }
}
