//! From a batch to its loss, without ever holding the logits of all its tokens.

use data::{Batch, IGNORED_LABEL};
use tch::{Kind, Reduction, Tensor};

use crate::{
    ModelConfig, ModelError,
    net::{ExpertSet, FiniteCheck, Network},
};

/// Tokens whose logits are held at a time. A constant: the bits of a loss must not depend on how much
/// memory there is.
pub(crate) const CHUNK: i64 = 256;

/// The residual stream behind the last norm, `[B, T, H]`.
pub(crate) fn run(
    network: &Network,
    experts: &ExpertSet,
    config: &ModelConfig,
    batch: &Batch,
    check: &mut FiniteCheck,
) -> Result<Tensor, ModelError> {
    batch.check(config.vocab_size)?;
    let shape = [batch.rows() as i64, batch.length() as i64];
    let ids = Tensor::f_from_slice(batch.ids())?.f_view(shape)?;
    let attended = if batch.padded() {
        let flags: Vec<bool> = batch.labels().iter().map(|label| *label != IGNORED_LABEL).collect();
        Some(Tensor::f_from_slice(&flags)?.f_view(shape)?)
    } else {
        None
    };
    network.forward(&ids, attended.as_ref(), experts, check)
}

/// Mean cross entropy over the unpadded tokens of a batch, a float64 scalar on the device: logits,
/// their logarithms and the label's, in float32, for [`CHUNK`] tokens at a time, summed in float64.
pub(crate) fn batch_loss(
    network: &Network,
    experts: &ExpertSet,
    config: &ModelConfig,
    batch: &Batch,
    check: &mut FiniteCheck,
) -> Result<Tensor, ModelError> {
    let h = run(network, experts, config, batch, check)?.f_view([-1, config.hidden_size])?;
    // Each token is predicted by the one before it in its row; a row's last one predicts nothing.
    let mut labels = Vec::with_capacity(batch.labels().len());
    for row in batch.labels().chunks(batch.length().max(1)) {
        labels.extend(row.iter().skip(1));
        labels.push(IGNORED_LABEL);
    }
    let predicted = labels.iter().filter(|label| **label != IGNORED_LABEL).count();
    let labels = Tensor::f_from_slice(&labels)?.f_to_device(network.device())?;
    let tokens = labels.size1()?;
    let mut sum = Tensor::f_zeros([], (Kind::Double, network.device()))?;
    let mut from = 0;
    while from < tokens {
        let count = CHUNK.min(tokens - from);
        let logits = network.logits(&h.f_narrow(0, from, count)?, check)?.f_to_kind(Kind::Float)?;
        let losses = logits.f_cross_entropy_loss::<&Tensor>(
            &labels.f_narrow(0, from, count)?,
            None,
            Reduction::None,
            IGNORED_LABEL,
            0.0,
        )?;
        sum = sum.f_add(&losses.f_sum(Kind::Double)?)?;
        from += count;
    }
    Ok(sum.f_div_scalar(predicted as f64)?)
}
