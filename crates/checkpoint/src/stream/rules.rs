//! What a submission may be, as far as its size and its tensors tell.

use std::{collections::BTreeMap, sync::Arc};

use domain::ModelHash;

use crate::{
    checkpoint::{Limits, check_size},
    layout::SliceLayout,
    refusal::{Flaw, Refusal},
    tensor::TensorSpec,
    verify::check_structure,
};

/// What a submission is held against.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) layout: Arc<SliceLayout>,
    pub(super) limits: Limits,
    pub(super) expected: Option<ModelHash>,
    pub(super) announced: Option<u64>,
}

impl Rules {
    /// Bytes that the file may have.
    pub(super) fn room(&self) -> u64 {
        self.announced.unwrap_or(self.limits.max_file_bytes)
    }

    pub(super) fn check_structure(
        &self,
        specs: &BTreeMap<String, TensorSpec>,
    ) -> Result<(), Refusal> {
        check_structure(specs, &self.layout)
    }

    /// Refuses a file that tells of more bytes than it may have.
    pub(super) fn check_room(&self, needed: u64) -> Result<(), Refusal> {
        if needed <= self.room() {
            return Ok(());
        }
        let detail = format!("{needed} bytes are needed, of {}", self.room());
        Err(if self.announced.is_some() { Flaw::Truncated } else { Flaw::FileTooLarge }
            .with(detail))
    }

    pub(super) fn check_length(&self, bytes: u64) -> Result<(), Refusal> {
        match self.announced {
            Some(announced) if bytes > announced => {
                Err(Flaw::WrongLength.with(format!("more than the {announced} bytes announced")))
            }
            Some(_) => Ok(()),
            None => check_size(bytes, self.limits),
        }
    }

    pub(super) fn check_end(&self, bytes: u64) -> Result<(), Refusal> {
        match self.announced {
            Some(announced) if bytes != announced => {
                Err(Flaw::WrongLength.with(format!("{bytes} bytes of {announced} announced")))
            }
            _ => Ok(()),
        }
    }
}
