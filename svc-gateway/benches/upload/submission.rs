//! A file to send.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use checkpoint::{Dtype, MemoryTensors, TensorSource as _, TensorSpec, write_safetensors};
use domain::ModelHash;

const GIB: f64 = (1u64 << 30) as f64;

/// A submission.
pub(crate) struct Submission {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) hash: ModelHash,
}

impl Submission {
    pub(crate) fn gib(&self) -> f64 {
        self.bytes as f64 / GIB
    }
}

/// A checkpoint of tensors of 16 MiB.
pub(crate) fn write(path: &Path, dtype: Dtype, bytes: usize) -> BTreeMap<String, TensorSpec> {
    let columns = 4096;
    let rows = (16 << 20) / columns / dtype.size();
    let mut tensors = MemoryTensors::default();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for layer in 0..bytes.div_ceil(16 << 20) {
        let spec = TensorSpec { dtype, shape: vec![rows, columns] };
        let mut data = vec![0; spec.bytes()];
        for chunk in data.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Exponents below the largest, so that every value is finite in every type.
            chunk.copy_from_slice(&(state & 0xbfff_bfff_bfff_bfff).to_le_bytes());
        }
        tensors.insert(&format!("layers.{layer:04}.weight"), spec, data).unwrap();
    }
    write_safetensors(path, &tensors).unwrap();
    tensors.specs().clone()
}
