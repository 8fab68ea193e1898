//! Which chunks make a slice, and whose slice it is.

use std::ops::Range;

/// A vector of `chunks` encoded chunks, split into as many slices as members can be called. Slices
/// end where chunks end, so that a giver's chunks are the same whoever takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slices {
    /// Chunks of the whole vector.
    pub chunks: u32,
    /// Number of slices.
    pub parts: u16,
}

impl Slices {
    /// The chunks of slice `index`; lengths differ by one at most. Empty beyond the last slice.
    pub fn range(self, index: u16) -> Range<u32> {
        self.start(index)..self.start(index.saturating_add(1))
    }

    fn start(self, index: u16) -> u32 {
        if self.parts == 0 || index >= self.parts {
            return self.chunks;
        }
        let start = u64::from(self.chunks) * u64::from(index) / u64::from(self.parts);
        u32::try_from(start).unwrap_or(self.chunks)
    }
}

/// The place, among `parts` owners, of the one that reduces `slice` in this `attempt`: its own in the
/// first; when it is dead, the next one's, and so on.
pub fn owner(slice: u16, attempt: u16, parts: u16) -> u16 {
    let place = (u32::from(slice) + u32::from(attempt)) % u32::from(parts.max(1));
    u16::try_from(place).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_chunk_is_in_one_slice(chunks: u32, parts in 1..300_u16) {
            let slices = Slices { chunks, parts };
            let mut end = 0;
            for index in 0..parts {
                let range = slices.range(index);
                prop_assert_eq!(range.start, end);
                prop_assert!(range.len().abs_diff((chunks / u32::from(parts)) as usize) <= 1);
                end = range.end;
            }
            prop_assert_eq!(end, chunks);
            prop_assert!(slices.range(parts).is_empty() && slices.range(u16::MAX).is_empty());
        }

        #[test]
        fn each_attempt_at_a_slice_is_another_members(parts in 1..300_u16, slice in 0..300_u16) {
            let owners: std::collections::BTreeSet<u16> =
                (0..parts).map(|attempt| owner(slice, attempt, parts)).collect();
            prop_assert_eq!(owners.len(), usize::from(parts));
            prop_assert!(slice >= parts || owner(slice, 0, parts) == slice);
        }
    }
}
