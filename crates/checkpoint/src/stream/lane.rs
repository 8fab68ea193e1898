//! A hash that runs beside the caller: the bytes are copied into pooled buffers and hashed by a thread of their own.

use std::{
    fmt, mem,
    sync::mpsc::{self, Receiver, SyncSender},
    thread::{self, JoinHandle},
};

use crate::hash::ModelHasher;

/// Small enough to stay in the cache between the two threads, large enough that handing over costs nothing.
const BUFFER: usize = 128 << 10;
/// Buffers of one lane: one is filled, one is hashed, the others wait, so that neither thread stops when the other is
/// not on a core for a while. 1 MiB and no more.
const BUFFERS: usize = 8;

/// Hashes what it is fed, in order. The thread begins with the second buffer, so that small files and senders that
/// never get that far cost none; it ends with the lane, however that ends.
pub(super) struct Lane {
    buffer: Vec<u8>,
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

struct Beside {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    /// Buffers that do not exist yet.
    unmade: usize,
    thread: JoinHandle<ModelHasher>,
}

impl Default for Lane {
    fn default() -> Self {
        let state = State::Here { hasher: ModelHasher::default(), may_start: true };
        Self { buffer: Vec::new(), state }
    }
}

impl Lane {
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
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
        let rest = mem::take(&mut self.buffer);
        let mut hasher = match mem::replace(&mut self.state, State::Lost) {
            State::Here { hasher, .. } => hasher,
            State::Beside(beside) => beside.join()?,
            State::Lost => return None,
        };
        hasher.data(&rest);
        Some(hasher)
    }

    /// The buffer is full: it goes to the thread and an empty one takes its place.
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
        let (full, work) = mpsc::sync_channel::<Vec<u8>>(BUFFERS);
        let (back, empty) = mpsc::sync_channel::<Vec<u8>>(BUFFERS);
        let mut hasher = hasher.clone();
        let run = move || {
            for mut buffer in work {
                hasher.data(&buffer);
                buffer.clear();
                // Nobody takes it back when the lane is being joined.
                drop(back.send(buffer));
            }
            hasher
        };
        let thread = thread::Builder::new().name("model-hash".to_owned()).spawn(run).ok()?;
        Some(Self { full, empty, unmade: BUFFERS - 1, thread })
    }

    /// Gives a full buffer for an empty one, waiting for the hash where it is behind.
    fn exchange(&mut self, buffer: Vec<u8>) -> Option<Vec<u8>> {
        self.full.send(buffer).ok()?;
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
        let Self { full, empty, thread, .. } = self;
        drop((full, empty));
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
            bytes.chunks(step).for_each(|piece| lane.update(piece));
            assert_eq!(lane.finish().unwrap().finish(), expected, "{step}");
        }
        let mut short = Lane::default();
        bytes[..1000].iter().for_each(|byte| short.update(&[*byte]));
        assert!(matches!(short.state, State::Here { .. }), "no thread for a small file");
        let mut here = ModelHasher::default();
        here.data(&bytes[..1000]);
        assert_eq!(short.finish().unwrap().finish(), here.finish());
    }

    #[test]
    fn a_lane_without_a_thread_to_be_had_hashes_here() {
        let bytes = vec![7; 3 * BUFFER + 1];
        let state = State::Here { hasher: ModelHasher::default(), may_start: false };
        let mut lane = Lane { buffer: Vec::new(), state };
        lane.update(&bytes);
        let mut here = ModelHasher::default();
        here.data(&bytes);
        assert_eq!(lane.finish().unwrap().finish(), here.finish());
    }

    #[test]
    fn a_lost_hash_is_none_and_not_another_one() {
        let mut lane = Lane { buffer: Vec::new(), state: State::Lost };
        lane.update(&[1; 2 * BUFFER + 1]);
        assert!(lane.finish().is_none());
    }
}
