//! Whether any activation was NaN or infinite, without waiting for the device each time.
//!
//! Only where such a number could vanish is it looked for. Sums and products keep it: a term that is
//! not finite makes a sum so, and zero times infinity is NaN, so neither a zero probability nor a zero
//! weight hides anything. `silu` keeps it too (of minus infinity it is NaN). Whatever goes wrong in an
//! expert, an MLP or an attention's output therefore reaches the residual stream in the same token,
//! and the next norm's variance. What can hide it, and is looked at before:
//!
//! - a norm divides by an infinite root mean square: its variance;
//! - the softmax of the router takes minus infinity to zero: its input;
//! - the softmax of attention does the same, and padded keys and values are not used at all: queries,
//!   keys and values;
//! - the loss does the same, and does not use what padding predicts: the logits.

use tch::{Device, Kind, Tensor};

use crate::ModelError;

/// Collects least and greatest element of each tensor seen; read once, at the end.
#[derive(Debug, Default)]
pub(crate) struct FiniteCheck {
    layer: usize,
    extremes: Vec<(usize, Tensor)>,
}

impl FiniteCheck {
    /// What follows belongs to `layer`.
    pub(crate) fn enter(&mut self, layer: usize) {
        self.layer = layer;
    }

    /// Notes the extremes of `x`, which must not be empty: NaN and infinity both show in the least and
    /// the greatest element.
    pub(crate) fn see(&mut self, x: &Tensor) -> Result<(), ModelError> {
        let (least, greatest) = x.f_detach()?.f_aminmax(None, false)?;
        let both = Tensor::f_stack(&[least, greatest], 0)?.f_to_kind(Kind::Float)?;
        self.extremes.push((self.layer, both));
        Ok(())
    }

    /// An error that names the first layer where something was not finite.
    pub(crate) fn verdict(&self) -> Result<(), ModelError> {
        if self.extremes.is_empty() {
            return Ok(());
        }
        let extremes: Vec<&Tensor> = self.extremes.iter().map(|(_, both)| both).collect();
        let extremes = Tensor::f_stack(&extremes, 0)?.f_reshape([-1])?.f_to_device(Device::Cpu)?;
        let extremes: Vec<f32> = Vec::try_from(extremes)?;
        let bad = extremes.chunks(2).position(|both| both.iter().any(|x| !x.is_finite()));
        match bad.and_then(|n| self.extremes.get(n)) {
            None => Ok(()),
            Some((layer, _)) => {
                Err(ModelError::NonFinite { place: format!("an activation of layer {layer}") })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_nan_or_infinity_anywhere_is_seen_in_every_type_and_named_by_layer() {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for place in [0usize, 17, 40, 99] {
                    let mut values = vec![0.5f32; 100];
                    let of = |values: &[f32]| Tensor::from_slice(values).to_kind(kind);
                    let mut check = FiniteCheck::default();
                    check.see(&of(&values)).unwrap();
                    check.verdict().unwrap();
                    values[place] = bad;
                    check.enter(3);
                    check.see(&of(&values)).unwrap();
                    let error = check.verdict().unwrap_err().to_string();
                    assert!(error.contains("layer 3"), "{kind:?} {bad} at {place}: {error}");
                }
            }
        }
    }
}
