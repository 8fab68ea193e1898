//! Rotary position embedding on interleaved pairs, with YaRN's frequencies.

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use crate::{ModelConfig, ModelError};

/// Rotations of each pair per position, float32 `[rope / 2]`, and the factor of sine and cosine.
#[derive(Debug)]
pub(crate) struct Frequencies {
    per_position: Tensor,
    factor: f64,
}

/// Cosine and sine of every position and pair, float32 `[T, 1, rope / 2]`.
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Frequencies {
    // In float32 step by step as the deployed implementation does: late positions multiply the
    // last bits.
    pub(crate) fn new(config: &ModelConfig) -> Result<Self, ModelError> {
        let (dim, theta) = (config.qk_rope_head_dim, config.rope.theta);
        let f32s = (Kind::Float, Device::Cpu);
        let exponents = Tensor::f_arange_start_step(0, dim, 2, f32s)?.f_div_scalar(dim as f64)?;
        let powers = Tensor::f_full([1], theta, f32s)?.f_pow(&exponents)?;
        let plain = powers.f_reciprocal()?;
        let Some(yarn) = &config.rope.yarn else {
            return Ok(Self { per_position: plain, factor: 1.0 });
        };
        let stretched = powers.f_mul_scalar(yarn.factor)?.f_reciprocal()?;
        // The dimension that turns `rotations` times within the original length.
        let turning = |rotations: f64| {
            dim as f64 * (yarn.original_length / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
        };
        let low = turning(yarn.beta_fast).floor().max(0.0);
        let high = turning(yarn.beta_slow).ceil().min(dim as f64 - 1.0);
        let high = if low == high { high + 0.001 } else { high };
        let ramp = Tensor::f_arange(dim / 2, f32s)?
            .f_sub_scalar(low)?
            .f_div_scalar(high - low)?
            .f_clamp(0.0, 1.0)?;
        let keep = ramp.f_neg()?.f_add_scalar(1.0)?;
        let give_way = keep.f_neg()?.f_add_scalar(1.0)?;
        let per_position = stretched.f_mul(&give_way)?.f_add(&plain.f_mul(&keep)?)?;
        Ok(Self { per_position, factor: yarn.attention_factor() })
    }

    /// Positions `0..length`.
    pub(crate) fn up_to(&self, length: i64, device: Device) -> Result<Rotation, ModelError> {
        let positions = Tensor::f_arange(length, (Kind::Float, Device::Cpu))?.f_view([-1, 1, 1])?;
        let angles = positions.f_mul(&self.per_position)?.f_to_device(device)?;
        Ok(Rotation {
            cos: angles.f_cos()?.f_mul_scalar(self.factor)?,
            sin: angles.f_sin()?.f_mul_scalar(self.factor)?,
        })
    }
}

impl Rotation {
    /// Turns the pairs `(2i, 2i + 1)` of `x` `[B, T, heads, rope]`, in float32.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let shape = x.size();
        let mut pairs = shape.clone();
        if let Some(last) = pairs.last_mut() {
            *last /= 2;
        }
        pairs.push(2);
        let split = x.f_to_kind(Kind::Float)?.f_reshape(&pairs)?;
        let (a, b) = (split.f_select(-1, 0)?, split.f_select(-1, 1)?);
        let turned_a = a.f_mul(&self.cos)?.f_sub(&b.f_mul(&self.sin)?)?;
        let turned_b = a.f_mul(&self.sin)?.f_add(&b.f_mul(&self.cos)?)?;
        let turned = Tensor::f_stack(&[turned_a, turned_b], -1)?;
        Ok(turned.f_reshape(&shape)?.f_to_kind(x.f_kind()?)?)
    }
}
