//! Trimmed mean and median: what depends on the order of the members' values, element by element.

use super::{Piece, Rule, members::Members};

/// Elements that are sorted side by side: all members' values of them fit the first-level cache.
const BLOCK: usize = 512;

/// Weights below this part of all are rounding: a member that is cut to less is cut whole.
const NOTHING: f64 = 1e-9;

/// The rule as a function of pieces, with buffers of its own.
pub(super) fn reducer(rule: Rule, members: &Members<'_>) -> impl FnMut(&mut Piece<'_>) + use<> {
    let count = members.rows().len();
    let equal = members.weights().windows(2).all(|pair| pair[0] == pair[1]);
    let network = if equal { network(count) } else { Vec::new() };
    let mut kept = vec![0.0; count];
    if equal {
        keep(rule, &vec![1.0; count], count as f64, &mut kept);
    }
    let mut sorted = vec![[0.0f32; BLOCK]; count];
    let mut ranked = Vec::with_capacity(count);
    move |piece| {
        for start in (0..piece.out.len()).step_by(BLOCK) {
            let mut block = Block { piece, start };
            if equal {
                block.equal(&network, &kept, &mut sorted);
            } else {
                block.weighted(rule, &mut ranked, &mut kept);
            }
        }
    }
}

struct Block<'a, 'b> {
    piece: &'a mut Piece<'b>,
    start: usize,
}

impl Block<'_, '_> {
    fn len(&self) -> usize {
        BLOCK.min(self.piece.out.len() - self.start)
    }

    /// Members of one weight: a rank's weight is the same for all elements, and rows are sorted by a fixed network of
    /// exchanges, many elements at a time.
    fn equal(&mut self, network: &[(usize, usize)], kept: &[f64], sorted: &mut [[f32; BLOCK]]) {
        let (start, len) = (self.start, self.len());
        let Piece { rows, out, trimmed, .. } = &mut *self.piece;
        let out = &mut out[start..start + len];
        for (sorted, row) in sorted.iter_mut().zip(*rows) {
            sorted[..len].copy_from_slice(&row[start..start + len]);
        }
        for (low, high) in network {
            let Ok([low, high]) = sorted.get_disjoint_mut([*low, *high]) else { continue };
            for (low, high) in low.iter_mut().zip(high) {
                let (a, b) = (*low, *high);
                *low = if b < a { b } else { a };
                *high = if b < a { a } else { b };
            }
        }
        let total: f64 = kept.iter().sum();
        let mut sums = [0.0f64; BLOCK];
        for (row, weight) in sorted.iter().zip(kept).filter(|(_, weight)| **weight > 0.0) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * f64::from(*x));
        }
        let first = kept.iter().position(|weight| *weight > 0.0).unwrap_or_default();
        let last = kept.iter().rposition(|weight| *weight > 0.0).unwrap_or_default();
        let (low, high) = (&sorted[first][..len], &sorted[last][..len]);
        for (((out, sum), low), high) in out.iter_mut().zip(&sums).zip(low).zip(high) {
            *out = between(*sum / total, *low, *high);
        }
        for (trimmed, row) in trimmed.iter_mut().zip(*rows) {
            let row = &row[start..start + len];
            // Wrapping, as a block is short: a sum that is checked at each addition is not made wide.
            let outside = |count: u32, ((x, low), high): ((&f32, &f32), &f32)| {
                count.wrapping_add(u32::from(x < low) | u32::from(x > high))
            };
            *trimmed += u64::from(row.iter().zip(low).zip(high).fold(0, outside));
        }
    }

    fn weighted(&mut self, rule: Rule, ranked: &mut Vec<(f32, usize)>, kept: &mut [f64]) {
        let Piece { rows, weights, total, out, trimmed } = &mut *self.piece;
        let end = out.len().min(self.start + BLOCK);
        let mut in_order = vec![0.0; rows.len()];
        for at in self.start..end {
            ranked.clear();
            ranked.extend(rows.iter().enumerate().map(|(member, row)| (row[at], member)));
            ranked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            for (weight, (_, member)) in in_order.iter_mut().zip(&*ranked) {
                *weight = weights[*member];
            }
            keep(rule, &in_order, *total, kept);
            let (mut sum, mut all) = (0.0, 0.0);
            let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
            for ((x, _), weight) in ranked.iter().zip(&*kept).filter(|(_, weight)| **weight > 0.0) {
                sum += weight * f64::from(*x);
                all += weight;
                (low, high) = (low.min(*x), high.max(*x));
            }
            out[at] = between(sum / all, low, high);
            for (x, member) in &*ranked {
                trimmed[*member] += u64::from(*x < low || *x > high);
            }
        }
    }
}

