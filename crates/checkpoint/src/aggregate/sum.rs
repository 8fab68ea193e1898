//! The inner loop: base minus miner, times weight, added up.

use super::{Accepted, GradientError};
use crate::{
    dtype::{Dtype, decode_into},
    refusal::{Refusal, clip},
    source::TensorSource,
    vector::Segment,
};

/// Elements that one thread computes between two looks at the files.
pub(super) const PIECE: usize = 64 << 10;

/// Elements of which base and sum stay in the first-level cache while the miners pass by.
const BLOCK: usize = 2048;

/// Fills `out` with the sum over miners for one tensor's part.
pub(super) fn segment(
    base: &dyn TensorSource,
    miners: &[Accepted],
    segment: &Segment<'_>,
    out: &mut [f32],
) -> Result<(), GradientError> {
    let name = segment.name;
    let wrong = |found: Dtype| Refusal::WrongDtype { name: clip(name), found };
    let dtype = base.spec(name).map_err(GradientError::Base)?.dtype;
    let own = base.part(name, segment.within.clone()).map_err(GradientError::Base)?;
    let mut parts = Vec::with_capacity(miners.len());
    for miner in miners {
        let read = || {
            let dtype = miner.checkpoint.spec(name)?.dtype;
            let bytes = miner.checkpoint.part(name, segment.within.clone())?;
            Ok((miner, miner.weight as f32, dtype, bytes))
        };
        parts.push(read().map_err(|refusal| miner.fault(refusal))?);
    }
    let mut wide = [0.0; BLOCK];
    let mut theirs = [0.0; BLOCK];
    for (nth, sum) in out.chunks_mut(BLOCK).enumerate() {
        let start = nth * BLOCK;
        let end = start + sum.len();
        let bytes = |size: usize| start * size..end * size;
        let wide = &mut wide[..sum.len()];
        if !decode_into(dtype, &own[bytes(dtype.size())], wide) {
            return Err(GradientError::Base(wrong(dtype)));
        }
        sum.fill(0.0);
        for (miner, weight, dtype, all) in &parts {
            let part = &all[bytes(dtype.size())];
            match dtype {
                Dtype::F32 => add(sum, wide, part, *weight, f32::from_le_bytes),
                Dtype::BF16 => add(sum, wide, part, *weight, |bytes| {
                    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
                }),
                other @ (Dtype::F64
                | Dtype::F16
                | Dtype::I64
                | Dtype::I32
                | Dtype::I16
                | Dtype::I8
                | Dtype::U8
                | Dtype::Bool) => {
                    let theirs = &mut theirs[..sum.len()];
                    if !decode_into(*other, part, theirs) {
                        return Err(miner.fault(wrong(*other)));
                    }
                    for ((sum, base), miner) in sum.iter_mut().zip(&*wide).zip(&*theirs) {
                        *sum += weight * (base - miner);
                    }
                }
            }
        }
    }
    Ok(())
}

/// One loop without branches per type: the compiler makes it wide.
fn add<const N: usize>(
    sum: &mut [f32],
    base: &[f32],
    miner: &[u8],
    weight: f32,
    wide: impl Fn([u8; N]) -> f32,
) {
    let (miner, _) = miner.as_chunks::<N>();
    for ((sum, base), miner) in sum.iter_mut().zip(base).zip(miner) {
        *sum += weight * (base - wide(*miner));
    }
}
