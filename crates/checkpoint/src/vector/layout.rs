//! Where each tensor lies in the flat vector.

use std::{collections::BTreeMap, fmt, ops::Range};

use crate::tensor::TensorSpec;

/// The order of a vector's elements. Types play no part: a vector is float32 whatever its tensors are stored as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VectorLayout {
    tensors: Vec<Tensor>,
    len: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    start: usize,
    len: usize,
}

/// The part of a tensor that lies in a range of the vector. All numbers count elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment<'a> {
    pub name: &'a str,
    /// In the tensor, row-major.
    pub within: Range<usize>,
    /// In the vector.
    pub at: Range<usize>,
}

/// BLAKE3 over number, names, shapes and order of a vector's tensors: equal where two vectors can be added up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayoutDigest(pub [u8; 32]);

impl VectorLayout {
    /// The layout of these tensors.
    pub fn new(tensors: &BTreeMap<String, TensorSpec>) -> Self {
        let mut end = 0usize;
        let place = |(name, spec): (&String, &TensorSpec)| {
            let (start, len) = (end, spec.elements());
            // Beyond memory: no source has the elements, so that reading them is refused.
            end = end.saturating_add(len);
            Tensor { name: name.clone(), shape: spec.shape.clone(), start, len }
        };
        let tensors = tensors.iter().map(place).collect();
        Self { tensors, len: end }
    }

    /// Elements of the vector.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A tensor's elements in the vector; `None` when there is no such tensor.
    pub fn range(&self, name: &str) -> Option<Range<usize>> {
        let found = self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()?;
        let Tensor { start, len, .. } = self.tensors[found];
        Some(start..start.saturating_add(len))
    }

    /// The parts of tensors that make up `range` of the vector, in order; what lies beyond the end is left out.
    pub fn segments(&self, range: Range<usize>) -> impl Iterator<Item = Segment<'_>> {
        let first = self.tensors.partition_point(|t| t.start.saturating_add(t.len) <= range.start);
        let (from, to) = (range.start, range.end.min(self.len));
        self.tensors[first..]
            .iter()
            .take_while(move |tensor| from < to && tensor.start < to)
            .filter(|tensor| tensor.len > 0)
            .map(move |Tensor { name, start, len, .. }| {
                let at = from.max(*start)..to.min(start + len);
                Segment { name, within: at.start - start..at.end - start, at }
            })
    }

    /// Names of the tensors, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// The layout's digest: of numbers as 8 bytes little-endian, names and shapes led by their lengths.
    pub fn digest(&self) -> LayoutDigest {
        let mut hash = blake3::Hasher::new_derive_key("connito vector layout v1");
        let number = |hash: &mut blake3::Hasher, n: usize| {
            hash.update(&(n as u64).to_le_bytes());
        };
        number(&mut hash, self.tensors.len());
        for Tensor { name, shape, .. } in &self.tensors {
            number(&mut hash, name.len());
            hash.update(name.as_bytes());
            number(&mut hash, shape.len());
            shape.iter().for_each(|dimension| number(&mut hash, *dimension));
        }
        LayoutDigest(hash.finalize().into())
    }
}

impl fmt::Display for LayoutDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for LayoutDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LayoutDigest({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dtype::Dtype;

    fn layout(shapes: &[(&str, &[usize])]) -> VectorLayout {
        let spec = |shape: &[usize]| TensorSpec { dtype: Dtype::BF16, shape: shape.to_vec() };
        VectorLayout::new(&shapes.iter().map(|(n, s)| ((*n).to_owned(), spec(s))).collect())
    }

    proptest! {
        #[test]
        fn segments_cover_any_range_once_and_in_order(lens in prop::collection::vec(0_usize..9, 1..9), from in 0_usize..40, len in 0_usize..60) {
            let names: Vec<String> = (0..lens.len()).map(|n| format!("t{n}")).collect();
            let shapes: Vec<[usize; 1]> = lens.iter().map(|len| [*len]).collect();
            let pairs: Vec<_> = names.iter().zip(&shapes).map(|(n, s)| (n.as_str(), s.as_slice())).collect();
            let layout = layout(&pairs);
            let mut next = from.min(layout.len());
            for segment in layout.segments(from..from + len) {
                prop_assert_eq!(segment.at.start, next);
                prop_assert!(!segment.at.is_empty());
                prop_assert_eq!(segment.at.len(), segment.within.len());
                let whole = layout.range(segment.name).unwrap();
                prop_assert_eq!(whole.start + segment.within.start, segment.at.start);
                prop_assert!(segment.at.end <= whole.end);
                next = segment.at.end;
            }
            prop_assert_eq!(next, (from + len).min(layout.len()).max(from.min(layout.len())));
        }
    }

    #[test]
    fn the_digest_tells_names_shapes_and_their_borders_apart() {
        let different = [
            layout(&[("a", &[2, 3])]),
            layout(&[("a", &[3, 2])]),
            layout(&[("a", &[6])]),
            layout(&[("b", &[2, 3])]),
            layout(&[("a", &[2, 3]), ("b", &[])]),
            layout(&[]),
        ];
        let digests: std::collections::BTreeSet<_> =
            different.iter().map(VectorLayout::digest).collect();
        assert_eq!(digests.len(), different.len());
        assert_eq!(layout(&[("a", &[6])]).digest(), layout(&[("a", &[6])]).digest());
    }
}
