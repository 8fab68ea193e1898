//! Telling everybody everything: each peer is told what it is not known to have, whoever said it
//! first. So what one honest member knows reaches all, also those that cannot call each other.

use std::{collections::BTreeSet, time::Duration};

use domain::Hotkey;

use crate::{
    bytes::Digest,
    event::Command,
    exchange::{Exchange, MAX_STATEMENTS, names, room},
    machine::{Machine, counting::unanimity_name},
    statement::{Slot, Stage, Statement, Verified},
};

/// What is known of another validator.
#[derive(Debug, Default)]
pub(super) struct Peer {
    incarnation: u64,
    /// What it has, by its own saying.
    known: BTreeSet<Digest>,
    group: Option<Digest>,
    /// What the call under way tells it.
    calling: Option<Vec<Digest>>,
    told_group: Option<Digest>,
    again: Duration,
    /// Calls that have failed one after the other.
    failed: u32,
    polled: Option<Duration>,
    /// The last answer that it was given: names, and their digest.
    answer: Option<(Digest, Vec<Digest>)>,
    /// Digest of the last answer that it gave.
    had: Option<Digest>,
    /// There was nothing new for it when this was so.
    nothing: Option<Seen>,
}

/// All that decides what is new for a peer, beside what it has: statements, accepted ones, groups.
type Seen = (usize, usize, Option<Digest>, Option<Digest>);

impl Machine {
    pub(super) fn called(
        &mut self,
        from: Hotkey,
        exchange: Exchange<Verified>,
        out: &mut Vec<Command>,
    ) {
        self.hear(&from, exchange);
        let statements = self.take_news(&from);
        let exchange = self.exchange(&from, statements);
        if let Some(peer) = self.peers.get_mut(&from) {
            let told: Vec<Digest> = exchange.statements.iter().map(Verified::digest).collect();
            peer.answer = Some((exchange.names(), told));
        }
        out.push(Command::Reply { to: from, exchange });
    }

    pub(super) fn answered(&mut self, now: Duration, from: &Hotkey, exchange: Exchange<Verified>) {
        let had = exchange.names();
        self.hear(from, exchange);
        if let Some(peer) = self.peers.get_mut(from) {
            peer.had = Some(had);
            peer.known.extend(peer.calling.take().unwrap_or_default());
            peer.polled = Some(now);
            peer.again = now;
            peer.failed = 0;
        }
    }

    pub(super) fn call_failed(&mut self, now: Duration, to: &Hotkey) {
        if let Some(peer) = self.peers.get_mut(to) {
            peer.calling = None;
            peer.told_group = None;
            peer.again = now + self.schedule.pause(peer.failed);
            peer.failed += 1;
        }
    }

    fn hear(&mut self, from: &Hotkey, exchange: Exchange<Verified>) {
        let Exchange { incarnation, group, had, statements } = exchange;
        let Some(peer) = self.peers.get_mut(from) else { return };
        if incarnation < peer.incarnation {
            return;
        }
        if incarnation > peer.incarnation {
            // It was started again and knows nothing any more.
            // A call under way stays the only one, and tells it nothing that is sure to have come.
            let calling = peer.calling.as_ref().map(|_| Vec::new());
            *peer = Peer { had: peer.had, calling, ..Peer::default() };
            peer.incarnation = incarnation;
        }
        // What was sent before it was in the group may come after what was sent since.
        peer.group = peer.group.or(group);
        if let Some((answer, told)) = peer.answer.take_if(|(answer, _)| had == Some(*answer)) {
            debug_assert_eq!(answer, names(told.clone()));
            peer.known.extend(told);
        }
        peer.known.extend(statements.iter().map(Verified::digest));
        for one in statements {
            self.take(from, one);
        }
    }

    /// As [`Machine::news`], without looking again where nothing can have changed.
    fn take_news(&mut self, to: &Hotkey) -> Vec<Verified> {
        let seen = self.seen(to);
        if seen.is_none() || self.peers.get(to).is_none_or(|peer| peer.nothing == seen) {
            return Vec::new();
        }
        let news = self.news(to);
        if news.is_empty()
            && let Some(peer) = self.peers.get_mut(to)
        {
            peer.nothing = seen;
        }
        news
    }

    fn seen(&self, to: &Hotkey) -> Option<Seen> {
        let group = self.group.as_ref().map(|group| group.digest());
        let peer = self.peers.get(to)?;
        Some((self.bag.log().len(), self.accepted.len(), group, peer.group))
    }