/// Rounded, and by rounding not outside of what it is the mean of.
fn between(mean: f64, low: f32, high: f32) -> f32 {
    (mean as f32).max(low).min(high)
}

/// What is kept of weights that stand in the order of their values.
fn keep(rule: Rule, weights: &[f64], total: f64, kept: &mut [f64]) {
    let nothing = total * NOTHING;
    let mut before = 0.0;
    if let Rule::TrimmedMean { per_side } = rule {
        let cut = per_side * total;
        for (kept, weight) in kept.iter_mut().zip(weights) {
            let after = before + weight;
            let rest = after.min(total - cut) - before.max(cut);
            *kept = if rest > nothing { rest } else { 0.0 };
            before = after;
        }
        if kept.iter().any(|weight| *weight > 0.0) {
            return;
        }
        // So near to a half that nothing is left: the median is what it comes to.
    }
    let half = total / 2.0;
    let mut before = 0.0;
    for (kept, weight) in kept.iter_mut().zip(weights) {
        let after = before + weight;
        // The member that reaches a half, and the next where it reaches no more than that.
        let middle = after >= half - nothing && before <= half + nothing;
        *kept = f64::from(u8::from(middle));
        before = after;
    }
}

/// Batcher's odd-even merge sort: exchanges that sort any `count` values.
fn network(count: usize) -> Vec<(usize, usize)> {
    let mut network = Vec::new();
    let mut run = 1;
    while run < count {
        let mut distance = run;
        while distance >= 1 {
            let mut from = distance % run;
            while from + distance < count {
                for low in from..(from + distance).min(count - distance) {
                    let high = low + distance;
                    if low / (2 * run) == high / (2 * run) {
                        network.push((low, high));
                    }
                }
                from += 2 * distance;
            }
            distance /= 2;
        }
        run *= 2;
    }
    network
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_sorts_every_sequence_of_zeros_and_ones() {
        // A network that sorts these sorts everything.
        for count in 0..=13u32 {
            let network = network(count as usize);
            for bits in 0..1u32 << count {
                let mut values: Vec<u32> = (0..count).map(|n| bits >> n & 1).collect();
                for (low, high) in &network {
                    if values[*high] < values[*low] {
                        values.swap(*low, *high);
                    }
                }
                assert!(values.is_sorted(), "{count}: {values:?}");
            }
        }
    }

    fn kept(rule: Rule, weights: &[f64]) -> Vec<f64> {
        let mut kept = vec![0.0; weights.len()];
        keep(rule, weights, weights.iter().sum(), &mut kept);
        kept
    }

    #[test]
    fn the_outer_fraction_of_the_weight_is_cut_on_either_side() {
        let trim = |per_side| Rule::TrimmedMean { per_side };
        assert_eq!(kept(trim(0.25), &[1.0; 4]), [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(kept(trim(0.25), &[1.0; 2]), [0.5, 0.5]);
        assert_eq!(kept(trim(0.4), &[3.0]), [3.0 * 0.6 - 3.0 * 0.4]);
        assert_eq!(kept(trim(0.25), &[1.0, 5.0, 2.0]), [0.0, 4.0, 0.0]);
        // A third of three is not representable: no crumb of the outer ones is left.
        assert_eq!(kept(trim(1.0 / 3.0), &[0.1; 3])[0], 0.0);
        assert_eq!(kept(trim(0.5 - 1e-12), &[1.0; 4]), [0.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn the_median_has_half_of_the_weight_on_either_side() {
        let median = |weights: &[f64]| kept(Rule::CoordinateMedian, weights);
        assert_eq!(median(&[1.0; 3]), [0.0, 1.0, 0.0]);
        assert_eq!(median(&[1.0; 4]), [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(median(&[7.0]), [1.0]);
        assert_eq!(median(&[1.0, 1.0, 8.0]), [0.0, 0.0, 1.0]);
        assert_eq!(median(&[0.1, 0.2, 0.3]), [0.0, 1.0, 1.0]);
    }
}
