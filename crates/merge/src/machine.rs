//! The machine: what has been said and what is held, and what follows from it.
//!
//! An event only adds to that. What is to be done is then found from the whole, each time anew
//! (`advance`), so that the order of events, their repetition and a restart need no cases of their own.

mod counting;
mod forming;
mod gossip;
mod merging;
mod result;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use domain::Hotkey;

use crate::{
    bag::Bag,
    bytes::Digest,
    event::{Command, Data, Event, Saved, Start},
    group::Group,
    machine::{gossip::Peer, merging::Merging, work::Work},
    outcome::{Ended, Failure, Outcome},
    proof::Proof,
    schedule::Schedule,
    statement::{Choice, Said, Stage, Statement, Verified},
};

#[derive(Debug)]
enum State {
    Forming,
    Merging(Box<Merging>),
    Ended,
}

/// One member of one merge.
#[derive(Debug)]
pub struct Machine {
    start: Start,
    schedule: Schedule,
    state: State,
    outcome: Option<Outcome>,
    began: Option<Duration>,
    group: Option<Arc<Group>>,
    bag: Bag,
    saved: Saved,
    /// Asked to be signed, and when to ask again if that has failed.
    signing: BTreeMap<Digest, (Said, Option<Duration>)>,
    peers: BTreeMap<Hotkey, Peer>,
    accepted: BTreeMap<Digest, Duration>,
    unanimous: BTreeMap<Stage, Choice>,
    held: BTreeSet<Data>,
    work: Work,
    /// Whether the gradient is the one that was offered before a restart.
    gives: bool,
    proofs: Vec<Proof>,
    wake: Option<Duration>,
    /// When time alone changes what follows from what has been said.
    quiet: Option<Duration>,
}

impl Machine {
    /// A machine for a round, with what an earlier one of the same round has saved. It does nothing
    /// before its first event.
    pub fn new(start: Start, saved: Saved) -> Self {
        let schedule = Schedule::new(start.terms.deadline(), start.terms.max_faults);
        let others = start.roster.0.keys().filter(|hotkey| **hotkey != start.me);
        Self {
            peers: others.map(|hotkey| (hotkey.clone(), Peer::default())).collect(),
            schedule,
            state: State::Forming,
            outcome: None,
            began: None,
            group: None,
            bag: Bag::default(),
            saved,
            signing: BTreeMap::new(),
            accepted: BTreeMap::new(),
            unanimous: BTreeMap::new(),
            held: BTreeSet::new(),
            work: Work::default(),
            gives: start.gradient.is_some(),
            proofs: Vec::new(),
            wake: None,
            quiet: None,
            start,
        }
    }

