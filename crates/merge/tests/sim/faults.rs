//! What members do wrong. A fault changes what a member's machine would have done on its way out, so
//! that it knows everything that an honest one knows.

use std::time::Duration;

use domain::Hotkey;
use merge::{Digest, Exchange, Said, Statement, Verified};

use super::{Keys, Rng, hotkey};

/// Kinds of statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Offer,
    Slice,
    Vouch,
    Ready,
    Final,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Offer, Self::Slice, Self::Vouch, Self::Ready, Self::Final];

    fn is(self, said: &Said) -> bool {
        match &said.what {
            Statement::Offer(_) => self == Self::Offer,
            Statement::Slice(_) => self == Self::Slice,
            Statement::Vouch(_) => self == Self::Vouch,
            Statement::Ready(_) => self == Self::Ready,
            Statement::Final(_) => self == Self::Final,
            Statement::Claim(_) => false,
        }
    }
}

/// How a member misbehaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Not at all.
    None,
    /// Dead from the start.
    Silent,
    /// Killed.
    Dies(Duration),
    /// Killed, and started again later.
    Restarts(Duration, Duration),
    /// Gives up.
    Cancels(Duration),
    /// Everything that it sends takes longer by this.
    Slow(Duration),
    /// Cannot reduce.
    FailsReducing,
    /// Reduces so much later.
    ReducesSlowly(Duration),
    /// Serves bytes that do not fit.
    Garbage,
    /// Talks, and never finishes sending bytes.
    Stalls,
    /// Serves bytes to the lower half only.
    ServesHalf,
    /// Sends its calls again and again.
    Replays,
    /// One chunk of its slices is wrong.
    WrongReduction,
    /// Claims that right slices are wrong.
    FalseClaims,
    /// Says one thing to some and another to others.
    Equivocates(Kind),
    /// Says it to one member only, at the last moment.
    Hides(Kind, Duration, usize),
    /// Keeps what these have said to itself, and says it to one member only, at the last moment.
    Conspires(Kind, Duration, usize, [usize; 2]),
    /// Tells nothing to this one.
    Shuns(usize),
    /// Vouches for everything, also what it does not hold.
    VouchesBlindly,
    /// Drops what it should send, by chance.
    Chaos(u64),
    /// Cut off from the others for a while.
    CutOff(Duration, Duration),
}

impl Fault {
    /// Whether it breaks rules, and is not only dead, slow or cut off.
    pub fn lies(&self) -> bool {
        matches!(
            self,
            Self::WrongReduction
                | Self::FalseClaims
                | Self::Equivocates(_)
                | Self::Hides(..)
                | Self::Conspires(..)
                | Self::VouchesBlindly
        )
    }

    /// One of them.
    pub fn any(rng: &mut Rng, end: Duration, members: usize) -> Self {
        let at = |rng: &mut Rng| end * u32::try_from(rng.below(1000)).unwrap() / 1000;
        let kind = |rng: &mut Rng| Kind::ALL[usize::try_from(rng.below(5)).unwrap()];
        let one = |rng: &mut Rng| usize::try_from(rng.below(members as u64)).unwrap();
        match rng.below(20) {
            0 => Self::Silent,
            1 => Self::Dies(at(rng) / 10),
            2 => Self::Restarts(at(rng) / 10, at(rng)),
            3 => Self::Restarts(at(rng), at(rng) / 5),
            4 => Self::Cancels(at(rng) / 10),
            5 => Self::Slow(at(rng) / 10),
            6 => Self::FailsReducing,
            7 => Self::ReducesSlowly(at(rng)),
            8 => Self::Garbage,
            9 => Self::Stalls,
            10 => Self::ServesHalf,
            11 => Self::Replays,
            12 => Self::WrongReduction,
            13 => Self::FalseClaims,
            14 => Self::Equivocates(kind(rng)),
            15 => Self::Hides(kind(rng), at(rng), one(rng)),
            16 => Self::Shuns(one(rng)),
            17 => Self::VouchesBlindly,
            18 => Self::Chaos(rng.below(100)),
            _ => Self::CutOff(at(rng) / 4, at(rng)),
        }
    }

    /// When something is shown to whom that was kept back.
    pub fn reveals(&self) -> Option<(Duration, usize)> {
        match self {
            Self::Hides(_, at, only) | Self::Conspires(_, at, only, _) => Some((*at, *only)),
            _ => None,
        }
    }

