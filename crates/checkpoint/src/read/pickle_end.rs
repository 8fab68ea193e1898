//! Finds where a pickle ends while its bytes arrive, without running it.

/// Steps over instructions and their arguments, in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct PickleEnd {
    begun: bool,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// An instruction comes next.
    #[default]
    Instruction,
    /// So many bytes of an argument are still to come.
    Skip(u64),
    /// A little-endian length, of which `left` bytes are still to come; then as many bytes.
    Length { left: u8, shift: u32, sum: u64 },
    /// So many lines are still to end.
    Lines(u8),
}

impl PickleEnd {
    /// Takes bytes up to and including the last one of the pickle: its STOP, or the first byte of an instruction that
    /// [`super::pickle::read`] refuses. Returns how many were taken, and whether that was the end.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match &mut self.state {
                State::Skip(left) => {
                    let step = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    *left -= step as u64;
                    at += step;
                    if *left == 0 {
                        self.state = State::Instruction;
                    }
                    continue;
                }
                State::Length { left, shift, sum } => {
                    *sum |= u64::from(*byte) << *shift;
                    *shift += 8;
                    *left -= 1;
                    if *left == 0 {
                        self.state = skip(*sum);
                    }
                }
                State::Lines(left) => {
                    *left -= u8::from(*byte == b'\n');
                    if *left == 0 {
                        self.state = State::Instruction;
                    }
                }
                State::Instruction => match self.instruction(*byte) {
                    Some(state) => self.state = state,
                    None => return (at + 1, true),
                },
            }
            at += 1;
        }
        (at, false)
    }

    /// What follows an instruction; `None` where the pickle ends.
    fn instruction(&mut self, opcode: u8) -> Option<State> {
        if !std::mem::replace(&mut self.begun, true) && opcode != 0x80 {
            return None;
        }
        let length = |left| State::Length { left, shift: 0, sum: 0 };
        Some(match opcode {
            0x80 | b'K' | b'q' | b'h' => State::Skip(1),
            b'M' => State::Skip(2),
            b'J' | b'r' | b'j' => State::Skip(4),
            b'G' => State::Skip(8),
            0x8a => length(1),
            b'X' => length(4),
            b'c' => State::Lines(2),
            b'N'
            | 0x88
            | 0x89
            | b'('
            | b'}'
            | b']'
            | b')'
            | b't'
            | 0x85..=0x87
            | b's'
            | b'u'
            | b'a'
            | b'e'
            | b'b'
            | b'R'
            | b'Q' => State::Instruction,
            _ => return None,
        })
    }
}

fn skip(bytes: u64) -> State {
    if bytes == 0 { State::Instruction } else { State::Skip(bytes) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::read::pickle;

    /// The whole pickle's length as found in pieces of `step` bytes.
    fn end(bytes: &[u8], step: usize) -> Option<usize> {
        let mut finder = PickleEnd::default();
        let mut at = 0;
        for piece in bytes.chunks(step) {
            let (taken, ended) = finder.feed(piece);
            at += taken;
            if ended {
                return Some(at);
            }
        }
        None
    }

    const PIECES: &[&[u8]] = &[
        b"}",
        b"]",
        b")",
        b"(",
        b"t",
        b"N",
        b"K.",
        b"M..",
        b"J....",
        b"G........",
        b"q.",
        b"h.",
        b"r....",
        b"j....",
        b"X\x03\0\0\0a.b",
        b"X\0\0\0\0",
        b"\x8a\x02..",
        b"\x8a\0",
        b"ccollections\nOrderedDict\n",
        b"\x85",
        b"0",
        b".",
        b"c.\n.\n",
    ];

    proptest! {
        #[test]
        fn a_pickle_that_is_read_ends_where_it_is_found_to_end(
            pieces in prop::collection::vec(prop::sample::select(PIECES), 0..20),
            step in 1usize..9,
        ) {
            let bytes = [b"\x80\x02", &pieces.concat()[..], b".", b"PK\x07\x08 and more"].concat();
            let found = end(&bytes, step);
            prop_assert_eq!(found, end(&bytes, 1000), "whatever the pieces");
            let whole = (0..=bytes.len()).find(|n| pickle::read(&bytes[..*n], 1000).is_ok());
            if let Some(whole) = whole {
                prop_assert_eq!(found, Some(whole));
            }
            if let Some(found) = found {
                // What lies behind the end decides nothing: the reader refuses for what is before it.
                let (short, long) = (pickle::read(&bytes[..found], 1000), pickle::read(&bytes, 1000));
                prop_assert!(short.is_ok() || short.err().map(|e| e.reason()) == long.err().map(|e| e.reason()));
            }
        }
    }
}
