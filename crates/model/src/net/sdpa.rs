//! Scaled dot product attention, causal, for values narrower than keys.
//!
//! No fused kernel of libtorch for the processor takes heads of two sizes: it would compute all `T²`
//! scores of all heads and throw one half away. Here a block of queries meets only the keys up to its
//! end, which is a third of the time and, for long sequences, a fraction of the memory. On a GPU the
//! memory-efficient kernel takes both sizes and is left to it.

use tch::{Device, Kind, Tensor};

use crate::ModelError;

/// Queries of a block. A constant: the bits of a result must not depend on the machine.
pub(crate) const BLOCK: i64 = 256;

/// Where a query may not look, beside ahead.
#[derive(Debug)]
pub(crate) struct Padding {
    /// `[B, 1, 1, T]`, true at padding.
    keys: Tensor,
    /// `[B, 1, T, T]`, true where a query (row) may look at a key (column); for fused kernels.
    mask: Option<Tensor>,
}

impl Padding {
    /// `attended` is `[B, T]`, false at padding.
    pub(crate) fn new(attended: &Tensor) -> Result<Self, ModelError> {
        let (_, length) = attended.size2()?;
        let attended = attended.f_to_kind(Kind::Bool)?.f_unsqueeze(1)?.f_unsqueeze(1)?;
        let mask = if attended.device() == Device::Cpu {
            None
        } else {
            let square = (Kind::Bool, attended.device());
            let causal = Tensor::f_ones([length, length], square)?.f_tril(0)?;
            Some(attended.f_logical_and(&causal)?)
        };
        Ok(Self { keys: attended.f_logical_not()?, mask })
    }
}

/// `q` and `k` are `[B, heads, T, D]`, `v` is `[B, heads, T, V]`; the result is `[B, T, heads, V]` in
/// their type. A query that may look nowhere gets zeros.
pub(crate) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    padding: Option<&Padding>,
) -> Result<Tensor, ModelError> {
    if q.device() == Device::Cpu {
        return by_blocks(q, k, v, scale, padding);
    }
    let mask = padding.and_then(|padding| padding.mask.as_ref());
    let causal = mask.is_none();
    let out = Tensor::f_scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale, false)?;
    Ok(out.f_transpose(1, 2)?)
}

/// In float32 whatever the type, as libtorch's own unfused kernel does.
fn by_blocks(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    padding: Option<&Padding>,
) -> Result<Tensor, ModelError> {
    let (kind, length) = (q.f_kind()?, q.size4()?.2);
    let q = q.f_to_kind(Kind::Float)?.f_mul_scalar(scale)?;
    let k = k.f_to_kind(Kind::Float)?.f_transpose(2, 3)?;
    let v = v.f_to_kind(Kind::Float)?;
    let side = BLOCK.min(length);
    let ahead = Tensor::f_ones([side, side], (Kind::Bool, q.device()))?.f_triu(1)?;
    let mut blocks = Vec::new();
    let mut from = 0;
    while from < length {
        let rows = BLOCK.min(length - from);
        let to = from + rows;
        let mut scores = q.f_narrow(2, from, rows)?.f_matmul(&k.f_narrow(3, 0, to)?)?;
        let ahead = ahead.f_narrow(0, 0, rows)?.f_narrow(1, 0, rows)?;
        let _ = scores.f_narrow(3, from, rows)?.f_masked_fill_(&ahead, f64::NEG_INFINITY)?;
        let weights = match padding {
            None => scores.f_softmax(-1, Kind::Float)?,
            Some(padding) => scores
                .f_masked_fill_(&padding.keys.f_narrow(3, 0, to)?, f64::NEG_INFINITY)?
                .f_internal_safe_softmax(-1, Kind::Float)?,
        };
        let block = weights.f_matmul(&v.f_narrow(2, 0, to)?)?;
        blocks.push(block.f_transpose(1, 2)?.f_to_kind(kind)?);
        from = to;
    }
    Ok(Tensor::f_cat(&blocks, 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: i64, shape: [i64; 4]) -> Tensor {
        tch::manual_seed(seed);
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    /// Lengths around the block's.
    #[test]
    fn blocks_compute_what_libtorchs_own_attention_does_with_and_without_padding() {
        tch::set_num_threads(1);
        for length in [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3] {
            let (q, k) = (random(1, [2, 3, length, 24]), random(2, [2, 3, length, 24]));
            let v = random(3, [2, 3, length, 16]);
            // The last fifth of every row, and the beginning of the second one: its first queries
            // may look nowhere.
            let attended = Tensor::ones([2, length], (Kind::Bool, Device::Cpu));
            let _ = attended.narrow(1, length - length / 5, length / 5).fill_(0);
            let _ = attended.get(1).narrow(0, 0, length / 2).fill_(0);
            let padding = Padding::new(&attended).unwrap();
            let causal = Tensor::ones([length, length], (Kind::Bool, Device::Cpu)).tril(0);
            let mask = attended.unsqueeze(1).unsqueeze(1).logical_and(&causal);
            for (padding, mask) in [(None, &causal), (Some(&padding), &mask)] {
                let ours = attend(&q, &k, &v, 0.3, padding).unwrap();
                let theirs = Tensor::scaled_dot_product_attention(
                    &q,
                    &k,
                    &v,
                    Some(mask),
                    0.0,
                    false,
                    0.3,
                    false,
                );
                let apart = (ours - theirs.transpose(1, 2)).abs().max().double_value(&[]);
                assert!(apart < 1e-5, "length {length}: {apart:e}");
            }
        }
    }
}