    /// Takes an event in, at `now` since the merge's agreed start, and says what to do.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        let first = self.began.is_none();
        self.began.get_or_insert(now);
        let said = self.bag.log().len();
        let only_talk = matches!(
            event,
            Event::Tick | Event::Called { .. } | Event::Answered { .. } | Event::CallFailed { .. }
        );
        match event {
            Event::Tick => {}
            Event::Signed(verified) => {
                self.signing.remove(&verified.digest());
                let me = self.start.me.clone();
                self.take(&me, verified);
            }
            Event::NotSigned(said) => {
                if let Some((_, again)) = self.signing.get_mut(&said.digest()) {
                    *again = Some(now + self.schedule.pace);
                }
            }
            Event::Called { from, exchange } => self.called(from, exchange, &mut out),
            Event::Answered { from, exchange } => self.answered(now, &from, exchange),
            Event::CallFailed { to } => self.call_failed(now, &to),
            Event::Held(data) => {
                self.work.fetched(&data);
                self.held.insert(data);
            }
            Event::FetchFailed { data, from } => self.work.fetch_failed(&data, &from),
            Event::Pushed { data, to } => self.work.pushed(data, to),
            Event::PushFailed { data, to } => self.work.push_failed(data, to),
            Event::Reduced { slice, attempt, chunks } => {
                self.reduced(now, (slice, attempt), Some(chunks), &mut out);
            }
            Event::ReduceFailed { slice, attempt } => {
                self.reduced(now, (slice, attempt), None, &mut out);
            }
            Event::Audited { statement, chunk, verdict } => {
                self.audited(now, statement, chunk, verdict);
            }
            Event::Cancel => {
                self.peers.clear();
                self.end(Ended::Failed(Failure::Cancelled), &mut out);
            }
        }
        let quiet = self.quiet.is_none_or(|until| now < until);
        if only_talk && !first && self.bag.log().len() == said && quiet {
            self.wake = self.quiet;
        } else {
            self.advance(now, &mut out);
            self.quiet = self.wake;
        }
        self.gossip(now, &mut out);
        out
    }

    /// When [`Event::Tick`] is due, if nothing happens before.
    pub fn next_wake(&self) -> Option<Duration> {
        self.wake
    }

    /// The times of this merge.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The group, once it is agreed.
    pub fn group(&self) -> Option<&Group> {
        self.group.as_deref()
    }

    /// How it ended.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// All proofs so far. Some come after the end: what was said twice is still told around.
    pub fn proofs(&self) -> Vec<Proof> {
        self.bag.proofs().iter().chain(&self.proofs).cloned().collect()
    }

    /// A statement that has been said by anybody.
    pub fn statement(&self, digest: &Digest) -> Option<&Verified> {
        self.bag.get(digest)
    }

    /// Whether a member may have this.
    pub fn serves(&self, to: &Hotkey, data: &Data) -> bool {
        let member = self.group.as_ref().is_some_and(|group| group.has(to));
        member
            && match data {
                Data::Piece { giver, .. } if *giver == self.start.me => self.gives,
                Data::Piece { .. } | Data::Reduced(_) => self.held.contains(data),
            }
    }

    /// Whether these bytes are of use when somebody brings them.
    pub fn wants(&self, from: &Hotkey, data: &Data) -> bool {
        let Some(group) = self.group.as_ref().filter(|group| group.has(from)) else { return false };
        !self.held.contains(data)
            && match data {
                Data::Piece { giver, slice } => {
                    group.gives(giver) && *slice < group.slices().parts && self.start.callable
                }
                Data::Reduced(statement) => self.bag.has(statement),
            }
    }

    fn advance(&mut self, now: Duration, out: &mut Vec<Command>) {
        self.wake = None;
        self.sign_again(now, out);
        // Each stage may find that it is over.
        if matches!(self.state, State::Forming) {
            self.form(now, out);
        }
        if let State::Merging(mut merging) = std::mem::replace(&mut self.state, State::Ended) {
            let over = self.merge(now, &mut merging, out);
            if !over {
                self.state = State::Merging(merging);
            }
        } else if self.outcome.is_none() {
            self.state = State::Forming;
        }
    }

    /// Whether it is `at` or later; else wakes the machine then.
    fn due(&mut self, now: Duration, at: Duration) -> bool {
        if now >= at {
            return true;
        }
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
        false
    }

    fn is_me(&self, hotkey: &Hotkey) -> bool {
        *hotkey == self.start.me
    }

    /// Says something, or again what was said in its place before a restart.
    fn speak(&mut self, what: Statement, out: &mut Vec<Command>) {
        let (round, author) = (self.start.round, self.start.me.clone());
        let mut said = Said { round, author, what };
        if let Some(slot) = said.slot() {
            match self.saved.said.iter().find(|before| before.slot() == Some(slot)) {
                Some(before) => said = before.clone(),
                None => {
                    self.saved.said.push(said.clone());
                    out.push(Command::Save(self.saved.clone()));
                }
            }
        }
        let digest = said.digest();
        if !self.bag.has(&digest) && !self.signing.contains_key(&digest) {
            self.signing.insert(digest, (said.clone(), None));
            out.push(Command::Sign(said));
        }
    }

    fn sign_again(&mut self, now: Duration, out: &mut Vec<Command>) {
        let waiting: Vec<Duration> = self.signing.values().filter_map(|(_, at)| *at).collect();
        for at in waiting {
            self.due(now, at);
        }
        for (said, again) in self.signing.values_mut() {
            if again.is_some_and(|at| now >= at) {
                *again = None;
                out.push(Command::Sign(said.clone()));
            }
        }
    }

    fn vouch(&mut self, items: Vec<Digest>, out: &mut Vec<Command>) {
        for some in items.chunks(crate::statement::MAX_ITEMS) {
            self.speak(Statement::Vouch(some.to_vec()), out);
        }
    }

    fn end(&mut self, ended: Ended, out: &mut Vec<Command>) {
        self.state = State::Ended;
        if self.outcome.is_some() {
            return;
        }
        let outcome = Outcome { dropped: self.dropped(&ended), ended, proofs: self.proofs() };
        self.outcome = Some(outcome.clone());
        out.push(Command::End(outcome));
    }
}
