//! Whose values are reduced: in ascending order of hotkey, finite throughout, scaled down to the bound.

use std::fmt;

use domain::Hotkey;
use rayon::prelude::*;

use super::{Excluded, Exclusion, PIECE, ReduceError, norms};
use crate::vector::{ReadError, Values};

/// A member's slice and its say in the result.
#[derive(Clone, Copy)]
pub struct Member<'a> {
    pub hotkey: &'a Hotkey,
    /// Relative to the others': 1 for all, or their stakes.
    pub weight: f64,
    pub values: &'a dyn Values,
}

impl fmt::Debug for Member<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("hotkey", self.hotkey).field("weight", &self.weight).finish()
    }
}

pub(super) struct Row<'a> {
    pub(super) hotkey: &'a Hotkey,
    values: &'a dyn Values,
    /// L2 norm over the slice as it was given.
    pub(super) norm: f64,
    /// What every value is multiplied by, where the norm is beyond the bound.
    scale: Option<f64>,
}

pub(super) struct Members<'a> {
    rows: Vec<Row<'a>>,
    weights: Vec<f64>,
    total: f64,
    len: usize,
}

impl<'a> Members<'a> {
    /// Reads every member once. Those with a value that is not finite, or that cannot be read, are left out.
    pub(super) fn admit(
        members: &[Member<'a>],
        vector: usize,
    ) -> Result<(Self, Vec<Excluded>), ReduceError> {
        let mut members = members.to_vec();
        members.sort_by_key(|member| member.hotkey);
        for pair in members.windows(2) {
            if pair[0].hotkey == pair[1].hotkey {
                return Err(ReduceError::Twice(pair[0].hotkey.clone()));
            }
        }
        let len = members.first().map_or(0, |member| member.values.len());
        if len > vector {
            return Err(ReduceError::Slice { slice: len, vector });
        }
        for Member { hotkey, weight, values } in &members {
            if !weight.is_finite() || *weight < 0.0 {
                return Err(ReduceError::Weight { hotkey: (*hotkey).clone(), weight: *weight });
            }
            if values.len() != len {
                let (hotkey, found) = ((*hotkey).clone(), values.len());
                return Err(ReduceError::Length { hotkey, expected: len, found });
            }
        }
        members.retain(|member| member.weight > 0.0);
        let (mut rows, mut weights, mut excluded) = (Vec::new(), Vec::new(), Vec::new());
        for Member { hotkey, weight, values } in members {
            match norm(values) {
                Ok(norm) => {
                    rows.push(Row { hotkey, values, norm, scale: None });
                    weights.push(weight);
                }
                Err(error) => {
                    let why = Exclusion::from(error);
                    excluded.push(Excluded { hotkey: hotkey.clone(), why });
                }
            }
        }
        if rows.is_empty() {
            return Err(ReduceError::NoMembers { excluded });
        }
        let total = weights.iter().sum();
        Ok((Self { rows, weights, total, len }, excluded))
    }

    /// Scales down every member whose norm is beyond `bound`.
    pub(super) fn bound(&mut self, bound: f64) {
        for row in &mut self.rows {
            row.scale = (row.norm > bound).then(|| bound / row.norm);
        }
    }

    pub(super) fn rows(&self) -> &[Row<'a>] {
        &self.rows
    }

    pub(super) fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Sum of the weights, in order.
    pub(super) fn total(&self) -> f64 {
        self.total
    }

    /// Elements of the slice.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What [`Members::load`] fills.
    pub(super) fn buffers(&self) -> Vec<Vec<f32>> {
        vec![vec![0.0; PIECE.min(self.len)]; self.rows.len()]
    }

    /// Reads `count` elements of every member.
    pub(super) fn load(
        &self,
        start: usize,
        count: usize,
        buffers: &mut [Vec<f32>],
    ) -> Result<(), ReduceError> {
        for (row, buffer) in self.rows.iter().zip(buffers) {
            buffer.resize(count, 0.0);
            row.values.read(start, buffer).map_err(|source| {
                let hotkey = row.hotkey.clone();
                ReduceError::Read { hotkey, source }
            })?;
            if let Some(scale) = row.scale {
                buffer.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
            }
        }
        Ok(())
    }
}

impl Row<'_> {
    /// The norm after it was scaled down.
    pub(super) fn bounded_norm(&self) -> f64 {
        self.norm * self.scale.unwrap_or(1.0)
    }
}

/// The L2 norm of all values, refused at the first that is not finite.
fn norm(values: &dyn Values) -> Result<f64, ReadError> {
    let pieces: Vec<Result<f64, ReadError>> = (0..values.len().div_ceil(PIECE))
        .into_par_iter()
        .map_init(Vec::new, |piece, nth| {
            let start = nth * PIECE;
            piece.resize(PIECE.min(values.len() - start), 0.0);
            values.read(start, piece)?;
            let square = norms::dot(piece, piece);
            // Squares of finite float32 are far from the end of float64.
            if !square.is_finite() {
                let index = piece.iter().position(|x| !x.is_finite()).unwrap_or_default();
                return Err(ReadError::NonFinite { index: start + index });
            }
            Ok(square)
        })
        .collect();
    let mut sum = 0.0;
    for piece in pieces {
        sum += piece?;
    }
    Ok(sum.sqrt())
}
