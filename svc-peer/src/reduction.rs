//! Reducing: one chunk of the result from the contributors' chunks of the same number.
//!
//! Pure, and chunk by chunk, so that the result does not depend on how the vector is sliced, and anybody
//! can compute a single chunk again. A contributor whose chunk is no encoding of finite numbers has no part
//! in that chunk; where nobody has, it is zeros.

mod tally;

use std::collections::BTreeMap;

use bytes::Bytes;
use checkpoint::{Member, ReduceError, Reduction, Rule};
use domain::Hotkey;
use merge::MAX_TEXT;
use tracing::error;

pub(crate) use self::tally::{Influence, Tally};
use crate::{
    chunks::{Cut, result_codec},
    config,
};

/// How the chunks of one merge are reduced.
#[derive(Debug, Clone)]
pub(crate) struct Reducer {
    cut: Cut,
    reduction: Reduction,
    name: String,
    /// `None`: all have the same.
    weights: Option<BTreeMap<Hotkey, f64>>,
}

/// A chunk of the result.
#[derive(Debug, Clone)]
pub(crate) struct ReducedChunk {
    /// Encoded as results travel.
    pub(crate) bytes: Vec<u8>,
    /// What each contributor did to it.
    pub(crate) tally: Tally,
}

impl Reducer {
    /// For gradients cut as `cut`. `weights` are the validators' stakes; they count where the
    /// configuration says so.
    pub(crate) fn new(
        config: &config::Reduction,
        cut: Cut,
        weights: BTreeMap<Hotkey, f64>,
    ) -> Self {
        let rule = match config.rule {
            config::Rule::Mean => Rule::Mean,
            config::Rule::TrimmedMean => Rule::TrimmedMean { per_side: config.per_side },
            config::Rule::CoordinateMedian => Rule::CoordinateMedian,
            config::Rule::CenteredClipping => Rule::CenteredClipping {
                // The configuration is refused without it.
                radius: config.radius.unwrap_or_default(),
                iterations: config.iterations,
            },
        };
        let reduction =
            Reduction { rule, max_norm: config.max_norm, vector_len: cut.elements.max(1) };
        let weights = config.weigh_by_stake.then_some(weights);
        Self { cut, reduction, name: name(&reduction, weights.is_some()), weights }
    }

    /// The reduction's name in a merge's terms: rule, parameters, bound, and weighting. Two that differ
    /// in any bit have different names.
    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }

    /// How gradients are cut.
    #[cfg(test)]
    pub(crate) fn cut(&self) -> Cut {
        self.cut
    }

    /// How the result is cut.
    pub(crate) fn result_cut(&self) -> Cut {
        Cut { codec: result_codec(self.cut.codec), ..self.cut }
    }

    /// Reduces the encoded chunks of this number, on all cores. Needs memory for all of them, decoded.
    pub(crate) fn chunk(&self, chunk: u32, parts: &[(Hotkey, Bytes)]) -> ReducedChunk {
        let len = self.cut.elements_of(chunk);
        let mut tally = Tally::of_chunk(len);
        let decoded = self.decoded(len, parts, &mut tally);
        let members: Vec<Member<'_>> = decoded
            .iter()
            .map(|(hotkey, weight, values)| Member { hotkey, weight: *weight, values })
            .collect();
        let mut values = Vec::with_capacity(len);
        let codec = self.result_cut().codec;
        let mut bytes = vec![0; codec.encoded_len(len)];
        match self.reduction.reduce(&members, |part| values.extend_from_slice(part)) {
            Ok(reduced) => {
                tally.add_reduced(&reduced);
                if let Err(error) = codec.encode(&values, &mut bytes) {
                    // A mean of finite numbers is finite: this is for a rule that comes later.
                    error!(chunk, %error, "the result cannot be encoded, zeros instead");
                    bytes.fill(0);
                }
            }
            // All bits zero are zeros in every codec of results.
            Err(ReduceError::NoMembers { .. }) => {}
            Err(error) => error!(chunk, %error, "cannot be reduced, zeros instead"),
        }
        ReducedChunk { bytes, tally }
    }

    /// Whoever can be decoded and has a weight.
    fn decoded<'a>(
        &self,
        len: usize,
        parts: &'a [(Hotkey, Bytes)],
        tally: &mut Tally,
    ) -> Vec<(&'a Hotkey, f64, Vec<f32>)> {
        let mut decoded = Vec::with_capacity(parts.len());
        for (hotkey, bytes) in parts {
            let weight = self.weight(hotkey);
            if weight == 0.0 {
                tally.exclude(hotkey, "no_weight");
                continue;
            }
            let mut values = vec![0.0; len];
            match self.cut.codec.decode(bytes, &mut values) {
                Ok(()) => decoded.push((hotkey, weight, values)),
                Err(error) => tally.exclude(hotkey, error.reason()),
            }
        }
        decoded
    }

    fn weight(&self, hotkey: &Hotkey) -> f64 {
        let Some(weights) = &self.weights else { return 1.0 };
        weights.get(hotkey).copied().filter(|weight| weight.is_finite()).unwrap_or(0.0).max(0.0)
    }
}

/// See [`Reducer::name`]. Where the whole of it is too long, a hash stands for the parameters.
fn name(reduction: &Reduction, by_stake: bool) -> String {
    let (rule, parameters) = match reduction.rule {
        Rule::Mean => ("mean", String::new()),
        Rule::TrimmedMean { per_side } => ("trimmed_mean", format!(" {per_side}")),
        Rule::CoordinateMedian => ("coordinate_median", String::new()),
        Rule::CenteredClipping { radius, iterations } => {
            ("centered_clipping", format!(" {radius} x{iterations}"))
        }
    };
    let bound = reduction.max_norm.map(|bound| format!(" norm<={bound}")).unwrap_or_default();
    let weighting = if by_stake { " by_stake" } else { "" };
    let name = format!("{rule}{parameters}{bound}{weighting}");
    match name.len() <= MAX_TEXT {
        true => name,
        false => format!("{rule} #{}", &blake3::hash(name.as_bytes()).to_hex()[..32]),
    }
}

#[cfg(test)]
mod tests;
