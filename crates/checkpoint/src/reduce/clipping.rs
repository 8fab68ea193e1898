//! Centered clipping; the formula is at [`Rule::CenteredClipping`].

use rayon::prelude::*;

use super::{PIECE, ReduceError, Rule, influence::Tally, members::Members, norms, ranks};
use crate::vector::CHUNK;

pub(super) fn reduce(
    members: &Members<'_>,
    radius: f64,
    iterations: u32,
    sink: &mut dyn FnMut(&[f32]),
) -> Result<Tally, ReduceError> {
    let mut center = Vec::with_capacity(members.len());
    let start = || ranks::reducer(Rule::CoordinateMedian, members);
    members.stream(&mut |chunk: &[f32]| center.extend_from_slice(chunk), start)?;
    let mut scales = Vec::new();
    for _ in 0..iterations {
        scales = distances(members, &center)?
            .into_iter()
            .map(|distance| if distance > radius { radius / distance } else { 1.0 })
            .collect();
        step(members, &scales, &mut center)?;
    }
    let mut tally = compare(members, &center)?;
    tally.clipping = Some(scales);
    center.chunks(CHUNK).for_each(sink);
    Ok(tally)
}

/// `|x_i - v|` of every member.
fn distances(members: &Members<'_>, center: &[f32]) -> Result<Vec<f64>, ReduceError> {
    let pieces = center
        .par_chunks(PIECE)
        .enumerate()
        .map_init(
            || members.buffers(),
            |rows, (nth, center)| {
                members.load(nth * PIECE, center.len(), rows)?;
                Ok(rows.iter().map(|row| norms::distance(row, center)).collect())
            },
        )
        .collect::<Result<Vec<Vec<f64>>, ReduceError>>()?;
    let mut sums = vec![0.0; members.rows().len()];
    for piece in pieces {
        sums.iter_mut().zip(piece).for_each(|(sum, square)| *sum += square);
    }
    Ok(sums.into_iter().map(f64::sqrt).collect())
}

/// `v + sum(w_i * scale_i * (x_i - v)) / sum(w)`, rounded to float32.
fn step(members: &Members<'_>, scales: &[f64], center: &mut [f32]) -> Result<(), ReduceError> {
    let factors: Vec<f64> = scales.iter().zip(members.weights()).map(|(s, w)| s * w).collect();
    center.par_chunks_mut(PIECE).enumerate().try_for_each_init(
        || (members.buffers(), vec![0.0f64; PIECE]),
        |(rows, sums), (nth, center)| {
            members.load(nth * PIECE, center.len(), rows)?;
            sums.fill(0.0);
            for (row, factor) in rows.iter().zip(&factors) {
                for ((sum, x), v) in sums.iter_mut().zip(row).zip(&*center) {
                    *sum += factor * (f64::from(*x) - f64::from(*v));
                }
            }
            for (v, sum) in center.iter_mut().zip(&*sums) {
                *v = (f64::from(*v) + *sum / members.total()) as f32;
            }
            Ok(())
        },
    )
}

fn compare(members: &Members<'_>, center: &[f32]) -> Result<Tally, ReduceError> {
    let pieces = center
        .par_chunks(PIECE)
        .enumerate()
        .map_init(
            || members.buffers(),
            |rows, (nth, center)| {
                members.load(nth * PIECE, center.len(), rows)?;
                let mut tally = Tally::new(rows.len());
                tally.compare(rows, center);
                Ok(tally)
            },
        )
        .collect::<Result<Vec<Tally>, ReduceError>>()?;
    let mut tally = Tally::new(members.rows().len());
    pieces.iter().for_each(|piece| tally.add(piece));
    Ok(tally)
}
