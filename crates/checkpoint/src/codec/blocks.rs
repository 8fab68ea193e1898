//! Signed bytes with a scale per block.

use super::CodecError;

/// Elements that share a scale.
pub(super) const BLOCK: usize = 256;

const SCALE: usize = size_of::<f32>();

/// Added to a float32 from -2^22 to 2^22 it leaves the nearest integer, ties to even, in the lowest bits.
const ROUND: f32 = (3 << 22) as f32;

pub(super) fn encode(values: &[f32], out: &mut [u8]) {
    for (values, out) in values.chunks(BLOCK).zip(out.chunks_mut(SCALE + BLOCK)) {
        // The bits of magnitudes are in the order of the magnitudes.
        let largest = values.iter().fold(0, |largest, x| largest.max(x.to_bits() & !(1 << 31)));
        let mut scale = f32::from_bits(largest) / 127.0;
        if scale < f32::MIN_POSITIVE {
            // A scale of few bits would be no bound on the error: the block is zeros.
            scale = 0.0;
        }
        if !(scale * 127.0).is_finite() {
            // Rounded up at the very end of float32: what is decoded stays finite.
            scale = scale.next_down();
        }
        let (head, codes) = out.split_at_mut(SCALE);
        head.copy_from_slice(&scale.to_le_bytes());
        if scale == 0.0 {
            codes.fill(0);
            continue;
        }
        for (code, x) in codes.iter_mut().zip(values) {
            // At most 127 by half a rounding, which rounds to 127.
            *code = (x / scale + ROUND).to_bits() as u8;
        }
    }
}

pub(super) fn decode(bytes: &[u8], values: &mut [f32]) -> Result<(), CodecError> {
    let blocks = values.chunks_mut(BLOCK).zip(bytes.chunks(SCALE + BLOCK));
    for (block, (values, bytes)) in blocks.enumerate() {
        let Some((scale, codes)) = bytes.split_first_chunk::<SCALE>() else {
            return Err(CodecError::Scale { block });
        };
        let scale = f32::from_le_bytes(*scale);
        if !(scale.is_sign_positive() && (scale * 127.0).is_finite()) {
            return Err(CodecError::Scale { block });
        }
        if codes.iter().fold(false, |any, code| any | (*code == 0x80)) {
            let within = codes.iter().position(|code| *code == 0x80).unwrap_or_default();
            return Err(CodecError::Code { index: block * BLOCK + within });
        }
        for (x, code) in values.iter_mut().zip(codes) {
            *x = scale * f32::from(code.cast_signed());
        }
    }
    Ok(())
}
