//! Before the group is agreed: whose offers count, and who follows from them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use domain::Hotkey;

use crate::{
    bytes::Digest,
    event::Command,
    group::{Counted, Group, LeftOut},
    machine::{Machine, State, merging::Merging},
    outcome::{Ended, Failure},
    statement::{Choice, Slot, Stage, Statement, Verified},
    terms::Offer,
};

impl Machine {
    pub(super) fn form(&mut self, now: Duration, out: &mut Vec<Command>) {
        if self.bag.said(Slot::Offer, &self.start.me).is_empty() {
            let (terms, callable) = (self.start.terms.clone(), self.start.callable);
            let offer = Offer { terms, gradient: self.start.gradient, callable };
            self.speak(Statement::Offer(offer), out);
        }
        let mut vouched = self.accept_offers(now);

        let counting = self.counting();
        let ready = Slot::Ready(Stage::Group);
        if counting.len() == self.start.roster.0.len()
            && now <= self.schedule.offered
            && self.bag.said(ready, &self.start.me).is_empty()
        {
            let items = counting.values().map(|counted| counted.digest).collect();
            self.speak(Statement::Ready(Choice { stage: Stage::Group, items }), out);
        }
        vouched.extend(self.see_unanimity(now, Stage::Group, self.schedule.offers));
        self.vouch(vouched, out);

        let unanimous = self.unanimous.get(&Stage::Group).cloned();
        let is_unanimous = unanimous.is_some();
        let decided = unanimous.or_else(|| {
            let items = counting.values().map(|counted| counted.digest).collect();
            self.due(now, self.schedule.offered).then_some(Choice { stage: Stage::Group, items })
        });
        if let Some(choice) = &decided
            && self.bag.said(Slot::Final(Stage::Group), &self.start.me).is_empty()
            // Who was started again this late follows the others.
            && (is_unanimous || self.began < Some(self.schedule.offered))
        {
            self.speak(Statement::Final(choice.clone()), out);
        }
        if let Some(choice) = self.unanimous.get(&Stage::Group).cloned() {
            self.enter(now, &choice, out);
        } else if let Some(choice) = self.signed_by_most() {
            self.enter(now, &choice, out);
        } else {
            // Who was started again has some time to hear how far the others are.
            let began = self.began.unwrap_or(now);
            let until = self.schedule.grouped.max(began + self.schedule.step * 2);
            if self.due(now, until.min(self.schedule.end))
                && let Some(choice) = decided
            {
                self.fail_to_form(now, &choice, out);
            }
        }
    }

    /// Takes in the offers that count, and says which are new.
    fn accept_offers(&mut self, now: Duration) -> Vec<Digest> {
        let mut vouched = Vec::new();
        let authors: Vec<Hotkey> = self.start.roster.0.keys().cloned().collect();
        for author in authors {
            let variants = self.bag.said(Slot::Offer, &author).to_vec();
            for digest in variants {
                let so_far = self.bag.said(Slot::Offer, &author);
                let accepted = so_far.iter().filter(|d| self.accepted.contains_key(*d)).count();
                if accepted >= 2 || self.accepted.contains_key(&digest) {
                    continue;
                }
                let signers = self.signers(&author, &digest);
                if now <= self.schedule.offer(signers) {
                    self.accepted.insert(digest, now);
                    if !self.is_me(&author) {
                        vouched.push(digest);
                    }
                }
            }
        }
        vouched
    }

    /// How many have signed a statement, this validator left out.
    pub(super) fn signers(&self, author: &Hotkey, digest: &Digest) -> usize {
        let vouchers = self.bag.vouchers(digest).filter(|voucher| *voucher != author);
        let vouchers = vouchers.filter(|voucher| match &self.group {
            Some(group) => group.has(voucher),
            None => true,
        });
        vouchers.chain([author]).filter(|hotkey| !self.is_me(hotkey)).count()
    }

    /// The offers that count: one each.
    fn counting(&self) -> BTreeMap<Hotkey, Counted> {
        let mut counting = BTreeMap::new();
        for (author, digests) in self.bag.in_slot(Slot::Offer) {
            let mut accepted = digests.iter().filter(|d| self.accepted.contains_key(*d));
            if let (Some(digest), None) = (accepted.next(), accepted.next())
                && let Some(counted) = self.counted(digest)
            {
                counting.insert(author.clone(), counted);
            }
        }
        counting
    }

    fn counted(&self, digest: &Digest) -> Option<Counted> {
        match &self.bag.get(digest)?.said().what {
            Statement::Offer(offer) => Some(Counted { digest: *digest, offer: offer.clone() }),
            Statement::Slice(_)
            | Statement::Claim(_)
            | Statement::Vouch(_)
            | Statement::Ready(_)
            | Statement::Final(_) => None,
        }
    }

    /// The offers of a choice by author, where all of them are known.
    fn chosen(&self, choice: &Choice) -> Option<BTreeMap<Hotkey, Counted>> {
        let mut chosen = BTreeMap::new();
        for digest in &choice.items {
            let author = self.bag.get(digest).map(Verified::said)?.author.clone();
            chosen.insert(author, self.counted(digest)?);
        }
        Some(chosen)
    }

