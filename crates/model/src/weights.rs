//! From named bytes to tensors, checked for name, shape, type and finiteness, with one copy each.

use checkpoint::{Dtype, TensorSource};
use tch::{Device, Kind, Tensor};

use crate::{LoadOptions, ModelConfig, ModelError};

/// Named tensors of one model, which may lie in several sources: the first that has a name is
/// taken.
pub(crate) struct Weights<'a> {
    config: &'a ModelConfig,
    sources: &'a [&'a dyn TensorSource],
    options: LoadOptions,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(
        config: &'a ModelConfig,
        sources: &'a [&'a dyn TensorSource],
        options: LoadOptions,
    ) -> Self {
        Self { config, sources, options }
    }

    pub(crate) fn config(&self) -> &ModelConfig {
        self.config
    }

    /// The tensor `name` in the model's type, on its device.
    pub(crate) fn take(&self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        let source = self
            .sources
            .iter()
            .find(|source| source.specs().contains_key(name))
            .ok_or_else(|| ModelError::Missing { name: name.to_owned() })?;
        let (kind, device) = (self.options.weights.kind(), self.options.device.tch());
        let mut tensor = Tensor::f_empty(shape, (kind, device))?;
        read_into(*source, name, &mut tensor)?;
        Ok(tensor)
    }
}

/// Copies the tensor `name` of `source` into `room`, which has the shape that it must have and the
/// type that it gets, on any device: one copy, conversion included. What comes out is finite.
pub(crate) fn read_into(
    source: &dyn TensorSource,
    name: &str,
    room: &mut Tensor,
) -> Result<(), ModelError> {
    let spec =
        source.specs().get(name).ok_or_else(|| ModelError::Missing { name: name.to_owned() })?;
    let shape = room.size();
    let same = spec.shape.len() == shape.len()
        && spec.shape.iter().zip(&shape).all(|(found, want)| i64::try_from(*found) == Ok(*want));
    if !same {
        return Err(ModelError::Shape {
            name: name.to_owned(),
            expected: shape,
            found: spec.shape.clone(),
        });
    }
    let kind = match spec.dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 | Dtype::I32 | Dtype::I16 | Dtype::I8 | Dtype::U8 | Dtype::Bool => {
            return Err(ModelError::Dtype {
                name: name.to_owned(),
                dtype: spec.dtype.name().to_owned(),
            });
        }
    };
    let bytes = source.bytes(name)?;
    // libtorch reads as far as the shape says.
    if bytes.len() != spec.bytes() {
        return Err(ModelError::Shape {
            name: name.to_owned(),
            expected: shape,
            found: vec![bytes.len()],
        });
    }
    if bytes.as_ptr().addr().is_multiple_of(kind.elt_size_in_bytes()) {
        #[expect(
            unsafe_code,
            reason = "the view is dropped before the bytes, is never written to, is aligned and as long as its shape"
        )]
        let view = unsafe { Tensor::f_from_blob(bytes.as_ptr(), &shape, &[], kind, Device::Cpu) }?;
        room.f_copy_(&view)?;
    } else {
        // A file may put its tensors at any byte; libtorch may not read them there.
        room.f_copy_(&Tensor::f_from_data_size(&bytes, &shape, kind)?)?;
    }
    finite(room, name)
}

/// Refuses a weight with a NaN or an infinity in it: both show in the least or the greatest element.
fn finite(tensor: &Tensor, name: &str) -> Result<(), ModelError> {
    let (least, greatest) = tensor.f_aminmax(None, false)?;
    if least.f_double_value(&[])?.is_finite() && greatest.f_double_value(&[])?.is_finite() {
        return Ok(());
    }
    Err(ModelError::NonFinite { place: format!("tensor `{name}`") })
}
