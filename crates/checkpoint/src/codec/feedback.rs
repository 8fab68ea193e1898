//! Error feedback: what an encoding loses is kept by the sender, and added to what it sends next time.
//!
//! (Seide et al., "1-Bit Stochastic Gradient Descent", 2014; Karimireddy et al., "Error Feedback Fixes SignSGD", ICML
//! 2019.) The sum of what was sent over any number of rounds differs from the sum of the gradients by one residual.

use std::{fmt, path::Path};

use super::{Codec, CodecError};
use crate::{
    state_file::{StateFile, StateFileError, StateWriter},
    vector::{LayoutDigest, VectorLayout},
};

/// What was lost so far, for one vector; read from the file of the last round, a part at a time.
pub struct Feedback {
    layout: LayoutDigest,
    len: usize,
    /// `None`: nothing was lost.
    file: Option<StateFile>,
}

/// What will be lost after this round: a file that appears whole, with [`NextFeedback::finish`], or not at all.
pub struct NextFeedback {
    layout: LayoutDigest,
    len: usize,
    writer: StateWriter,
}

/// A residual that cannot be used, or a part that cannot be sent with it.
#[derive(Debug, thiserror::Error)]
pub enum FeedbackError {
    #[error(transparent)]
    File(#[from] StateFileError),
    #[error("the residual is of layout {found}, not {expected}")]
    Layout { expected: LayoutDigest, found: LayoutDigest },
    #[error("elements {start}..{end} of {len}")]
    Range { start: usize, end: usize, len: usize },
    #[error("gradient and residual: {0}")]
    Encode(#[from] CodecError),
}

const KIND: &str = "connito.residual";
const VERSION: u32 = 1;
const RESIDUAL: &str = "residual";
const LAYOUT: &str = "layout";

impl Feedback {
    /// Of a sender that has lost nothing yet.
    pub fn none(layout: &VectorLayout) -> Self {
        Self { layout: layout.digest(), len: layout.len(), file: None }
    }

    /// Reads the file of an earlier round: its hash, its version, its layout and every value are checked.
    pub fn load(path: &Path, layout: &VectorLayout) -> Result<Self, FeedbackError> {
        let file = StateFile::open(path, KIND, VERSION)?;
        let expected = layout.digest();
        let found = file.bound(LAYOUT).and_then(|bytes| bytes.try_into().ok()).map(LayoutDigest);
        match found {
            Some(found) if found == expected => {}
            found => {
                let found = found.unwrap_or(LayoutDigest([0; 32]));
                return Err(FeedbackError::Layout { expected, found });
            }
        }
        file.expect([(RESIDUAL, [layout.len()].as_slice())])?;
        Ok(Self { layout: expected, len: layout.len(), file: Some(file) })
    }

    /// Adds the residual to elements of the gradient from `start` of the vector, encodes them into `out`
    /// ([`Codec::encoded_len`] bytes) and writes what that loses to `next`. Afterwards `values` holds what a receiver
    /// decodes: what the sender itself must go on with.
    ///
    /// `next` belongs to the same round as the gradient: a round that is begun again begins with the same `self` and
    /// another `next`.
    pub fn encode(
        &self,
        codec: Codec,
        start: usize,
        values: &mut [f32],
        out: &mut [u8],
        next: &mut NextFeedback,
    ) -> Result<(), FeedbackError> {
        let (end, len) = (start.saturating_add(values.len()), self.len);
        if end > len {
            return Err(FeedbackError::Range { start, end, len });
        }
        if self.layout != next.layout {
            return Err(FeedbackError::Layout { expected: self.layout, found: next.layout });
        }
        let mut residual = vec![0.0; values.len()];
        if let Some(file) = &self.file {
            file.read(RESIDUAL, start, &mut residual).map_err(StateFileError::from)?;
            values.iter_mut().zip(&residual).for_each(|(x, lost)| *x += lost);
        }
        codec.encode(values, out)?;
        if codec.is_exact() {
            residual.fill(0.0);
        } else {
            residual.copy_from_slice(values);
            codec.decode(out, values)?;
            residual.iter_mut().zip(&*values).for_each(|(lost, sent)| *lost -= sent);
        }
        next.keep(start, &residual)
    }
}

impl NextFeedback {
    /// Begins a file at `path`, which must not be the one that is being read.
    pub fn create(path: &Path, layout: &VectorLayout) -> Result<Self, FeedbackError> {
        let tensors = [(RESIDUAL.to_owned(), vec![layout.len()])];
        let writer = StateWriter::create(path, KIND, VERSION, tensors, &[(LAYOUT, 32)])?;
        Ok(Self { layout: layout.digest(), len: layout.len(), writer })
    }

    /// Keeps these elements as they are: a part that was not sent at all is lost whole, and comes next time.
    pub fn keep(&mut self, start: usize, residual: &[f32]) -> Result<(), FeedbackError> {
        let (end, len) = (start.saturating_add(residual.len()), self.len);
        if end > len {
            return Err(FeedbackError::Range { start, end, len });
        }
        Ok(self.writer.write(RESIDUAL, start, residual)?)
    }

    /// Makes the file visible, replacing one of the same name. Refused while elements are missing.
    pub fn finish(mut self) -> Result<(), FeedbackError> {
        self.writer.bind(LAYOUT, &self.layout.0)?;
        self.writer.finish()?;
        Ok(())
    }
}

impl fmt::Debug for Feedback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feedback").field("layout", &self.layout).field("len", &self.len).finish()
    }
}

impl fmt::Debug for NextFeedback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NextFeedback")
            .field("layout", &self.layout)
            .field("len", &self.len)
            .finish()
    }
}