    /// What a peer is not known to have. About slices only members of the same group are told.
    fn news(&self, to: &Hotkey) -> Vec<Verified> {
        let Some(peer) = self.peers.get(to) else { return Vec::new() };
        let mine = self.group.as_ref().map(|group| group.digest());
        let same = mine.is_some() && peer.group == mine;
        let result = mine.and_then(|group| self.unanimity(Stage::Result(group)));
        let result = result.map(|choice| unanimity_name(&choice));
        let names = self.unanimity_names();
        let new = self.bag.log().iter().filter(|one| {
            !peer.known.contains(&one.digest())
                && (same || !self.is_about_slices(one, result.as_ref()))
                && self.is_told(one, &names)
        });
        let mut new: Vec<_> = new.take(MAX_STATEMENTS).cloned().collect();
        new.truncate(room(new.iter().map(|one| one.said().bytes().len())));
        new
    }

    fn is_about_slices(&self, one: &Verified, unanimity: Option<&Digest>) -> bool {
        match &one.said().what {
            Statement::Offer(_) => false,
            Statement::Slice(_) | Statement::Claim(_) => true,
            Statement::Ready(choice) | Statement::Final(choice) => choice.stage != Stage::Group,
            Statement::Vouch(items) => {
                items.iter().any(|item| unanimity == Some(item) || self.slice(item).is_some())
            }
        }
    }

    /// Of the variants of one statement two are enough for a proof; those that are accepted count.
    /// What is about others waits for them.
    fn is_told(&self, one: &Verified, unanimities: &[Digest]) -> bool {
        match &one.said().what {
            Statement::Claim(claim) => self.is_variant_told(&claim.statement),
            Statement::Vouch(items) => {
                items.iter().any(|item| unanimities.contains(item) || self.is_variant_told(item))
            }
            Statement::Ready(_) if self.is_ready_like_me(one) => true,
            Statement::Offer(_)
            | Statement::Slice(_)
            | Statement::Ready(_)
            | Statement::Final(_) => self.is_variant_told(&one.digest()),
        }
    }

    fn is_variant_told(&self, digest: &Digest) -> bool {
        let Some(said) = self.bag.get(digest).map(Verified::said) else { return false };
        let Some(slot) = said.slot() else { return false };
        let first = self.bag.said(slot, &said.author).iter().take(2);
        first.clone().any(|one| one == digest) || self.accepted.contains_key(digest)
    }

    fn exchange(&self, to: &Hotkey, statements: Vec<Verified>) -> Exchange<Verified> {
        Exchange {
            incarnation: self.start.incarnation,
            group: self.group.as_ref().map(|group| group.digest()),
            had: self.peers.get(to).and_then(|peer| peer.had),
            statements,
        }
    }

    /// Calls whoever has something to be told. Who cannot be called asks around by itself.
    pub(super) fn gossip(&mut self, now: Duration, out: &mut Vec<Command>) {
        let group = self.group.as_ref().map(|group| group.digest());
        let poll = !self.start.callable && self.outcome.is_none();
        let others: Vec<Hotkey> = self.peers.keys().cloned().collect();
        for to in others {
            if now > self.schedule.end || !self.can_be_called(&to) {
                continue;
            }
            let Some(peer) = self.peers.get(&to).filter(|peer| peer.calling.is_none()) else {
                continue;
            };
            let (again, polled, told_group) = (peer.again, peer.polled, peer.told_group);
            if now < again {
                // What is new is looked for then, not at every event before.
                if poll || told_group != group || peer.nothing != self.seen(&to) {
                    self.due(now, again);
                }
                continue;
            }
            let statements = self.take_news(&to);
            if statements.is_empty() && told_group == group {
                let next = polled.map_or(Duration::ZERO, |polled| polled + self.schedule.pace);
                if !poll || !self.due(now, next) {
                    continue;
                }
            }
            let exchange = self.exchange(&to, statements);
            if let Some(peer) = self.peers.get_mut(&to) {
                peer.calling = Some(exchange.statements.iter().map(Verified::digest).collect());
                peer.told_group = group;
            }
            out.push(Command::Call { to, exchange });
        }
    }

    /// Whoever has not said otherwise.
    pub(super) fn can_be_called(&self, hotkey: &Hotkey) -> bool {
        let offers = self.bag.said(Slot::Offer, hotkey);
        let callable = |digest: &Digest| match self.bag.get(digest).map(|one| &one.said().what) {
            Some(Statement::Offer(offer)) => offer.callable,
            Some(
                Statement::Slice(_)
                | Statement::Claim(_)
                | Statement::Vouch(_)
                | Statement::Ready(_)
                | Statement::Final(_),
            )
            | None => true,
        };
        offers.is_empty() || offers.iter().any(callable)
    }
}
