//! A `.pt` file: the archive's entries in torch's order and with torch's names.

use std::{collections::BTreeMap, path::Path};

use super::{FileInfo, WriteError, output::Output, pickle::pickle, zip::Archive};
use crate::tensor::TensorSpec;

/// Any name will do; one of our own choosing makes the same tensors the same bytes wherever they are written.
const FOLDER: &str = "archive";

pub(super) struct Writer {
    archive: Archive,
    written: usize,
}

impl Writer {
    pub(super) fn create(
        path: &Path,
        specs: &BTreeMap<String, TensorSpec>,
    ) -> Result<Self, WriteError> {
        Self::begin(Archive::new(Output::create(path)?), specs)
    }

    fn begin(
        mut archive: Archive,
        specs: &BTreeMap<String, TensorSpec>,
    ) -> Result<Self, WriteError> {
        archive.add(&format!("{FOLDER}/data.pkl"), &pickle(specs))?;
        archive.add(&format!("{FOLDER}/byteorder"), b"little")?;
        Ok(Self { archive, written: 0 })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.archive.add(&format!("{FOLDER}/data/{}", self.written), bytes)?;
        self.written += 1;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<FileInfo, WriteError> {
        self.archive.add(&format!("{FOLDER}/version"), b"3\n")?;
        self.archive.finish()?.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::{Limits, open},
        dtype::Dtype,
    };

    #[test]
    fn an_archive_beyond_four_gigabytes_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let spec = TensorSpec { dtype: Dtype::U8, shape: vec![100] };
        let specs: BTreeMap<_, _> =
            ["a", "b"].into_iter().map(|name| (name.to_owned(), spec.clone())).collect();
        // Any number above 99 goes to the zip64 records: sizes, offsets and the directory's place.
        for limit in [0, 99, u64::from(u32::MAX) - 1] {
            let path = folder.path().join("large.pt");
            let archive = Archive::with_limit(Output::create(&path).unwrap(), limit);
            let mut writer = Writer::begin(archive, &specs).unwrap();
            writer.write(&[1; 100]).unwrap();
            writer.write(&[2; 100]).unwrap();
            writer.finish().unwrap();
            let read = open(&path, Limits::default()).unwrap();
            assert_eq!(&*read.bytes("a").unwrap(), &[1; 100]);
            assert_eq!(&*read.bytes("b").unwrap(), &[2; 100]);
        }
    }
}