    fn choose(&self, offers: &BTreeMap<Hotkey, Counted>) -> (Group, Vec<LeftOut>) {
        Group::choose(&self.start.terms, &self.start.roster, offers)
    }

    /// The offers that enough members of the group that follows from them have signed.
    fn signed_by_most(&self) -> Option<Choice> {
        let signed = |(choice, authors): &(Choice, std::collections::BTreeSet<Hotkey>)| {
            self.chosen(choice).is_some_and(|offers| {
                let (group, _) = self.choose(&offers);
                let signers = authors.iter().filter(|author| group.has(author)).count();
                group.size() > 1 && signers >= group.quorum()
            })
        };
        self.finals(Stage::Group).into_iter().find(signed).map(|(choice, _)| choice)
    }

    /// Goes on with the members that follow from a choice, or ends where there are none.
    fn enter(&mut self, now: Duration, choice: &Choice, out: &mut Vec<Command>) {
        let Some(offers) = self.chosen(choice) else { return };
        let (group, left_out) = self.choose(&offers);
        if !group.has(&self.start.me) {
            let mine = left_out.iter().find(|one| self.is_me(&one.hotkey));
            let reason = mine.map_or("came_late", |one| one.reason.as_str()).to_owned();
            return self.end(Ended::Failed(Failure::LeftOut { reason }), out);
        }
        if group.size() == 1 || group.quorum() > group.size() {
            return self.end(self.too_few(&group), out);
        }
        if group.givers().next().is_none() {
            return self.end(Ended::Failed(Failure::NoGradients), out);
        }
        if group.callable().is_empty() {
            return self.end(Ended::Failed(Failure::NobodyCallable), out);
        }
        // After a restart the gradient may be another than the one that was offered then.
        let offered = group.offer(&self.start.me).and_then(|counted| counted.offer.gradient);
        self.gives = offered.is_some() && offered == self.start.gradient;
        self.group = Some(Arc::new(group));
        self.state = State::Merging(Box::new(Merging::new(now)));
    }

    fn too_few(&self, group: &Group) -> Ended {
        let needed = group.quorum().max(2);
        if group.size() > 1 {
            return Ended::Failed(Failure::TooFew { met: group.size(), needed });
        }
        if self.start.gradient.is_none() {
            Ended::Failed(Failure::NoGradients)
        } else if self.start.allow_solo || self.start.roster.0.len() == 1 {
            Ended::Solo
        } else {
            Ended::Failed(Failure::LeftAlone)
        }
    }

    fn fail_to_form(&mut self, now: Duration, choice: &Choice, out: &mut Vec<Command>) {
        let Some(offers) = self.chosen(choice) else { return };
        let (group, _) = self.choose(&offers);
        let too_small = group.size() == 1 || group.quorum() > group.size();
        let ended = if group.has(&self.start.me) && too_small {
            self.too_few(&group)
        } else if self.due(now, self.schedule.end) {
            let finals = self.finals(Stage::Group);
            let mine = finals.iter().find(|(final_, _)| final_ == choice);
            let signed = mine.map_or(0, |(_, authors)| authors.len());
            Ended::Failed(Failure::NoAgreement { signed, needed: group.quorum() })
        } else {
            // Cut off, it seems. Once back it hears what the others have signed, and follows.
            return;
        };
        self.end(ended, out);
    }

    /// Who of the roster is not in the result, and why.
    pub(super) fn dropped(&self, ended: &Ended) -> Vec<LeftOut> {
        let (in_result, givers) = match ended {
            Ended::Merged(merged) => (merged.members.keys().collect(), &self.group),
            Ended::Solo => (vec![&self.start.me], &None),
            Ended::Failed(_) => (Vec::new(), &self.group),
        };
        let why = |hotkey: &Hotkey| {
            if let Some(group) = givers.as_ref().filter(|group| group.has(hotkey)) {
                return if group.gives(hotkey) { "gradient_not_had" } else { "no_gradient" };
            }
            let said = self.bag.said(Slot::Offer, hotkey);
            let accepted: Vec<&Digest> =
                said.iter().filter(|d| self.accepted.contains_key(*d)).collect();
            match (said, accepted.as_slice()) {
                ([], _) => "not_reached",
                (_, []) => "came_late",
                (_, [one]) => self
                    .counted(one)
                    .and_then(|counted| self.start.terms.differs(&counted.offer.terms))
                    .unwrap_or(if self.group.is_some() { "group_full" } else { "not_merged" }),
                (_, _) => "two_offers",
            }
        };
        let missing = self.start.roster.0.keys().filter(|hotkey| !in_result.contains(hotkey));
        let missing = missing.filter(|hotkey| {
            // When nothing came of it, only those are of interest who did not take part.
            !matches!(ended, Ended::Failed(_))
                || !(self.is_me(hotkey) || self.group.as_ref().is_some_and(|g| g.has(hotkey)))
        });
        missing.map(|h| LeftOut { hotkey: h.clone(), reason: why(h).to_owned() }).collect()
    }
}
