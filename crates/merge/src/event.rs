//! What the machine is told, and what it asks for.

use std::time::Duration;

use domain::{Hotkey, RoundId};
use serde::{Deserialize, Serialize};

use crate::{
    bytes::Digest,
    exchange::Exchange,
    outcome::Outcome,
    statement::{Said, Verified},
    terms::{Gradient, Roster, Terms},
};

/// Everything that a merge starts with.
#[derive(Debug, Clone)]
pub struct Start {
    /// The round.
    pub round: RoundId,
    /// This validator.
    pub me: Hotkey,
    /// What it wants to have in common with the others.
    pub terms: Terms,
    /// All validators of the round, this one too.
    pub roster: Roster,
    /// What it has to give.
    pub gradient: Option<Gradient>,
    /// Whether others can call it.
    pub callable: bool,
    /// Whether to go alone when nobody else is there.
    pub allow_solo: bool,
    /// Decides which chunks are audited: nobody else may know it.
    pub secret: [u8; 32],
    /// Chunks to audit of each slice.
    pub audits: u16,
    /// Higher with every start of a round: the time will do.
    pub incarnation: u64,
}

/// Bytes that can be held, fetched and served. All are checked against what was signed, so they may
/// come from anybody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// The chunks of one slice of a member's gradient: against its offer.
    Piece {
        /// Whose gradient.
        giver: Hotkey,
        /// Which slice.
        slice: u16,
    },
    /// The reduced chunks of a slice: against the statement of this name.
    Reduced(Digest),
}

/// What an audit came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The chunk is what the contributors' chunks reduce to.
    Right,
    /// It is not. The bytes that show it are held and served from now on.
    Wrong,
    /// Some of the bytes could not be had.
    Unknown,
}

/// What has happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time has passed: see [`crate::Machine::next_wake`].
    Tick,
    /// What was to be signed is signed.
    Signed(Verified),
    /// It could not be signed now.
    NotSigned(Said),
    /// A verified call; the answer is the [`Command::Reply`] that this event gives.
    Called {
        /// Who called.
        from: Hotkey,
        /// What it told.
        exchange: Exchange<Verified>,
    },
    /// A call was answered.
    Answered {
        /// By whom.
        from: Hotkey,
        /// What it told.
        exchange: Exchange<Verified>,
    },
    /// A call was not answered, or wrongly.
    CallFailed {
        /// Who was called.
        to: Hotkey,
    },
    /// These bytes are here and fit: fetched, or brought by somebody who cannot be called.
    Held(Data),
    /// They did not come in time, or did not fit.
    FetchFailed {
        /// What was asked for.
        data: Data,
        /// From whom.
        from: Hotkey,
    },
    /// What was to be brought is there.
    Pushed {
        /// What.
        data: Data,
        /// To whom.
        to: Hotkey,
    },
    /// It is not.
    PushFailed {
        /// What.
        data: Data,
        /// To whom.
        to: Hotkey,
    },
    /// A slice is reduced, and its chunks are held.
    Reduced {
        /// Which slice.
        slice: u16,
        /// In which attempt.
        attempt: u16,
        /// Digest of its chunks' digests.
        chunks: Digest,
    },
    /// A slice cannot be reduced here.
    ReduceFailed {
        /// Which slice.
        slice: u16,
        /// In which attempt.
        attempt: u16,
    },
    /// A chunk was reduced again, to compare.
    Audited {
        /// The slice's statement.
        statement: Digest,
        /// The chunk, counted in the whole vector.
        chunk: u32,
        /// What came of it.
        verdict: Verdict,
    },
    /// The merge is given up.
    Cancel,
}

/// What is to be done, in this order.
#[derive(Debug, Clone)]
pub enum Command {
    /// Keep this durably before doing anything that follows.
    Save(Saved),
    /// Sign this: [`Event::Signed`] or [`Event::NotSigned`] tells.
    Sign(Said),
    /// Call a member: [`Event::Answered`] or [`Event::CallFailed`] tells, within a step.
    Call {
        /// Whom.
        to: Hotkey,
        /// What to tell it.
        exchange: Exchange<Verified>,
    },
    /// Answer the call that is being handled.
    Reply {
        /// Who called.
        to: Hotkey,
        /// What to tell it.
        exchange: Exchange<Verified>,
    },
    /// Fetch and check bytes: [`Event::Held`] or [`Event::FetchFailed`] tells.
    Fetch {
        /// What.
        data: Data,
        /// From whom.
        from: Hotkey,
        /// By when; later it counts as failed.
        until: Duration,
    },
    /// Bring bytes to somebody, since this validator cannot be called: [`Event::Pushed`] or
    /// [`Event::PushFailed`] tells.
    Push {
        /// What.
        data: Data,
        /// To whom.
        to: Hotkey,
        /// By when; later it counts as failed.
        until: Duration,
    },
    /// Reduce a slice of these held pieces: [`Event::Reduced`] or [`Event::ReduceFailed`] tells.
    Reduce {
        /// Which slice.
        slice: u16,
        /// In which attempt.
        attempt: u16,
        /// Whose pieces, ascending.
        contributors: Vec<Hotkey>,
    },
    /// Reduce one chunk again and compare: [`Event::Audited`] tells.
    Audit {
        /// The slice's statement.
        statement: Digest,
        /// The chunk, counted in the whole vector.
        chunk: u32,
        /// Who should have what is needed: pieces or the reduced chunk.
        sources: Vec<Hotkey>,
        /// By when; later it counts as unknown.
        until: Duration,
    },
    /// It is over. The machine goes on telling others what it knows until [`crate::Schedule::end`].
    End(Outcome),
}

/// What a machine must find again when it is started again in the same round, so that it does not
/// contradict itself: everything of its own that may be said once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Saved {
    /// In the order in which it was said, or was about to be.
    pub said: Vec<Said>,
}
