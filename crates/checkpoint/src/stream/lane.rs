//! A hash that runs beside the caller, in a thread of its own. What that may keep for a while is shared with it; all
//! else is copied into pooled buffers.

use std::{
    fmt, mem,
    sync::mpsc::{self, Receiver, SyncSender},
    thread::{self, JoinHandle},
};

use bytes::Bytes;

use crate::hash::ModelHasher;

/// Small enough to stay in the cache between the two threads, large enough that handing over costs nothing.
const BUFFER: usize = 128 << 10;
/// Buffers of one lane: one is filled, one is hashed, the others wait, so that neither thread stops when the other is
/// not on a core for a while. 1 MiB and no more.
const BUFFERS: usize = 8;
/// Pieces on their way to the thread, shared or copied.
const WAITING: usize = 16;
/// What is shorter is copied: handing it over costs more, and it would keep memory of others.
const SHARED: usize = 16 << 10;

/// Hashes what it is fed, in order. The thread begins with the second buffer, so that small files and senders that
/// never get that far cost none; it ends with the lane, however that ends.
pub(super) struct Lane {
    /// What was copied and not handed over yet.
    buffer: Vec<u8>,
    /// The same of what is shared; one of the two is empty.
    shared: Bytes,
    state: State,
}

enum State {
    /// No thread yet, or none to be had.
    Here {
        hasher: ModelHasher,
        may_start: bool,
    },
    Beside(Beside),
    /// The thread is gone and with it the hash: the file has to be read again.
    Lost,
}

/// What is to be hashed.
enum Work {
    Copied(Vec<u8>),
    Shared(Bytes),
}

struct Beside {
    work: SyncSender<Work>,
    empty: Receiver<Vec<u8>>,
    /// Buffers that do not exist yet.
    unmade: usize,
    thread: JoinHandle<ModelHasher>,
}

impl Default for Lane {
    fn default() -> Self {
        let state = State::Here { hasher: ModelHasher::default(), may_start: true };
        Self { buffer: Vec::new(), shared: Bytes::new(), state }
    }
}

impl Lane {
    /// The next bytes, which may be a part of what the thread may keep.
    pub(super) fn update(&mut self, bytes: &[u8], of: Option<&Bytes>) {
        if bytes.len() >= SHARED
            && matches!(self.state, State::Beside(_))
            && let Some(shared) = of.and_then(|of| part(of, bytes))
        {
            self.share(shared, of);
        } else {
            self.share_now();
            self.copy(bytes);
        }
    }

    /// Hands over what is shared and waits for more of its kind: its owner may be waiting for it.
    pub(super) fn share_now(&mut self) {
        let shared = mem::take(&mut self.shared);
        if !shared.is_empty()
            && let State::Beside(beside) = &mut self.state
            && beside.work.send(Work::Shared(shared)).is_err()
        {
            self.state = State::Lost;
        }
    }

    /// What lies behind what waits is handed over together with it: who is woken seldom gets more done.
    fn share(&mut self, next: Bytes, of: Option<&Bytes>) {
        let end = self.shared.as_ptr().addr() + self.shared.len();
        let start = self.shared.as_ptr().addr();
        if !self.shared.is_empty()
            && next.as_ptr().addr() == end
            && let Some(both) = of.and_then(|of| between(of, start, end + next.len()))
        {
            self.shared = both;
            return;
        }
        self.share_now();
        if !self.buffer.is_empty() {
            self.hand_over();
        }
        self.shared = next;
    }

    fn copy(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.buffer.len() == BUFFER {
                self.hand_over();
            }
            if self.buffer.capacity() == 0 {
                self.buffer.reserve_exact(BUFFER);
            }
            let (part, rest) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(part);
            bytes = rest;
        }
    }

    /// The hasher after all bytes; `None` when it was lost.
    pub(super) fn finish(mut self) -> Option<ModelHasher> {
        self.share_now();
        let rest = mem::take(&mut self.buffer);
        let mut hasher = match mem::replace(&mut self.state, State::Lost) {
            State::Here { hasher, .. } => hasher,
            State::Beside(beside) => beside.join()?,
            State::Lost => return None,
        };
        hasher.data(&rest);
        Some(hasher)
    }

    /// The buffer goes to the thread and an empty one takes its place.
    fn hand_over(&mut self) {
        if let State::Here { hasher, may_start: may_start @ true } = &mut self.state {
            *may_start = false;
            if let Some(beside) = Beside::start(hasher) {
                self.state = State::Beside(beside);
            }
        }
        match &mut self.state {
            State::Here { hasher, .. } => {
                hasher.data(&self.buffer);
                self.buffer.clear();
            }
            State::Beside(beside) => match beside.exchange(mem::take(&mut self.buffer)) {
                Some(empty) => self.buffer = empty,
                None => self.state = State::Lost,
            },
            State::Lost => self.buffer.clear(),
        }
    }
}

