//! The choice of a token's experts.

use tch::{Kind, Tensor};

use super::{Compute, FiniteCheck};
use crate::{ModelError, TopK, weights::Weights};

/// What the probabilities of experts outside the expert group are set to before the choice.
const OUTSIDE_GROUP: f64 = -10_000.0;
/// What those of experts outside the chosen routing groups are set to: below every probability, above
/// [`OUTSIDE_GROUP`].
const OUTSIDE_CHOICE: f64 = -1.0;

/// Chooses `top_k` experts of each token by a softmax over all of them.
///
/// The chosen probabilities stay what they are: neither the expert group's mask nor the choice
/// renormalises them. With [`TopK::GroupLimited`] the experts of a layer lie in routing groups of
/// equal size (nothing to do with the subnet's expert groups), and a token goes only to experts of
/// the groups that have the most probable ones. The expert group's mask comes first: a routing group
/// is worth its best allowed expert. Where the chosen routing groups have fewer allowed experts than
/// a token needs, an allowed expert elsewhere takes the place with weight zero; an expert outside the
/// expert group never does.
#[derive(Debug)]
pub(crate) struct Router {
    gate: Tensor,
    /// Experts outside the expert group, `[E]` bool; `None` when all are in.
    outside: Option<Tensor>,
    top_k: i64,
    method: TopK,
    scale: f64,
}

/// Weights (float32) and ids of the experts of each token, both `[N, k]`, ids ascending.
pub(crate) struct Choice {
    pub(crate) weights: Tensor,
    pub(crate) experts: Tensor,
}

impl Router {
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
        let (top_k, method, scale) = (c.top_k, c.method, c.routed_scaling_factor);
        Ok(Self { gate, outside, top_k, method, scale })
    }

    pub(crate) fn gate(&self) -> &Tensor {
        &self.gate
    }

    /// `tokens` is `[N, H]`.
    pub(crate) fn choose(
        &self,
        compute: Compute,
        tokens: &Tensor,
        check: &mut FiniteCheck,
    ) -> Result<Choice, ModelError> {
        let logits =
            compute.linear(&tokens.f_to_kind(Kind::Float)?, &self.gate.f_to_kind(Kind::Float)?)?;
        // The softmax would turn a negative infinity into a zero and hide it.
        check.see(&logits)?;
        let probabilities = logits.f_softmax(-1, Kind::Float)?;
        let (weights, experts) = self.top(&probabilities)?;
        // In ascending order of id, in which a token's experts are added up.
        let (experts, order) = experts.f_sort(-1, false)?;
        let weights = weights.f_gather(-1, &order, false)?.f_mul_scalar(self.scale)?;
        Ok(Choice { weights, experts })
    }

    /// The chosen probabilities and ids, `[N, k]` each, in any order.
    fn top(&self, probabilities: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
        let masked = match &self.outside {
            None => probabilities.shallow_clone(),
            Some(outside) => probabilities.f_masked_fill(outside, OUTSIDE_GROUP)?,
        };
        let TopK::GroupLimited { groups, chosen } = self.method else {
            let (_, experts) = masked.f_topk(self.top_k, -1, true, false)?;
            return Ok((probabilities.f_gather(-1, &experts, false)?, experts));
        };
        let (tokens, all) = masked.size2()?;
        let scores = masked.f_view([tokens, groups, -1])?.f_amax([-1i64].as_slice(), false)?;
        let (_, best) = scores.f_topk(chosen, -1, true, false)?;
        let lost = scores
            .f_ones_like()?
            .f_to_kind(Kind::Bool)?
            .f_scatter_value(-1, &best, 0)?
            .f_unsqueeze(-1)?
            .f_expand([tokens, groups, all / groups], false)?
            .f_reshape([tokens, all])?;
        // What the expert group's mask has put lower stays there.
        let limited = masked.f_masked_fill(&lost, OUTSIDE_CHOICE)?.f_minimum(&masked)?;
        let (_, experts) = limited.f_topk(self.top_k, -1, true, false)?;
        let weights = probabilities.f_masked_fill(&lost, 0.0)?.f_gather(-1, &experts, false)?;
        Ok((weights, experts))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Device;

    use super::*;

    const EXPERTS: usize = 12;
    const GROUPS: usize = 4;

    /// The definition, for one token: ids ascending, with weights.
    fn by_definition(
        p: &[f32],
        allowed: &[bool],
        top_k: usize,
        chosen: Option<usize>,
    ) -> Vec<(i64, f32)> {
        let size = EXPERTS / GROUPS;
        let best = |group: usize| {
            let ids = group * size..(group + 1) * size;
            ids.filter(|id| allowed[*id]).map(|id| p[id]).fold(-1.0, f32::max)
        };
        let mut groups: Vec<usize> = (0..GROUPS).collect();
        groups.sort_by(|a, b| best(*b).total_cmp(&best(*a)));
        groups.truncate(chosen.unwrap_or(GROUPS));
        let inside = |id: &usize| groups.contains(&(id / size));
        let mut ids: Vec<usize> = (0..EXPERTS).filter(|id| allowed[*id]).collect();
        ids.sort_by(|a, b| inside(b).cmp(&inside(a)).then(p[*b].total_cmp(&p[*a])));
        ids.truncate(top_k);
        ids.sort_unstable();
        ids.iter().map(|id| (*id as i64, if inside(id) { p[*id] } else { 0.0 })).collect()
    }

    proptest! {
        #[test]
        fn both_methods_choose_as_defined_and_never_outside_the_expert_group(
            p in Just((1..=EXPERTS).map(|n| n as f32 / 78.0).collect::<Vec<_>>()).prop_shuffle(),
            allowed in prop::collection::vec(any::<bool>(), EXPERTS),
            top_k in 1usize..4,
            chosen in prop::option::of(1usize..=GROUPS),
        ) {
            tch::set_num_threads(1);
            prop_assume!(allowed.iter().filter(|allowed| **allowed).count() >= top_k);
            let outside: Vec<bool> = allowed.iter().map(|allowed| !allowed).collect();
            let router = Router {
                gate: Tensor::zeros([1], (Kind::Float, Device::Cpu)),
                outside: Some(Tensor::from_slice(&outside)),
                top_k: top_k as i64,
                method: chosen.map_or(TopK::Greedy, |chosen| TopK::GroupLimited {
                    groups: GROUPS as i64,
                    chosen: chosen as i64,
                }),
                scale: 1.0,
            };
            let (weights, ids) = router.top(&Tensor::from_slice(&p).view([1, -1])).unwrap();
            let ids = Vec::<i64>::try_from(ids.view([-1])).unwrap();
            let weights = Vec::<f32>::try_from(weights.view([-1])).unwrap();
            let mut found: Vec<(i64, f32)> = ids.into_iter().zip(weights).collect();
            found.sort_by_key(|(id, _)| *id);
            let expected = by_definition(&p, &allowed, top_k, chosen);
            // Who takes a place with weight zero is nobody's business, but that it is allowed.
            for (id, _) in &found {
                prop_assert!(allowed[*id as usize]);
            }
            let heard = |all: &[(i64, f32)]| -> Vec<(i64, f32)> {
                all.iter().copied().filter(|(_, weight)| *weight > 0.0).collect()
            };
            prop_assert_eq!(heard(&found), heard(&expected));
            prop_assert_eq!(found.len(), top_k);
        }
    }
}
