//! Reduction: what several validators' slices of a vector become, element by element.
//!
//! Every rule is a fixed sequence of additions, multiplications, divisions, square roots and comparisons in IEEE 754
//! arithmetic over members in ascending order of hotkey, with sums over elements made in pieces of a fixed size: all
//! machines get the same bits, whatever their number of threads. It knows nothing of the network, nor of who is right.

mod clipping;
mod influence;
mod mean;
mod members;
mod norms;
mod ranks;

use domain::Hotkey;
use rayon::prelude::*;

use self::{influence::Tally, members::Members};
pub use self::{
    influence::{Excluded, Exclusion, Influence, Reduced},
    members::Member,
};
use crate::vector::{CHUNK, ReadError};

/// How the members' values of one element become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// `sum(w * x) / sum(w)` in float64, rounded once.
    Mean,
    /// The mean without the outer fraction of the weight on either side (0 up to, not including, 0.5): a member that
    /// lies at the border is cut by its part. With equal weights and `per_side * members` a whole number that is the
    /// textbook's trimmed mean; one or two members are never cut away.
    ///
    /// While faulty members have at most this fraction of the weight, the result lies between values of the others.
    TrimmedMean { per_side: f64 },
    /// The value with half of the weight on either side; between two such values, their mean.
    CoordinateMedian,
    /// Centered clipping (Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021):
    /// `v <- v + sum(w_i * (x_i - v) * min(1, radius / |x_i - v|)) / sum(w)`, repeated, from the coordinate median.
    ///
    /// The paper starts from its last round's result. The median needs no memory that a validator may have lost, and is
    /// as far from the honest ones as their spread. `v` is float32 between iterations; the sums are float64.
    CenteredClipping {
        /// Of the whole vector; see [`Reduction::vector_len`].
        radius: f64,
        /// At least 1. The paper takes 1 from a good start; 3 bring a far median near.
        iterations: u32,
    },
}

/// A rule with its bounds, for slices of one vector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reduction {
    pub rule: Rule,
    /// The L2 norm of a contribution is scaled down to this, before anything else. Of the whole vector.
    pub max_norm: Option<f64>,
    /// Elements of the whole vector.
    ///
    /// Who reduces a slice sees no more than the slice. So bounds are of the whole vector and apply to a slice by its
    /// share, `bound * sqrt(slice / vector)`: their squares add up to the bound's, so that what one member can move the
    /// whole by stays the same however it is sliced, and it cannot spend all of it on one slice.
    pub vector_len: usize,
}

/// A reduction that could not be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReduceError {
    #[error("no member is left of {}", excluded.len())]
    NoMembers { excluded: Vec<Excluded> },
    #[error("the weight of {hotkey} is {weight}, neither zero nor positive and finite")]
    Weight { hotkey: Hotkey, weight: f64 },
    #[error("{0} is a member twice")]
    Twice(Hotkey),
    #[error("{hotkey} has {found} elements, not {expected}")]
    Length { hotkey: Hotkey, expected: usize, found: usize },
    #[error("a slice of {slice} elements in a vector of {vector}")]
    Slice { slice: usize, vector: usize },
    #[error("{name} is {value}")]
    Parameter { name: &'static str, value: f64 },
    /// It could be read before. Nothing that was given out may be used; begin again without it.
    #[error("the values of {hotkey} cannot be read any more: {source}")]
    Read { hotkey: Hotkey, source: ReadError },
}

/// Elements that one thread reduces at a time; sums over elements are made of sums over these.
const PIECE: usize = 16 << 10;

impl Reduction {
    /// Reduces the members' slices and gives the result to `sink` in order, a [`CHUNK`] at a time. Needs memory for
    /// some pieces per thread and one chunk; centered clipping also for the slice.
    ///
    /// Members are read more than once: first each by itself, for its norm and for values that are not finite, which
    /// leave it out whole. A member of weight 0 is not read.
    pub fn reduce(
        &self,
        members: &[Member<'_>],
        mut sink: impl FnMut(&[f32]),
    ) -> Result<Reduced, ReduceError> {
        self.check()?;
        let share = |bound: f64, len: usize| bound * (len as f64 / self.vector_len as f64).sqrt();
        let (mut members, excluded) = Members::admit(members, self.vector_len)?;
        if let Some(bound) = self.max_norm {
            members.bound(share(bound, members.len()));
        }
        let tally = match self.rule {
            Rule::Mean => members.stream(&mut sink, || |piece: &mut Piece<'_>| mean::mean(piece)),
            Rule::TrimmedMean { .. } | Rule::CoordinateMedian => {
                members.stream(&mut sink, || ranks::reducer(self.rule, &members))
            }
            Rule::CenteredClipping { radius, iterations } => {
                let radius = share(radius, members.len());
                clipping::reduce(&members, radius, iterations, &mut sink)
            }
        }?;
        Ok(tally.report(&members, excluded))
    }

    /// As [`Reduction::reduce`], with the whole result in memory.
    pub fn reduce_whole(&self, members: &[Member<'_>]) -> Result<(Vec<f32>, Reduced), ReduceError> {
        let mut whole = Vec::new();
        let reduced = self.reduce(members, |chunk| whole.extend_from_slice(chunk))?;
        Ok((whole, reduced))
    }

    fn check(&self) -> Result<(), ReduceError> {
        let positive = |name, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(ReduceError::Parameter { name, value }),
        };
        if let Some(bound) = self.max_norm {
            positive("max_norm", bound)?;
        }
        match self.rule {
            Rule::Mean | Rule::CoordinateMedian => Ok(()),
            Rule::TrimmedMean { per_side } => match (0.0..0.5).contains(&per_side) {
                true => Ok(()),
                false => Err(ReduceError::Parameter { name: "per_side", value: per_side }),
            },
            Rule::CenteredClipping { radius, iterations } => {
                positive("radius", radius)?;
                positive("iterations", f64::from(iterations))
            }
        }
    }
}

/// Some elements of all members, and what becomes of them.
struct Piece<'a> {
    rows: &'a [Vec<f32>],
    weights: &'a [f64],
    total: f64,
    out: &'a mut [f32],
    /// Per member, elements that lie outside of what was kept.
    trimmed: &'a mut [u64],
}

impl Members<'_> {
    /// Applies an element-wise rule piece by piece on all cores; `make` makes one reducer per thread.
    fn stream<R: FnMut(&mut Piece<'_>)>(
        &self,
        sink: &mut dyn FnMut(&[f32]),
        make: impl Fn() -> R + Sync,
    ) -> Result<Tally, ReduceError> {
        let mut tally = Tally::new(self.rows().len());
        let mut chunk = vec![0.0; CHUNK.min(self.len())];
        for start in (0..self.len()).step_by(CHUNK) {
            let out = &mut chunk[..CHUNK.min(self.len() - start)];
            let pieces = out
                .par_chunks_mut(PIECE)
                .enumerate()
                .map_init(
                    || (self.buffers(), make()),
                    |(rows, rule), (nth, out)| {
                        self.load(start + nth * PIECE, out.len(), rows)?;
                        let mut piece = Tally::new(rows.len());
                        let (weights, total) = (self.weights(), self.total());
                        let trimmed = &mut piece.trimmed;
                        rule(&mut Piece { rows, weights, total, out, trimmed });
                        piece.compare(rows, out);
                        Ok(piece)
                    },
                )
                .collect::<Result<Vec<Tally>, ReduceError>>()?;
            pieces.iter().for_each(|piece| tally.add(piece));
            sink(out);
        }
        Ok(tally)
    }
}
