//! The weighted mean.

use super::Piece;

/// Elements whose sums stay in the first-level cache.
const BLOCK: usize = 1024;

/// A float64 sum in the order of the members, divided by the sum of weights and rounded once.
pub(super) fn mean(piece: &mut Piece<'_>) {
    let mut sums = [0.0f64; BLOCK];
    for (nth, out) in piece.out.chunks_mut(BLOCK).enumerate() {
        let sums = &mut sums[..out.len()];
        sums.fill(0.0);
        for (row, weight) in piece.rows.iter().zip(piece.weights) {
            let row = &row[nth * BLOCK..][..sums.len()];
            // A weight of 1 changes no bit: equal members need no path of their own.
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * f64::from(*x));
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = (*sum / piece.total) as f32);
    }
}
