//! Who brings which chunk: all that are missing are shared out among holders, and who has nothing to
//! do takes over half of what a slower one has still before it.
//!
//! Pure: it knows no bytes, no network and no time.

use std::{collections::BTreeMap, ops::Range};

/// Chunks that are asked for in one go, at most.
const SPAN: usize = 16;

/// Consecutive chunks of one file that a holder has taken on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    /// Which file.
    pub(crate) file: usize,
    /// Which of its chunks.
    pub(crate) chunks: Range<u32>,
    ticket: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Missing,
    Taken(u64),
    Here,
}

#[derive(Debug)]
struct Taken {
    holder: usize,
    file: usize,
    left: Range<u32>,
}

/// The chunks of some files, and who brings which.
#[derive(Debug)]
pub(crate) struct Work {
    files: Vec<Vec<State>>,
    taken: BTreeMap<u64, Taken>,
    missing: usize,
    next: u64,
}

impl Work {
    /// Files of which the chunks that are `true` are here.
    pub(crate) fn new(here: &[Vec<bool>]) -> Self {
        let state = |here: &bool| if *here { State::Here } else { State::Missing };
        let files: Vec<Vec<State>> =
            here.iter().map(|file| file.iter().map(state).collect()).collect();
        let missing = files.iter().flatten().filter(|state| **state == State::Missing).count();
        Self { files, taken: BTreeMap::new(), missing, next: 0 }
    }

    /// Whether every chunk is here.
    pub(crate) fn is_done(&self) -> bool {
        self.missing == 0 && self.taken.is_empty()
    }

    /// The next chunks for a holder, one of `holders`; none where others are at all that is missing.
    pub(crate) fn take(&mut self, holder: usize, holders: usize) -> Option<Span> {
        let most = (self.missing / (4 * holders.max(1))).clamp(1, SPAN);
        let found = self.first_missing(most).or_else(|| self.steal(holder));
        let (file, chunks) = found?;
        let ticket = self.next;
        self.next += 1;
        for index in chunks.clone() {
            self.set(file, index, State::Taken(ticket));
        }
        self.taken.insert(ticket, Taken { holder, file, left: chunks.clone() });
        Some(Span { file, chunks, ticket })
    }

    /// Whether a chunk is still for who took `span`: not once another has taken it over.
    pub(crate) fn is_for(&self, span: &Span, chunk: u32) -> bool {
        self.state(span.file, chunk) == Some(State::Taken(span.ticket))
    }

    /// A chunk of `span` is here.
    pub(crate) fn brought(&mut self, span: &Span, chunk: u32) {
        if self.is_for(span, chunk) {
            self.set(span.file, chunk, State::Here);
            let taken = self.taken.get_mut(&span.ticket);
            if let Some(taken) = taken {
                taken.left.start = chunk + 1;
                if taken.left.is_empty() {
                    self.taken.remove(&span.ticket);
                }
            }
        }
    }

    /// What was not brought of `span` is for others.
    pub(crate) fn give_back(&mut self, span: &Span) {
        let Some(taken) = self.taken.remove(&span.ticket) else { return };
        for index in taken.left {
            self.set(taken.file, index, State::Missing);
        }
    }

    fn first_missing(&self, most: usize) -> Option<(usize, Range<u32>)> {
        if self.missing == 0 {
            return None;
        }
        self.files.iter().enumerate().find_map(|(file, states)| {
            let first = states.iter().position(|state| *state == State::Missing)?;
            let run = states.iter().skip(first).take(most);
            let len = run.take_while(|state| **state == State::Missing).count();
            Some((file, first as u32..(first + len) as u32))
        })
    }

    /// The back half of the most that another holder has before it; its next chunk stays its own.
    fn steal(&mut self, thief: usize) -> Option<(usize, Range<u32>)> {
        let others = self.taken.values_mut().filter(|taken| taken.holder != thief);
        let slowest = others.max_by_key(|taken| taken.left.len()).filter(|t| t.left.len() > 1)?;
        let middle = slowest.left.end - slowest.left.len() as u32 / 2;
        let stolen = middle..slowest.left.end;
        slowest.left.end = middle;
        Some((slowest.file, stolen))
    }

    fn state(&self, file: usize, chunk: u32) -> Option<State> {
        self.files.get(file)?.get(chunk as usize).copied()
    }

    fn set(&mut self, file: usize, chunk: u32, state: State) {
        let place = self.files.get_mut(file).and_then(|states| states.get_mut(chunk as usize));
        if let Some(place) = place {
            self.missing -= usize::from(*place == State::Missing);
            self.missing += usize::from(state == State::Missing);
            *place = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_has_nothing_to_do_takes_over_half_of_what_another_has_before_it() {
        let mut work = Work::new(&[vec![false; 8]]);
        let slow = work.take(0, 0).unwrap();
        assert_eq!(slow.chunks, 0..2);
        work.brought(&slow, 0);
        let rest: Vec<Span> = std::iter::from_fn(|| work.take(0, 1)).collect();
        assert_eq!(rest.iter().map(|span| span.chunks.len()).sum::<usize>(), 6);
        assert_eq!(work.take(0, 1), None, "nobody takes over from itself");

        let mut work = Work::new(&[vec![false; 64]]);
        let slow = work.take(0, 1).unwrap();
        assert_eq!(slow.chunks, 0..16);
        while work.missing > 0 {
            let span = work.take(1, 1).unwrap();
            span.chunks.clone().for_each(|chunk| work.brought(&span, chunk));
        }
        work.brought(&slow, 0);
        let stolen = work.take(1, 1).unwrap();
        assert_eq!(stolen.chunks, 9..16);
        assert!(work.is_for(&slow, 8) && !work.is_for(&slow, 9) && work.is_for(&stolen, 9));
        work.give_back(&slow);
        assert_eq!(work.take(1, 1).unwrap().chunks, 1..3);
    }

    proptest! {
        #[test]
        fn whatever_holders_do_every_chunk_is_brought_once(
            lens in prop::collection::vec(0_usize..40, 1..4),
            deeds in prop::collection::vec((0_usize..3, 0_u8..4), 0..400),
        ) {
            let here: Vec<Vec<bool>> = lens.iter().map(|len| (0..*len).map(|n| n % 5 == 4).collect()).collect();
            let mut brought: Vec<Vec<u32>> = here.iter().map(|f| f.iter().map(|b| u32::from(*b)).collect()).collect();
            let mut work = Work::new(&here);
            let mut at: [Option<(Span, u32)>; 3] = [None, None, None];
            // In the end all go on until there is nothing left.
            let end = (0..3000).map(|n| (n % 3, 1));
            for (holder, deed) in deeds.into_iter().chain(end) {
                match (at[holder].take(), deed) {
                    (Some((span, _)), 0) => work.give_back(&span),
                    (Some((span, next)), _) if work.is_for(&span, next) => {
                        work.brought(&span, next);
                        brought[span.file][next as usize] += 1;
                        if next + 1 < span.chunks.end {
                            at[holder] = Some((span, next + 1));
                        }
                    }
                    (Some((span, _)), _) => work.give_back(&span),
                    (None, _) => at[holder] = work.take(holder, 3).map(|span| { let first = span.chunks.start; (span, first) }),
                }
            }
            prop_assert!(work.is_done());
            prop_assert!(brought.iter().flatten().all(|times| *times == 1));
        }
    }
}
