//! safetensors: header first, then the data.

use std::{cmp::Reverse, collections::BTreeMap, path::Path};

use serde_json::json;

use super::{FileInfo, WriteError, output::Output};
use crate::tensor::TensorSpec;

pub(super) struct Writer {
    output: Output,
    /// Where each tensor's data begin in the file.
    starts: BTreeMap<String, u64>,
}

impl Writer {
    /// Lays the tensors out by size of their elements, large first, then by name: so that each is aligned, as other
    /// readers expect. With one dtype, the order is the one they are written in.
    pub(super) fn create(
        path: &Path,
        specs: &BTreeMap<String, TensorSpec>,
    ) -> Result<Self, WriteError> {
        let mut order: Vec<_> = specs.iter().collect();
        order.sort_by_key(|(_, spec)| Reverse(spec.dtype.size()));
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
        let mut starts = BTreeMap::new();
        let mut at = 0;
        for (name, spec) in order {
            let end = at + spec.bytes() as u64;
            let entry =
                json!({ "dtype": spec.dtype, "shape": spec.shape, "data_offsets": [at, end] });
            header.insert(name.clone(), entry);
            starts.insert(name.clone(), at);
            at = end;
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut output = Output::create(path)?;
        output.write(&(header.len() as u64).to_le_bytes())?;
        output.write(&header)?;
        starts.values_mut().for_each(|start| *start += output.len());
        Ok(Self { output, starts })
    }

    pub(super) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        match self.starts.get(name) {
            Some(at) => self.output.write_at(*at, bytes),
            None => Err(WriteError::Order { expected: None, found: name.to_owned() }),
        }
    }

    pub(super) fn finish(self) -> Result<FileInfo, WriteError> {
        self.output.finish()
    }
}
