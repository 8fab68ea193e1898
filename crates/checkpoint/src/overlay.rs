//! A model with some of its tensors replaced.

use std::{borrow::Cow, collections::BTreeMap, fmt, ops::Range};

use crate::{
    dtype::{Dtype, decode_f32, encode_f32},
    refusal::{Refusal, clip},
    source::TensorSource,
    tensor::TensorSpec,
};

/// The base's tensors, those of `over` in their place where it has them. Nothing is copied until it is read.
pub struct Overlay<'a> {
    base: Box<dyn TensorSource + 'a>,
    over: Box<dyn TensorSource + 'a>,
}

/// Lays `over` on `base`. Every tensor of `over` must be in the base (`foreign_tensor`), of the same shape
/// (`wrong_shape`); a float type that differs is converted to the base's by way of float32 (else `wrong_dtype`).
pub fn overlay<'a>(
    base: Box<dyn TensorSource + 'a>,
    over: Box<dyn TensorSource + 'a>,
) -> Result<Overlay<'a>, Refusal> {
    Overlay::new(base, over)
}

impl<'a> Overlay<'a> {
    /// As [`overlay`].
    pub fn new(
        base: Box<dyn TensorSource + 'a>,
        over: Box<dyn TensorSource + 'a>,
    ) -> Result<Self, Refusal> {
        for (name, found) in over.specs() {
            let Some(expected) = base.specs().get(name) else {
                return Err(Refusal::ForeignTensor { name: clip(name) });
            };
            if expected.shape != found.shape {
                let (expected, found) = (expected.shape.clone(), found.shape.clone());
                return Err(Refusal::WrongShape { name: clip(name), expected, found });
            }
            let converts = expected.dtype.is_float() && found.dtype.is_float();
            if expected.dtype != found.dtype && !converts {
                return Err(Refusal::WrongDtype { name: clip(name), found: found.dtype });
            }
        }
        Ok(Self { base, over })
    }
}

impl TensorSource for Overlay<'_> {
    fn specs(&self) -> &BTreeMap<String, TensorSpec> {
        self.base.specs()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        match self.over.specs().get(name) {
            Some(found) => self.converted(name, found.dtype, self.over.bytes(name)?),
            None => self.base.bytes(name),
        }
    }

    fn part(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Refusal> {
        match self.over.specs().get(name) {
            Some(found) => self.converted(name, found.dtype, self.over.part(name, range)?),
            None => self.base.part(name, range),
        }
    }
}

impl Overlay<'_> {
    /// Elements of the upper source in the lower one's type.
    fn converted<'b>(
        &self,
        name: &str,
        found: Dtype,
        bytes: Cow<'b, [u8]>,
    ) -> Result<Cow<'b, [u8]>, Refusal> {
        let dtype = self.spec(name)?.dtype;
        if found == dtype {
            return Ok(bytes);
        }
        let converted = decode_f32(found, &bytes).and_then(|values| encode_f32(dtype, &values));
        converted.map(Cow::Owned).ok_or_else(|| Refusal::WrongDtype { name: clip(name), found })
    }
}

impl fmt::Debug for Overlay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("tensors", &self.base.specs().len())
            .field("replaced", &self.over.specs().len())
            .finish()
    }
}
