//! From named bytes to tensors on the device, checked for name, shape, type and finiteness.

use checkpoint::{Dtype, TensorSource};
use tch::{Kind, Tensor};

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
        let tensor = read(*source, name, shape)?;
        let tensor = tensor
            .f_to_kind(self.options.weights.kind())?
            .f_to_device(self.options.device.tch())?;
        finite(&tensor, name)?;
        Ok(tensor)
    }
}

/// The tensor `name` of `source` in its stored type, copied to the processor's memory.
pub(crate) fn read(
    source: &dyn TensorSource,
    name: &str,
    shape: &[i64],
) -> Result<Tensor, ModelError> {
    let spec =
        source.specs().get(name).ok_or_else(|| ModelError::Missing { name: name.to_owned() })?;
    let same = spec.shape.len() == shape.len()
        && spec.shape.iter().zip(shape).all(|(found, want)| i64::try_from(*found) == Ok(*want));
    if !same {
        return Err(ModelError::Shape {
            name: name.to_owned(),
            expected: shape.to_vec(),
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
            expected: shape.to_vec(),
            found: vec![bytes.len()],
        });
    }
    Ok(Tensor::f_from_data_size(&bytes, shape, kind)?)
}

/// Refuses a weight with a NaN or an infinity in it.
pub(crate) fn finite(tensor: &Tensor, name: &str) -> Result<(), ModelError> {
    if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
        return Err(ModelError::NonFinite { place: format!("tensor `{name}`") });
    }
    Ok(())
}
