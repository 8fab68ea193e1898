//! What a tensor is and where its elements lie.

use std::{borrow::Cow, ops::Range};

use serde::{Deserialize, Serialize};

use crate::{
    dtype::Dtype,
    refusal::{Flaw, Refusal},
};

/// Type and shape of a tensor, row-major.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Number of elements; `usize::MAX` where the product is none.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |n, d| usize::saturating_mul(n, *d))
    }

    /// Size of the contiguous data in bytes.
    pub fn bytes(&self) -> usize {
        self.elements().saturating_mul(self.dtype.size())
    }

    /// As [`TensorSpec::bytes`], refused where it is not a size or has too many dimensions.
    pub(crate) fn checked_bytes(&self, name: &str) -> Result<usize, Refusal> {
        if self.shape.len() > MAX_DIMENSIONS {
            return Err(Flaw::TooManyDimensions.with(format!("{name}: {}", self.shape.len())));
        }
        let huge = || Flaw::HugeShape.with(format!("{name}: {:?}", self.shape));
        // Zero elements do not excuse dimensions beyond memory.
        let product = self.shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)));
        let bytes = product.and_then(|n| n.checked_mul(self.dtype.size())).ok_or_else(huge)?;
        if isize::try_from(bytes).is_err() {
            return Err(huge());
        }
        Ok(self.bytes())
    }
}

const MAX_DIMENSIONS: usize = 8;

/// A tensor of an opened checkpoint: its spec, and the part of the file that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    spec: TensorSpec,
    start: usize,
    /// In elements; `None` when contiguous.
    strides: Option<Vec<usize>>,
}

impl TensorInfo {
    /// A contiguous tensor at this byte of the file.
    pub(crate) fn contiguous_at(spec: TensorSpec, start: usize) -> Self {
        Self { spec, start, strides: None }
    }

    /// A tensor in a storage of `storage_bytes`, placed from its first byte; `offset` and `strides` in elements.
    /// Refused where it leaves the storage or has two elements in one place.
    pub(crate) fn strided(
        name: &str,
        spec: TensorSpec,
        storage_bytes: usize,
        offset: usize,
        strides: Vec<usize>,
    ) -> Result<Self, Refusal> {
        let outside = || Flaw::OutOfStorage.with(name);
        if strides.len() != spec.shape.len() {
            return Err(Flaw::BadPickle.with(format!("{name}: as many strides as dimensions")));
        }
        spec.checked_bytes(name)?;
        let size = spec.dtype.size();
        let empty = spec.elements() == 0;
        // Dimensions of one element have no meaningful stride.
        let mut dims: Vec<(usize, usize)> = strides
            .iter()
            .copied()
            .zip(spec.shape.iter().copied())
            .filter(|(_, d)| !empty && *d > 1)
            .collect();
        let mut dense = 1;
        let contiguous = dims.iter().rev().all(|(stride, d)| {
            let expected = dense;
            dense *= d;
            *stride == expected
        });
        dims.sort_unstable();
        let mut extent = usize::from(!empty);
        for (stride, d) in dims {
            if stride < extent {
                return Err(Flaw::OverlappingStrides.with(format!("{name}: strides {strides:?}")));
            }
            let reach = (d - 1).checked_mul(stride).and_then(|r| r.checked_add(extent));
            extent = reach.ok_or_else(outside)?;
        }
        let end = offset.checked_add(extent).and_then(|e| e.checked_mul(size));
        if end.is_none_or(|end| end > storage_bytes) {
            return Err(outside());
        }
        Ok(Self { spec, start: offset * size, strides: (!contiguous).then_some(strides) })
    }

    /// The same tensor so many bytes further on: from a place in its storage to one in the file.
    pub(crate) fn moved_by(self, bytes: usize) -> Self {
        // A sum that is no place in memory is none in a file either, and is read as none.
        Self { start: self.start.saturating_add(bytes), ..self }
    }

    /// Where the first element lies.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// Type and shape.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// Type of the elements as stored.
    pub fn dtype(&self) -> Dtype {
        self.spec.dtype
    }

