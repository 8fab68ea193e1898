//! What must hold of any bytes that arrive in pieces. The fuzz target runs the same functions.

use std::sync::Arc;

use bytes::Bytes;
use checkpoint::{
    Checkpoint, Outcome, Refusal, SliceLayout, Stream, TensorSource as _, Verified, verify,
};

use crate::fuzz_body::LIMITS;

/// The verdict on a file that arrives in pieces whose sizes repeat `steps`.
pub(crate) fn streamed(
    bytes: &[u8],
    layout: &Arc<SliceLayout>,
    steps: &[usize],
) -> Result<Verified, Refusal> {
    let mut stream = Stream::new(Arc::clone(layout), LIMITS, None, None)?;
    let mut rest = bytes;
    for (nth, step) in steps.iter().cycle().enumerate() {
        if rest.is_empty() {
            break;
        }
        let (piece, later) = rest.split_at((*step).clamp(1, rest.len()));
        match nth % 2 {
            0 => stream.push(piece)?,
            _ => stream.push_shared(&Bytes::copy_from_slice(piece))?,
        }
        rest = later;
    }
    let streamed = stream.finish()?;
    assert_eq!(streamed.bytes, bytes.len() as u64);
    match streamed.outcome {
        Outcome::Verified(verified) => Ok(verified),
        Outcome::NeedsReread(reread) => {
            let spool = Checkpoint::from_bytes(bytes.to_vec(), LIMITS)?;
            assert_eq!(spool.format(), streamed.format);
            assert_eq!(*spool.specs(), streamed.tensors);
            reread.verify(&spool)
        }
    }
}

/// How two verdicts agree; one that accepts and one that refuses is a failed test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Agreed {
    Accepted,
    /// For the same reason and flaw.
    Refused,
    /// For another one: the file has several flaws, and a stream names the first that passes.
    RefusedOtherwise,
}

/// The bytes as a file that arrives in pieces: the verdict is that on the whole file.
pub(crate) fn stream(bytes: &[u8], layout: &Arc<SliceLayout>, steps: &[usize]) -> Agreed {
    let whole = Checkpoint::from_bytes(bytes.to_vec(), LIMITS)
        .and_then(|checkpoint| verify(&checkpoint, layout, None));
    let streamed = streamed(bytes, layout, steps);
    match (whole, streamed) {
        (Ok(whole), Ok(streamed)) => {
            assert_eq!(whole, streamed);
            Agreed::Accepted
        }
        (Err(whole), Err(streamed)) => {
            assert!(streamed.is_miners_fault(), "{streamed}");
            let same = (whole.reason(), whole.flaw()) == (streamed.reason(), streamed.flaw());
            if same { Agreed::Refused } else { Agreed::RefusedOtherwise }
        }
        (whole, streamed) => panic!("whole: {whole:?}, in pieces of {steps:?}: {streamed:?}"),
    }
}

/// As [`stream`], held against what the file itself contains, where it can be read.
pub(crate) fn stream_own(bytes: &[u8], steps: &[usize]) {
    let own = Checkpoint::from_bytes(bytes.to_vec(), LIMITS)
        .map(|file| SliceLayout { tensors: file.specs().clone(), ..SliceLayout::default() });
    stream(bytes, &Arc::new(own.unwrap_or_default()), steps);
}
