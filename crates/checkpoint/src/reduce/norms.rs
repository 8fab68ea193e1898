//! Sums over elements in float64, in one order for everybody.

/// Sums side by side, so that the compiler may use wide registers without changing a bit.
const LANES: usize = 8;

/// `sum(a * b)`: lane `i` sums elements `i`, `i + 8`, …; the lanes are added pairwise, the rest of fewer than eight at
/// the end. Products of float32 are exact in float64.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0f64; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * f64::from(*b));
    rest.fold(pairwise(lanes), |sum, product| sum + product)
}

/// `sum((a - b)^2)`, as [`dot`]. The difference is made in float64 and rounded.
pub(super) fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |a: f32, b: f32| {
        let difference = f64::from(a) - f64::from(b);
        difference * difference
    };
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0f64; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += square(a[lane], b[lane]);
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| square(*a, *b));
    rest.fold(pairwise(lanes), |sum, square| sum + square)
}

fn pairwise([a, b, c, d, e, f, g, h]: [f64; LANES]) -> f64 {
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_exact_numbers_whatever_the_length() {
        for len in 0..40u16 {
            let a: Vec<f32> = (0..len).map(f32::from).collect();
            let b: Vec<f32> = a.iter().map(|x| x + 2.0).collect();
            let n = f64::from(len);
            assert_eq!(distance(&a, &b), 4.0 * n);
            let squares: f64 = (0..len).map(|x| f64::from(x) * f64::from(x)).sum();
            assert_eq!(dot(&a, &a), squares);
        }
    }
}
