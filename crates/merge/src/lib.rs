//! The agreement of a merge, as a pure machine: who takes part, who owns which slice, what is asked
//! of whom, what counts, when it ends and how, and who is to blame.
//!
//! [`Machine`] takes [`Event`]s in and gives [`Command`]s out. It knows no bytes of gradients, only
//! their digests; no keys, only statements whose signature was verified; no network, no clock, no
//! chance: times and secrets are arguments.
//!
//! # How a merge goes
//!
//! 1. Everybody signs one [`Offer`], which commits to its encoded gradient. The offers that count
//!    make the [`Group`].
//! 2. Each slice has an owner, who fetches the committed chunks of every giver, reduces them, and
//!    signs a [`Slice`]. Others fetch the result, audit chunks that nobody could know before, and
//!    vouch: they hold the bytes and serve them. When an owner is silent, the next one takes over.
//! 3. The first valid statement of each slice makes the result. A majority signs it: the end.
//!
//! Offers and slices are agreed on in the same way, an authenticated broadcast in the manner of Dolev
//! and Strong: what more have signed counts for longer, by one step for each signature (see
//! [`Schedule`]). When everybody has signed that it has seen the same, nobody waits for the times.
//! When all is well that takes, for any number of members, five signed messages one after the other
//! (offer, readiness for the group, slice, readiness for the result, choice), two transfers of slices
//! and an audit.
//!
//! # What holds
//!
//! *Timely* means: what one honest member knows or holds, every honest member that has not failed
//! knows within [`Schedule::step`], and holds within [`Schedule::transfer`]. A member that is cut off
//! for longer counts as faulty, and so does one that is killed, though it is started again.
//!
//! - With a timely network, at most `max_faults` faulty members, and a quorum of honest ones, all honest
//!   members end with the same [`Merged`], if one of the owners of each slice is honest.
//! - Without it, two honest members of a group do not end with different results as long as fewer than
//!   `2 quorum - size` of its members *lie*; crashes, restarts and partitions are no lies. With the
//!   least quorum, a majority, that is one liar in an even group and none in an odd one: raise
//!   `min_group` to bear more. Some members may end with the result and others with a failure, which
//!   they know.
//! - Partitions that are there before the groups are agreed on make groups of their own. Only one can
//!   be large enough when `min_group` is more than half of the roster.
//! - No honest member is ever proven guilty, whatever the network does, as long as what it was told
//!   to [`Command::Save`] is there when it is started again.

mod bag;
mod bytes;
mod event;
mod exchange;
mod group;
mod machine;
mod outcome;
mod proof;
mod schedule;
mod slices;
mod statement;
mod terms;

pub use bytes::{Digest, NotADigest};
pub use event::{Command, Data, Event, Saved, Start, Verdict};
pub use exchange::{Exchange, MAX_BYTES, MAX_STATEMENTS};
pub use group::{Counted, Group, LeftOut};
pub use machine::Machine;
pub use outcome::{Ended, Failure, Merged, Outcome, Part};
pub use proof::{Inputs, Proof, Recompute, Unproven};
pub use schedule::Schedule;
pub use slices::{Slices, owner};
pub use statement::{
    Choice, Claim, MAX_ITEMS, Refused, Said, Signature, Signed, Slice, Stage, Statement, Verified,
    Verify,
};
pub use terms::{Gradient, MAX_ROSTER, MAX_TEXT, Offer, PROTOCOL, Roster, Terms};
