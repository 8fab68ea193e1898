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
    /// Who was asked for it before, and has not given it yet.
    before: Vec<usize>,
}

struct Take {
    file: usize,
    chunks: Range<u32>,
    before: Vec<usize>,
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
        let Take { file, chunks, before } = found?;
        let ticket = self.next;
        self.next += 1;
        for index in chunks.clone() {
            self.set(file, index, State::Taken(ticket));
        }
        self.taken.insert(ticket, Taken { holder, file, left: chunks.clone(), before });
        Some(Span { file, chunks, ticket })
    }

    /// Whether a chunk is still for who took `span`: not once it is here, or another has taken it over.
    pub(crate) fn is_for(&self, span: &Span, chunk: u32) -> bool {
        self.state(span.file, chunk) == Some(State::Taken(span.ticket))
    }

    /// A chunk of `span` has come: whether it was not here yet. Who comes first has brought it, also
    /// where another has taken it over.
    pub(crate) fn brought(&mut self, span: &Span, chunk: u32) -> bool {
        let owner = match self.state(span.file, chunk) {
            Some(State::Missing) => None,
            Some(State::Taken(owner)) => Some(owner),
            Some(State::Here) | None => return false,
        };
        self.set(span.file, chunk, State::Here);
        let Some(owner) = owner else { return true };
        if let Some(taken) = self.taken.get_mut(&owner).filter(|t| t.left.start == chunk) {
            taken.left.start += 1;
            if taken.left.is_empty() {
                self.taken.remove(&owner);
            }
        }
        true
    }

    /// What was not brought of `span` is for others.
    pub(crate) fn give_back(&mut self, span: &Span) {
        let Some(taken) = self.taken.remove(&span.ticket) else { return };
        for index in taken.left {
            if self.is_for(span, index) {
                self.set(taken.file, index, State::Missing);
            }
        }
    }

    fn first_missing(&self, most: usize) -> Option<Take> {
        if self.missing == 0 {
            return None;
        }
        self.files.iter().enumerate().find_map(|(file, states)| {
            let first = states.iter().position(|state| *state == State::Missing)?;
            let run = states.iter().skip(first).take(most);
            let len = run.take_while(|state| **state == State::Missing).count();
            let chunks = first as u32..(first + len) as u32;
            Some(Take { file, chunks, before: Vec::new() })
        })
    }

    /// The back half of the most that another holder has before it, whose next chunk stays its own.
    /// Where that is its last, it is asked for again, of each holder once.
    fn steal(&mut self, thief: usize) -> Option<Take> {
        let others = self.taken.iter_mut().filter(|(_, taken)| taken.holder != thief);
        let open = others.filter(|(_, t)| t.left.len() > 1 || !t.before.contains(&thief));
        let (ticket, slowest) = open.max_by_key(|(_, taken)| taken.left.len())?;
        let (ticket, file, last) = (*ticket, slowest.file, slowest.left.len() == 1);
        let middle = slowest.left.end - (slowest.left.len() as u32 / 2).max(1);
        let chunks = middle..slowest.left.end;
        slowest.left.end = middle;
        let mut before = Vec::new();
        if last && let Some(taken) = self.taken.remove(&ticket) {
            before = taken.before;
            before.push(taken.holder);
        }
        Some(Take { file, chunks, before })
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
        let mut work = Work::new(&[vec![false; 64]]);
        let slow = work.take(0, 1).unwrap();
        assert_eq!(slow.chunks, 0..16);
        while work.missing > 0 {
            let span = work.take(1, 1).unwrap();
            span.chunks.clone().for_each(|chunk| assert!(work.brought(&span, chunk)));
        }
        assert_eq!(work.take(0, 1), None, "nobody takes over from itself");
        work.brought(&slow, 0);
        let stolen = work.take(1, 1).unwrap();
        assert_eq!(stolen.chunks, 9..16);
        assert!(work.is_for(&slow, 8) && !work.is_for(&slow, 9) && work.is_for(&stolen, 9));
        work.give_back(&slow);
        assert_eq!(work.take(1, 1).unwrap().chunks, 1..3);
    }

    #[test]
    fn the_last_chunk_of_one_that_stands_still_is_asked_of_each_other_once() {
        let mut work = Work::new(&[vec![false]]);
        let still = work.take(0, 3).unwrap();
        let second = work.take(1, 3).unwrap();
        assert_eq!(second.chunks, 0..1);
        let third = work.take(2, 3).unwrap();
        assert_eq!(third.chunks, 0..1);
        assert_eq!([work.take(0, 3), work.take(1, 3)], [None, None]);
        assert!(work.brought(&still, 0), "it may come from the first after all");
        assert!(work.is_done() && !work.brought(&second, 0));
        work.give_back(&second);
        work.give_back(&third);
        assert!(work.is_done());
    }

    proptest! {
        #[test]
        fn whatever_holders_do_every_chunk_is_brought_once(
            lens in prop::collection::vec(0_usize..40, 1..4),
            deeds in prop::collection::vec((0_usize..3, 0_u8..6), 0..400),
        ) {
            let here: Vec<Vec<bool>> =
                lens.iter().map(|len| (0..*len).map(|n| n % 5 == 4).collect()).collect();
            let mut times: Vec<Vec<u8>> =
                here.iter().map(|file| file.iter().map(|here| u8::from(*here)).collect()).collect();
            let mut work = Work::new(&here);
            // What each holder has been asked for, and which chunk comes next.
            let mut asked: [Option<(Span, u32)>; 3] = [None, None, None];
            // In the end all go on until there is nothing left.
            let end = (0..3000).map(|n| (n % 3, 1));
            for (holder, deed) in deeds.into_iter().chain(end) {
                let Some((span, next)) = asked[holder].take() else {
                    let span = work.take(holder, 3);
                    asked[holder] = span.map(|span| (span.clone(), span.chunks.start));
                    continue;
                };
                if deed > 0 && work.brought(&span, next) {
                    times[span.file][next as usize] += 1;
                }
                if deed > 0 && span.chunks.contains(&(next + 1)) && work.is_for(&span, next + 1) {
                    asked[holder] = Some((span, next + 1));
                } else {
                    work.give_back(&span);
                }
            }
            prop_assert!(work.is_done());
            prop_assert!(times.iter().flatten().all(|times| *times == 1));
        }
    }
}