impl Beside {
    fn start(hasher: &ModelHasher) -> Option<Self> {
        let (work, waiting) = mpsc::sync_channel(WAITING);
        let (back, empty) = mpsc::sync_channel::<Vec<u8>>(BUFFERS);
        let mut hasher = hasher.clone();
        let run = move || {
            for work in waiting {
                match work {
                    Work::Shared(bytes) => hasher.data(&bytes),
                    Work::Copied(mut buffer) => {
                        hasher.data(&buffer);
                        buffer.clear();
                        // Nobody takes it back when the lane is being joined.
                        drop(back.send(buffer));
                    }
                }
            }
            hasher
        };
        let thread = thread::Builder::new().name("model-hash".to_owned()).spawn(run).ok()?;
        Some(Self { work, empty, unmade: BUFFERS - 1, thread })
    }

    /// Gives a full buffer for an empty one, waiting for the hash where it is behind.
    fn exchange(&mut self, buffer: Vec<u8>) -> Option<Vec<u8>> {
        self.work.send(Work::Copied(buffer)).ok()?;
        if let Ok(empty) = self.empty.try_recv() {
            return Some(empty);
        }
        if self.unmade > 0 {
            self.unmade -= 1;
            return Some(Vec::with_capacity(BUFFER));
        }
        self.empty.recv().ok()
    }

    fn join(self) -> Option<ModelHasher> {
        let Self { work, empty, thread, .. } = self;
        drop((work, empty));
        thread.join().ok()
    }
}

impl Drop for Lane {
    /// Waits for the thread, which has at most a few buffers to go.
    fn drop(&mut self) {
        if let State::Beside(beside) = mem::replace(&mut self.state, State::Lost) {
            beside.join();
        }
    }
}

/// These bytes as a part of `of`, if they are one.
fn part(of: &Bytes, bytes: &[u8]) -> Option<Bytes> {
    let start = bytes.as_ptr().addr();
    between(of, start, start.checked_add(bytes.len())?)
}

/// The part of `of` between two addresses, if both are in it.
fn between(of: &Bytes, start: usize, end: usize) -> Option<Bytes> {
    let first = of.as_ptr().addr();
    let (start, end) = (start.checked_sub(first)?, end.checked_sub(first)?);
    (start <= end && end <= of.len()).then(|| of.slice(start..end))
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let beside = matches!(self.state, State::Beside(_));
        f.debug_struct("Lane").field("beside", &beside).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_beside_is_the_hash_here_whatever_the_pieces() {
        let bytes: Vec<u8> = (0..3_000_001u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
        let mut here = ModelHasher::default();
        here.data(&bytes);
        let expected = here.finish();
        for step in [77_777, BUFFER, BUFFER + 1, bytes.len()] {
            let mut lane = Lane::default();
            bytes.chunks(step).for_each(|piece| lane.update(piece, None));
            assert_eq!(lane.finish().unwrap().finish(), expected, "{step}");
        }
        let mut short = Lane::default();
        bytes[..1000].iter().for_each(|byte| short.update(&[*byte], None));
        assert!(matches!(short.state, State::Here { .. }), "no thread for a small file");
        let mut here = ModelHasher::default();
        here.data(&bytes[..1000]);
        assert_eq!(short.finish().unwrap().finish(), here.finish());
    }

    #[test]
    fn shared_and_copied_pieces_are_hashed_in_the_order_in_which_they_came() {
        let bytes: Vec<u8> = (0..4_000_003u32).map(|n| (n.wrapping_mul(n) >> 9) as u8).collect();
        let whole = Bytes::from(bytes.clone());
        let foreign = Bytes::from(vec![0; 100]);
        for steps in [&[BUFFER, 3, SHARED, SHARED - 1][..], &[1 << 20, 100], &[SHARED]] {
            let (mut lane, mut here) = (Lane::default(), ModelHasher::default());
            let mut rest = &whole[..];
            for (nth, step) in steps.iter().cycle().enumerate() {
                let (piece, behind) = rest.split_at(rest.len().min(*step));
                lane.update(piece, Some(if nth % 7 == 3 { &foreign } else { &whole }));
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            assert!(matches!(lane.state, State::Beside(_)));
            here.data(&bytes);
            assert_eq!(lane.finish().unwrap().finish(), here.finish(), "{steps:?}");
        }
    }

    #[test]
    fn a_part_is_found_in_what_it_is_a_part_of_and_nowhere_else() {
        let whole = Bytes::from(vec![7; 100]);
        assert_eq!(part(&whole, &whole[3..50]).unwrap().as_ptr(), whole[3..].as_ptr());
        assert_eq!(part(&whole.slice(..40), &whole[3..50]), None);
        assert_eq!(part(&whole.slice(10..), &whole[3..50]), None);
        assert_eq!(part(&whole, &[7; 10]), None);
    }

    #[test]
    fn a_lane_without_a_thread_to_be_had_hashes_here() {
        let bytes = vec![7; 3 * BUFFER + 1];
        let state = State::Here { hasher: ModelHasher::default(), may_start: false };
        let mut lane = Lane { buffer: Vec::new(), shared: Bytes::new(), state };
        lane.update(&bytes, None);
        let mut here = ModelHasher::default();
        here.data(&bytes);
        assert_eq!(lane.finish().unwrap().finish(), here.finish());
    }

    #[test]
    fn a_lost_hash_is_none_and_not_another_one() {
        let mut lane = Lane { buffer: Vec::new(), shared: Bytes::new(), state: State::Lost };
        lane.update(&[1; 2 * BUFFER + 1], None);
        assert!(lane.finish().is_none());
    }
}
