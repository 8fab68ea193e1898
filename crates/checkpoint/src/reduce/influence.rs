//! What each member did to the result, and who had no part in it.

use domain::Hotkey;

use super::{members::Members, norms};
use crate::vector::ReadError;

/// A reduction that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Reduced {
    /// In ascending order of hotkey.
    pub influence: Vec<Influence>,
    /// L2 norm of the result over the slice.
    pub norm: f64,
    /// In ascending order of hotkey.
    pub excluded: Vec<Excluded>,
}

/// A member's part in the result. All of it is over the slice.
#[derive(Debug, Clone, PartialEq)]
pub struct Influence {
    pub hotkey: Hotkey,
    /// Of those that took part, summing to 1.
    pub weight: f64,
    /// L2 norm of what it gave.
    pub norm: f64,
    /// After [`super::Reduction::max_norm`].
    pub bounded_norm: f64,
    /// Of the angle between what it gave and the result, from -1 to 1; 0 where either is all zeros.
    pub cosine: f64,
    /// Share of the elements in which it lies outside of what was kept, 0 to 1; 0 for a mean.
    pub trimmed: f64,
    /// Centered clipping: `min(1, radius / distance)` of the last iteration.
    pub clipping: Option<f64>,
}

/// A member that was left out whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Excluded {
    pub hotkey: Hotkey,
    pub why: Exclusion,
}

/// Why a member has no part in the result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Exclusion {
    #[error("element {index} of the slice is not finite")]
    NonFinite { index: usize },
    #[error("cannot be read: {0}")]
    Unreadable(ReadError),
}

impl Exclusion {
    /// The stable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NonFinite { .. } => "non_finite",
            Self::Unreadable(_) => "unreadable",
        }
    }
}

impl From<ReadError> for Exclusion {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NonFinite { index } => Self::NonFinite { index },
            other @ (ReadError::Outside { .. } | ReadError::Source(_)) => Self::Unreadable(other),
        }
    }
}

/// Sums over elements, per member.
pub(super) struct Tally {
    /// `sum(x * result)`.
    dots: Vec<f64>,
    /// `sum(result^2)`.
    square: f64,
    pub(super) trimmed: Vec<u64>,
    pub(super) clipping: Option<Vec<f64>>,
}

impl Tally {
    pub(super) fn new(members: usize) -> Self {
        Self { dots: vec![0.0; members], square: 0.0, trimmed: vec![0; members], clipping: None }
    }

    /// Takes in a piece of the result.
    pub(super) fn compare(&mut self, rows: &[Vec<f32>], out: &[f32]) {
        self.dots.iter_mut().zip(rows).for_each(|(dot, row)| *dot += norms::dot(row, out));
        self.square += norms::dot(out, out);
    }

    /// Adds the next piece's sums.
    pub(super) fn add(&mut self, piece: &Self) {
        self.dots.iter_mut().zip(&piece.dots).for_each(|(sum, dot)| *sum += dot);
        self.trimmed.iter_mut().zip(&piece.trimmed).for_each(|(sum, n)| *sum += n);
        self.square += piece.square;
    }

    pub(super) fn report(self, members: &Members<'_>, excluded: Vec<Excluded>) -> Reduced {
        let norm = self.square.sqrt();
        let influence = members.rows().iter().enumerate().map(|(nth, row)| {
            let (bounded_norm, lengths) = (row.bounded_norm(), row.bounded_norm() * norm);
            Influence {
                hotkey: row.hotkey.clone(),
                weight: members.weights()[nth] / members.total(),
                norm: row.norm,
                bounded_norm,
                cosine: if lengths > 0.0 {
                    (self.dots[nth] / lengths).clamp(-1.0, 1.0)
                } else {
                    0.0
                },
                trimmed: self.trimmed[nth] as f64 / members.len().max(1) as f64,
                clipping: self.clipping.as_ref().map(|scales| scales[nth]),
            }
        });
        Reduced { influence: influence.collect(), norm, excluded }
    }
}
