//! Elements that can be read in parts, wherever they are.

/// A part that could not be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReadError {
    #[error("elements {start}..{end} of {len}")]
    Outside { start: usize, end: usize, len: usize },
    /// What they are read from failed.
    #[error("{0}")]
    Source(String),
    /// The element at this place, counted from the first of all, is no number that may be sent.
    #[error("element {index} is not finite")]
    NonFinite { index: usize },
}

/// A slice of a vector, float32, read in parts of any size as often as needed and in any order; always the same.
pub trait Values: Send + Sync {
    /// Number of elements.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` with the elements from `start`.
    fn read(&self, start: usize, out: &mut [f32]) -> Result<(), ReadError>;
}

/// The range of a part, refused where it reaches beyond the end.
pub(crate) fn within(
    start: usize,
    count: usize,
    len: usize,
) -> Result<std::ops::Range<usize>, ReadError> {
    let end = start.saturating_add(count);
    if end > len {
        return Err(ReadError::Outside { start, end, len });
    }
    Ok(start..end)
}

impl Values for &[f32] {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn read(&self, start: usize, out: &mut [f32]) -> Result<(), ReadError> {
        out.copy_from_slice(&self[within(start, out.len(), (**self).len())?]);
        Ok(())
    }
}

impl Values for Vec<f32> {
    fn len(&self) -> usize {
        Vec::len(self)
    }

    fn read(&self, start: usize, out: &mut [f32]) -> Result<(), ReadError> {
        self.as_slice().read(start, out)
    }
}
