//! Tensors by name, wherever they come from: what the writers, the hash and the merge read.

use std::{borrow::Cow, collections::BTreeMap, ops::Range, sync::Arc};

use crate::{
    dtype::{Dtype, decode_f32, encode_f32},
    refusal::{Flaw, Refusal, clip},
    tensor::TensorSpec,
};

/// A set of tensors by name, read one at a time.
pub trait TensorSource: Send + Sync {
    /// Every tensor's type and shape, in ascending order of name.
    fn specs(&self) -> &BTreeMap<String, TensorSpec>;

    /// A tensor's elements: little-endian, row-major, contiguous. `missing_tensor` when there is none.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal>;

    /// As [`TensorSource::bytes`], elements `range` of it: what a pass over tensors of any size reads.
    /// `out_of_storage` when the tensor does not have them.
    ///
    /// As it stands, a source that makes its tensors makes the whole of one for every part.
    fn part(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Refusal> {
        let size = self.spec(name)?.dtype.size();
        part_of(self.bytes(name)?, size, range).ok_or_else(|| Flaw::OutOfStorage.with(name))
    }

    /// A tensor's elements as float32. `wrong_dtype` when they are not floats.
    fn to_f32(&self, name: &str) -> Result<Vec<f32>, Refusal> {
        let dtype = self.spec(name)?.dtype;
        decode_f32(dtype, &self.bytes(name)?)
            .ok_or_else(|| Refusal::WrongDtype { name: clip(name), found: dtype })
    }

    /// A tensor's type and shape. `missing_tensor` when there is none.
    fn spec(&self, name: &str) -> Result<&TensorSpec, Refusal> {
        self.specs().get(name).ok_or_else(|| Refusal::missing(name))
    }
}

impl<S: TensorSource + ?Sized> TensorSource for &S {
    fn specs(&self) -> &BTreeMap<String, TensorSpec> {
        (**self).specs()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        (**self).bytes(name)
    }

    fn part(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Refusal> {
        (**self).part(name, range)
    }
}

impl<S: TensorSource + ?Sized> TensorSource for Box<S> {
    fn specs(&self) -> &BTreeMap<String, TensorSpec> {
        (**self).specs()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        (**self).bytes(name)
    }

    fn part(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Refusal> {
        (**self).part(name, range)
    }
}

impl<S: TensorSource + ?Sized> TensorSource for Arc<S> {
    fn specs(&self) -> &BTreeMap<String, TensorSpec> {
        (**self).specs()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        (**self).bytes(name)
    }

    fn part(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Refusal> {
        (**self).part(name, range)
    }
}

/// Elements of `size` bytes each; `None` when there are not so many.
pub(crate) fn part_of(
    bytes: Cow<'_, [u8]>,
    size: usize,
    range: Range<usize>,
) -> Option<Cow<'_, [u8]>> {
    let range = range.start.checked_mul(size)?..range.end.checked_mul(size)?;
    match bytes {
        Cow::Borrowed(all) => all.get(range).map(Cow::Borrowed),
        Cow::Owned(all) => all.get(range).map(|part| Cow::Owned(part.to_vec())),
    }
}

/// Tensors in memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemoryTensors {
    specs: BTreeMap<String, TensorSpec>,
    data: BTreeMap<String, Vec<u8>>,
}

impl MemoryTensors {
    /// Adds or replaces a tensor. `wrong_shape` when the bytes are not as many as the spec says.
    pub fn insert(&mut self, name: &str, spec: TensorSpec, bytes: Vec<u8>) -> Result<(), Refusal> {
        if bytes.len() != spec.bytes() {
            let found = vec![bytes.len() / spec.dtype.size()];
            return Err(Refusal::WrongShape { name: clip(name), expected: spec.shape, found });
        }
        self.specs.insert(name.to_owned(), spec);
        self.data.insert(name.to_owned(), bytes);
        Ok(())
    }

    /// Adds or replaces a float32 tensor. `wrong_shape` when the values are not as many as the shape says.
    pub fn insert_f32(
        &mut self,
        name: &str,
        shape: Vec<usize>,
        values: &[f32],
    ) -> Result<(), Refusal> {
        let bytes = encode_f32(Dtype::F32, values).unwrap_or_default();
        self.insert(name, TensorSpec { dtype: Dtype::F32, shape }, bytes)
    }
}

impl TensorSource for MemoryTensors {
    fn specs(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        let data = self.data.get(name).ok_or_else(|| Refusal::missing(name))?;
        Ok(Cow::Borrowed(data))
    }
}