    /// What goes out instead of `exchange`; nothing where it is dropped.
    pub fn tamper(
        &self,
        keys: &Keys,
        rng: &mut Rng,
        now: Duration,
        (me, to): (usize, usize),
        kept: &mut Vec<Verified>,
        mut exchange: Exchange<Verified>,
    ) -> Option<Exchange<Verified>> {
        let own = |one: &Verified| one.said().author == hotkey(me);
        match self {
            Self::Shuns(whom) if *whom == to => return None,
            Self::Chaos(percent) if rng.chance(*percent) => return None,
            Self::Equivocates(kind) if to % 2 == 1 => {
                for one in &mut exchange.statements {
                    if own(one) && kind.is(one.said()) {
                        *one = keys.sign(other(keys, one.said()));
                    }
                }
            }
            Self::Hides(kind, until, only) if now < *until || to != *only => {
                let hidden = |one: &Verified| own(one) && kind.is(one.said());
                keep(kept, &mut exchange.statements, hidden);
            }
            Self::Conspires(kind, until, only, authors) if now < *until || to != *only => {
                let of_them = |one: &Verified| {
                    authors.iter().any(|author| one.said().author == hotkey(*author))
                };
                let among_them = authors.contains(&to);
                let hidden = |one: &Verified| {
                    of_them(one) && (kind.is(one.said()) || Kind::Vouch.is(one.said()))
                };
                keep(kept, &mut exchange.statements, |one| !among_them && hidden(one));
            }
            Self::VouchesBlindly => {
                let items: Vec<Digest> = exchange
                    .statements
                    .iter()
                    .filter(|one| Kind::Offer.is(one.said()) || Kind::Slice.is(one.said()))
                    .map(Verified::digest)
                    .collect();
                if !items.is_empty() && exchange.statements.len() < 200 {
                    let round = exchange.statements[0].said().round;
                    let what = Statement::Vouch(items);
                    exchange.statements.push(keys.sign(Said { round, author: hotkey(me), what }));
                }
            }
            Self::FalseClaims if exchange.statements.len() < 200 => {
                let slices: Vec<Verified> = exchange
                    .statements
                    .iter()
                    .filter(|one| Kind::Slice.is(one.said()) && !own(one))
                    .cloned()
                    .collect();
                for slice in slices {
                    let Statement::Slice(stated) = &slice.said().what else { continue };
                    let parts = u32::from(stated.slice);
                    // Some chunk of the slice: there are 16 for each.
                    let what = Statement::Claim(merge::Claim {
                        statement: slice.digest(),
                        chunk: parts * 16 + 3,
                    });
                    let said = Said { round: slice.said().round, author: hotkey(me), what };
                    exchange.statements.push(keys.sign(said));
                }
            }
            _ => {}
        }
        Some(exchange)
    }
}

/// Keeps back what is hidden.
fn keep(
    kept: &mut Vec<Verified>,
    statements: &mut Vec<Verified>,
    hidden: impl Fn(&Verified) -> bool,
) {
    for one in statements.extract_if(.., |one| hidden(one)) {
        if kept.iter().all(|before| before.digest() != one.digest()) {
            kept.push(one);
        }
    }
}

/// Another statement in the place of one.
fn other(keys: &Keys, said: &Said) -> Said {
    let mut said = said.clone();
    match &mut said.what {
        Statement::Offer(offer) => match &mut offer.gradient {
            Some(gradient) => gradient.chunks = Digest::of(b"another"),
            None => offer.callable = !offer.callable,
        },
        Statement::Slice(slice) => {
            if slice.contributors.len() > 1 {
                slice.contributors.pop();
                slice.chunks = Keys::reduce(slice.slice, &slice.contributors);
            } else {
                let chunk = u32::from(slice.slice) * 16;
                slice.chunks = keys.reduce_wrongly(slice.slice, &slice.contributors, chunk);
            }
        }
        Statement::Ready(choice) | Statement::Final(choice) => {
            if choice.items.len() > 1 {
                choice.items.reverse();
            } else {
                choice.items = vec![Digest::of(b"another")];
            }
        }
        Statement::Vouch(items) => items.clear(),
        Statement::Claim(_) => {}
    }
    said
}

/// Which member a hotkey is.
pub fn index_of(members: usize, of: &Hotkey) -> usize {
    (0..members).find(|index| hotkey(*index) == *of).unwrap()
}