    /// Row-major shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.spec.shape
    }

    /// Size of the contiguous data in bytes.
    pub fn bytes(&self) -> usize {
        self.spec.bytes()
    }

    /// Whether the file has the elements in row-major order without gaps.
    pub fn contiguous(&self) -> bool {
        self.strides.is_none()
    }

    /// The elements in row-major order; borrowed from the file where it has them so.
    pub(crate) fn read<'a>(&self, file: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        self.read_part(file, 0..self.spec.elements())
    }

    /// As [`TensorInfo::read`], the elements `range` only: the rest is not touched.
    pub(crate) fn read_part<'a>(
        &self,
        file: &'a [u8],
        range: Range<usize>,
    ) -> Option<Cow<'a, [u8]>> {
        if range.start > range.end || range.end > self.spec.elements() {
            return None;
        }
        let Some(strides) = &self.strides else {
            let size = self.spec.dtype.size();
            let start = self.start.checked_add(range.start.checked_mul(size)?)?;
            let end = start.checked_add(range.len().checked_mul(size)?)?;
            return file.get(start..end).map(Cow::Borrowed);
        };
        self.gather(file, strides, range).map(Cow::Owned)
    }

    fn gather(&self, file: &[u8], strides: &[usize], range: Range<usize>) -> Option<Vec<u8>> {
        let size = self.spec.dtype.size();
        let mut out = Vec::with_capacity(range.len() * size);
        let mut index = vec![0; strides.len()];
        let mut at = self.start;
        if range.is_empty() {
            return Some(out);
        }
        let mut rest = range.start;
        for axis in (0..strides.len()).rev() {
            index[axis] = rest % self.spec.shape[axis];
            rest /= self.spec.shape[axis];
            at += index[axis] * strides[axis] * size;
        }
        for _ in range {
            out.extend_from_slice(file.get(at..at.checked_add(size)?)?);
            for axis in (0..strides.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.spec.shape[axis] {
                    at += strides[axis] * size;
                    break;
                }
                at -= (index[axis] - 1) * strides[axis] * size;
                index[axis] = 0;
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(shape: &[usize], offset: usize, strides: &[usize]) -> Result<Vec<u8>, Refusal> {
        let storage: Vec<u8> = (0..12).collect();
        let spec = TensorSpec { dtype: Dtype::U8, shape: shape.to_vec() };
        let info = TensorInfo::strided("t", spec, storage.len(), offset, strides.to_vec())?;
        Ok(info.read(&storage).unwrap().into_owned())
    }

    fn flaw(result: Result<Vec<u8>, Refusal>) -> Flaw {
        result.unwrap_err().flaw().unwrap()
    }

    #[test]
    fn a_transposed_tensor_is_read_in_row_major_order() {
        assert_eq!(bytes_of(&[3, 4], 0, &[4, 1]).unwrap(), (0..12).collect::<Vec<u8>>());
        assert_eq!(bytes_of(&[4, 3], 0, &[1, 4]).unwrap(), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(bytes_of(&[2, 2], 1, &[6, 2]).unwrap(), [1, 3, 7, 9]);
        assert_eq!(bytes_of(&[], 5, &[]).unwrap(), [5]);
        assert_eq!(bytes_of(&[0, 3], 12, &[3, 1]).unwrap(), [0; 0]);
        assert_eq!(bytes_of(&[1, 2], 3, &[99, 1]).unwrap(), [3, 4]);
    }

    #[test]
    fn every_part_of_a_tensor_is_that_part_of_the_whole() {
        let storage: Vec<u8> = (0..24).collect();
        for strides in [vec![12, 4, 2], vec![1, 2, 8], vec![4, 12, 1]] {
            let spec = TensorSpec { dtype: Dtype::U8, shape: vec![2, 2, 2] };
            let info = TensorInfo::strided("t", spec, storage.len(), 1, strides).unwrap();
            let whole = info.read(&storage).unwrap();
            for start in 0..=8 {
                for end in start..=8 {
                    assert_eq!(*info.read_part(&storage, start..end).unwrap(), whole[start..end]);
                }
            }
            assert_eq!(info.read_part(&storage, 7..9), None);
        }
    }

    #[test]
    fn overlapping_strides_are_refused() {
        for strides in [[0, 1], [1, 1], [1, 0], [2, 1]] {
            assert_eq!(flaw(bytes_of(&[2, 3], 0, &strides)), Flaw::OverlappingStrides);
        }
    }

    #[test]
    fn a_tensor_that_leaves_its_storage_is_refused() {
        assert_eq!(flaw(bytes_of(&[3, 4], 1, &[4, 1])), Flaw::OutOfStorage);
        assert_eq!(flaw(bytes_of(&[1], usize::MAX, &[1])), Flaw::OutOfStorage);
        assert_eq!(flaw(bytes_of(&[2], 0, &[usize::MAX])), Flaw::OutOfStorage);
    }

    #[test]
    fn shapes_beyond_memory_are_refused_even_when_a_dimension_is_zero() {
        let n = 2_000_000_000;
        assert_eq!(flaw(bytes_of(&[n, n, n], 0, &[1, 1, 1])), Flaw::HugeShape);
        assert_eq!(flaw(bytes_of(&[0, n, n, n], 0, &[1, 1, 1, 1])), Flaw::HugeShape);
        assert_eq!(flaw(bytes_of(&[1; 9], 0, &[1; 9])), Flaw::TooManyDimensions);
    }
}
