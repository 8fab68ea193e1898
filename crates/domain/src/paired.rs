//! By how much a submission lowers the loss, and how sure that is: paired differences, batch by
//! batch. The same for everyone to the last bit: what is drawn follows from the round's seed and the
//! miner's hotkey, and nothing but IEEE sums, products, quotients and square roots is used.

use serde::{Deserialize, Serialize};

use crate::{Hotkey, Seed, h256};

/// Resamples of the bootstrap. Of 1999 sorted means the 50th from either end leaves 2.5 % outside:
/// with B resamples the quantile `q` is the `q * (B + 1)`-th (Davison and Hinkley, 1997).
const RESAMPLES: usize = 1999;
/// Which of the sorted means, from either end, is the end of the interval at 95 %.
const END: usize = 50;

/// By how much a submission lowers the loss: base model minus submission, paired batch by batch. In
/// nats; positive is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Improvement {
    /// Mean over the batches.
    pub mean: f64,
    /// Standard error of the mean.
    pub standard_error: f64,
    /// Lower end of the bootstrap interval at 95 %.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Batches that were measured on both, at least 2.
    pub batches: usize,
}

/// Which of a submission's two measurements an interval is for: each has draws of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeasuredOn {
    /// The round's batches, which nobody knew.
    Round,
    /// Batches of data that the miner could know.
    Own,
}

impl Improvement {
    /// Improvement over the batches that both have losses for, in batch order. `None` for fewer than
    /// two: one difference says nothing about its error.
    ///
    /// The interval is the percentile bootstrap's over the mean, widened about the mean by
    /// `sqrt(n / (n - 1))`: a resample of n varies by the sample's own spread, which is too narrow by
    /// that much (Hesterberg, 2015, "What Teachers Should Know about the Bootstrap").
    /// It follows skew; what it does not know is Student's correction, so that it holds a little less
    /// than 95 % for a few batches (in simulations 94 % for fifty of a normal and 91 % for ten).
    ///
    /// Batches are drawn by SplitMix64 (Steele, Lea and Flood, 2014), whose state begins as the first
    /// 8 bytes, little-endian, of [`h256`] over `bootstrap`, `round` or `own`, the seed's hex and the
    /// hotkey. Each output `x` chooses batch `x * n >> 64`.
    pub fn of(
        baseline: &[f64],
        losses: &[f64],
        on: MeasuredOn,
        seed: &Seed,
        hotkey: &Hotkey,
    ) -> Option<Self> {
        let gains: Vec<f64> = baseline.iter().zip(losses).map(|(base, loss)| base - loss).collect();
        let Spread { mean, error } = Spread::of(&gains)?;
        let mut draws = SplitMix64::seeded(on, seed, hotkey);
        let n = gains.len();
        let mut means: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let drawn = (0..n).filter_map(|_| gains.get(draws.below(n)));
                drawn.sum::<f64>() / n as f64
            })
            .collect();
        means.sort_by(f64::total_cmp);
        let wider = (n as f64 / (n as f64 - 1.0)).sqrt();
        let end = |at: usize| means.get(at).map(|end| mean + (end - mean) * wider);
        Some(Self {
            mean,
            standard_error: error,
            low: end(END - 1)?,
            high: end(RESAMPLES - END)?,
            batches: n,
        })
    }
}

/// A mean and its standard error.
#[derive(Debug, Clone, Copy)]
struct Spread {
    mean: f64,
    error: f64,
}

impl Spread {
    /// Of two values or more.
    fn of(values: &[f64]) -> Option<Self> {
        if values.len() < 2 {
            return None;
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
        Some(Self { mean, error: (squares / (n - 1.0) / n).sqrt() })
    }
}

/// SplitMix64: small, well mixed, and the same everywhere.
struct SplitMix64(u64);

impl SplitMix64 {
    fn seeded(on: MeasuredOn, seed: &Seed, hotkey: &Hotkey) -> Self {
        let on = match on {
            MeasuredOn::Round => "round",
            MeasuredOn::Own => "own",
        };
        let hash = h256(&["bootstrap", on, &seed.to_hex(), hotkey.as_str()]);
        let [a, b, c, d, e, f, g, h, ..] = hash;
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// One of the first `n` numbers.
    fn below(&mut self, n: usize) -> usize {
        let product = u128::from(self.next()) * n as u128;
        (product >> 64) as usize
    }
}

/// What comparing the improvement on data that the miner could know beforehand with that on the
/// round's data says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnData {
    /// Nothing out of the ordinary.
    Ordinary,
    /// It does not surely improve even the data that it was given to train on.
    Lazy,
    /// It improves the data that it was given to train on, and little else.
    Overfitted,
}

/// 99 % of a normal lie below.
const Z_99: f64 = 2.326_347_874_040_841;
/// Batches on either side below which nothing can be said.
const ENOUGH: usize = 4;

impl OwnData {
    /// Compares `own` with `random`, the improvement on the round's batches; `None` where either was
    /// measured on fewer than four batches.
    ///
    /// - [`Self::Lazy`]: the interval of `own` at 95 % does not lie above 0.
    /// - [`Self::Overfitted`]: `own` exceeds `random` significantly, by Welch's test, one-sided at
    ///   99 %, and `random` is at most `share` of `own`. Both are asked for: with many batches a small
    ///   gap is significant, and every model is a little better on what it was trained on; with few
    ///   batches a large gap may be chance.
    pub fn of(random: &Improvement, own: &Improvement, share: f64) -> Option<Self> {
        if random.batches.min(own.batches) < ENOUGH {
            return None;
        }
        if own.low <= 0.0 {
            return Some(Self::Lazy);
        }
        let square = |of: &Improvement| of.standard_error * of.standard_error;
        let (a, b) = (square(own), square(random));
        let fourth = |square: f64, of: &Improvement| square * square / (of.batches as f64 - 1.0);
        let below = fourth(a, own) + fourth(b, random);
        let margin = match below > 0.0 {
            true => t_99((a + b) * (a + b) / below) * (a + b).sqrt(),
            false => 0.0,
        };
        let overfitted = own.mean - random.mean > margin && random.mean <= share * own.mean;
        Some(if overfitted { Self::Overfitted } else { Self::Ordinary })
    }

    /// The stable, snake_case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::Lazy => "lazy",
            Self::Overfitted => "overfitted",
        }
    }
}

/// 99 % of Student's distribution with `freedom` degrees lie below: Cornish and Fisher's expansion
/// about the normal's quantile (Abramowitz and Stegun, 1964, 26.7.5), within 2 % from 3 degrees on.
fn t_99(freedom: f64) -> f64 {
    let z = Z_99;
    let (z3, z5, z7) = (z * z * z, z * z * z * z * z, z * z * z * z * z * z * z);
    let first = (z3 + z) / 4.0;
    let second = (5.0 * z5 + 16.0 * z3 + 3.0 * z) / 96.0;
    let third = (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / 384.0;
    z + (first + (second + third / freedom) / freedom) / freedom
}

#[cfg(test)]
pub(crate) mod tests;
