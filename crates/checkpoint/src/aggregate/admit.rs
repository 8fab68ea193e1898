//! Whose file may be added up: verified, and with a finite difference to the base everywhere.

use super::Contribution;
use crate::{
    checkpoint::{Checkpoint, Limits, open},
    dtype::decode_into,
    layout::SliceLayout,
    refusal::{Refusal, clip},
    source::TensorSource,
    verify::verify,
};

/// Elements compared at a time.
const BLOCK: usize = 8192;

pub(super) fn open_and_verify(
    base: &dyn TensorSource,
    layout: &SliceLayout,
    one: &Contribution,
    limits: Limits,
) -> Result<Checkpoint, Refusal> {
    let file = open(&one.path, limits)?;
    verify(&file, layout, one.model_hash.as_ref())?;
    let (mut ours, mut theirs) = (vec![0.0; BLOCK], vec![0.0; BLOCK]);
    for (name, spec) in &layout.tensors {
        let (at_base, at_miner) = (base.spec(name)?.dtype, file.spec(name)?.dtype);
        let elements = spec.elements();
        for start in (0..elements).step_by(BLOCK) {
            let range = start..elements.min(start + BLOCK);
            let (ours, theirs) = (&mut ours[..range.len()], &mut theirs[..range.len()]);
            decode(name, at_base, &base.part(name, range.clone())?, ours)?;
            decode(name, at_miner, &file.part(name, range)?, theirs)?;
            // No branch per element, so that the compiler makes it wide.
            let finite = |all: bool, (a, b): (&f32, &f32)| all & (a - b).is_finite();
            if !ours.iter().zip(&*theirs).fold(true, finite) {
                let index = ours.iter().zip(&*theirs).position(|(a, b)| !(a - b).is_finite());
                let index = start + index.unwrap_or_default();
                let value = "too far from the base".to_owned();
                return Err(Refusal::NonFinite { name: name.clone(), index, value });
            }
        }
    }
    // Changed meanwhile: what was hashed may not be what was compared.
    match file.unchanged() {
        Ok(()) => Ok(file),
        Err(why) => Err(Refusal::unreadable(&one.path, format!("while it was verified, {why}"))),
    }
}

fn decode(
    name: &str,
    dtype: crate::Dtype,
    bytes: &[u8],
    values: &mut [f32],
) -> Result<(), Refusal> {
    match decode_into(dtype, bytes, values) {
        true => Ok(()),
        false => Err(Refusal::WrongDtype { name: clip(name), found: dtype }),
    }
}
