//! What is under way outside: fetches, pushes, audits. All of it ends, at the latest when it is late,
//! and may be tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use domain::Hotkey;

use crate::{
    bytes::Digest,
    event::{Command, Data, Verdict},
    group::Group,
    machine::{
        Machine,
        merging::{Merging, Turn},
    },
};

#[derive(Debug, Default)]
pub(super) struct Work {
    /// From whom something is being fetched, and until when.
    fetching: BTreeMap<Data, (Hotkey, Duration)>,
    /// How often, and until when, it was asked of whom.
    tried: BTreeMap<(Data, Hotkey), (u32, Duration)>,
    pushing: BTreeMap<(Data, Hotkey), Push>,
    audits: BTreeMap<(Digest, u32), Audit>,
    /// What is being reduced here, of whose pieces.
    pub(super) reducing: BTreeMap<Turn, Vec<Hotkey>>,
    /// Slices that count as wrongly reduced.
    pub(super) void: BTreeSet<Digest>,
    /// What a proof was made of: a slice, or a claim about it.
    pub(super) blamed: BTreeSet<(Digest, Option<Digest>)>,
}

#[derive(Debug, Clone, Copy)]
enum Push {
    Until(Duration),
    Done,
}

#[derive(Debug, Clone, Copy)]
enum Audit {
    Until(Duration),
    Came(Verdict, Duration),
}

impl Work {
    pub(super) fn fetched(&mut self, data: &Data) {
        self.fetching.remove(data);
    }

    pub(super) fn fetch_failed(&mut self, data: &Data, from: &Hotkey) {
        if self.fetching.get(data).is_some_and(|(asked, _)| asked == from) {
            self.fetching.remove(data);
        }
    }

    pub(super) fn pushed(&mut self, data: Data, to: Hotkey) {
        self.pushing.insert((data, to), Push::Done);
    }

    pub(super) fn push_failed(&mut self, data: Data, to: Hotkey) {
        if let Some(Push::Until(until)) = self.pushing.get_mut(&(data, to)) {
            *until = Duration::ZERO;
        }
    }

    /// Whether an audit is to be made now: not while it is under way, nor after a clear answer.
    pub(super) fn audit(&mut self, now: Duration, which: (Digest, u32), until: Duration) -> bool {
        let new = match self.audits.get(&which) {
            None => true,
            Some(Audit::Came(Verdict::Right | Verdict::Wrong, _)) => false,
            Some(Audit::Until(again) | Audit::Came(Verdict::Unknown, again)) => now > *again,
        };
        if new {
            self.audits.insert(which, Audit::Until(until));
        }
        new
    }

    pub(super) fn audited(&mut self, which: (Digest, u32), verdict: Verdict, again: Duration) {
        if let Some(audit @ Audit::Until(_)) = self.audits.get_mut(&which) {
            *audit = Audit::Came(verdict, again);
        }
    }

    pub(super) fn verdict(&self, which: (Digest, u32)) -> Option<Verdict> {
        match self.audits.get(&which)? {
            Audit::Until(_) => None,
            Audit::Came(verdict, _) => Some(*verdict),
        }
    }

    /// A chunk of a slice that is known to be wrong.
    pub(super) fn wrong(&self, digest: &Digest) -> Option<u32> {
        let of_slice = self.audits.range((*digest, 0)..=(*digest, u32::MAX));
        let mut wrong = of_slice.filter(|(_, a)| matches!(a, Audit::Came(Verdict::Wrong, _)));
        wrong.next().map(|((_, chunk), _)| *chunk)
    }

    /// Until when the audits that are under way are waited for.
    pub(super) fn auditing(&self) -> Option<Duration> {
        let under_way = self.audits.values().filter_map(|audit| match audit {
            Audit::Until(until) => Some(*until),
            Audit::Came(..) => None,
        });
        under_way.max()
    }
}

impl Machine {
    /// Fetches what is neither here nor under way from the one of `holders` that was asked the least
    /// often.
    pub(super) fn fetch(
        &mut self,
        now: Duration,
        data: &Data,
        holders: Vec<Hotkey>,
        until: Duration,
        out: &mut Vec<Command>,
    ) {
        if let Some((_, until)) = self.work.fetching.get(data).cloned() {
            if !self.due(now, until) {
                return;
            }
            self.work.fetching.remove(data);
        }
        let tried = |holder: &Hotkey| self.work.tried.get(&(data.clone(), holder.clone())).copied();
        let callable = holders.into_iter().filter(|h| self.can_be_called(h) && !self.is_me(h));
        let Some((last, from)) = callable.map(|h| (tried(&h), h)).min() else { return };
        let (times, last) = last.unwrap_or((0, Duration::ZERO));
        let again = if times == 0 { now } else { last + self.schedule.pause(times - 1) };
        if now >= until || !self.due(now, again) {
            return;
        }
        self.work.tried.insert((data.clone(), from.clone()), (times + 1, now));
        self.work.fetching.insert(data.clone(), (from.clone(), until));
        self.due(now, until);
        out.push(Command::Fetch { data: data.clone(), from, until });
    }

    fn push(&mut self, now: Duration, data: Data, to: Hotkey, out: &mut Vec<Command>) {
        match self.work.pushing.get(&(data.clone(), to.clone())).copied() {
            Some(Push::Done) => return,
            Some(Push::Until(until)) if !self.due(now, until + self.schedule.pace) => return,
            Some(Push::Until(_)) | None => {}
        }
        let until = now + self.schedule.fetch;
        self.work.pushing.insert((data.clone(), to.clone()), Push::Until(until));
        self.due(now, until + self.schedule.pace);
        out.push(Command::Push { data, to, until });
    }

    /// Brings the own gradient to those who reduce it, where they cannot fetch it.
    pub(super) fn push_pieces(
        &mut self,
        now: Duration,
        merging: &Merging,
        group: &Group,
        out: &mut Vec<Command>,
    ) {
        if self.start.callable || !self.gives || now > self.schedule.reduced {
            return;
        }
        for slice in 0..group.slices().parts {
            for attempt in 0..self.attempts(group) {
                let begins = merging.entered + self.schedule.attempt * u32::from(attempt);
                let needed = self.standing(group, slice).is_none_or(|(stands, _)| stands > attempt);
                if !needed || !self.due(now, begins) {
                    break;
                }
                let Some(owner) = group.owner(slice, attempt).cloned() else { continue };
                let giver = self.start.me.clone();
                self.push(now, Data::Piece { giver, slice }, owner, out);
            }
        }
    }

    /// Who vouches for a slice gives it to others; who cannot be called brings it to those that lack
    /// it a while later, which happens only when its owner serves some and not others.
    pub(super) fn push_accepted(
        &mut self,
        now: Duration,
        accepted: Duration,
        group: &Group,
        owner: &Hotkey,
        digest: &Digest,
        out: &mut Vec<Command>,
    ) {
        if self.start.callable || now > self.schedule.claims {
            return;
        }
        let lacking: Vec<Hotkey> = group
            .callable()
            .iter()
            .filter(|member| *member != owner && !self.bag.vouchers(digest).any(|v| v == *member))
            .cloned()
            .collect();
        if lacking.is_empty() || !self.due(now, accepted + self.schedule.step / 2) {
            return;
        }
        for member in lacking {
            self.push(now, Data::Reduced(*digest), member, out);
        }
    }
}
