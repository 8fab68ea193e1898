//! Who merges with whom: agreement on the members of a round, from what everybody says.
//!
//! Each validator tells each other one whom it has met, again and again; the members are agreed
//! once all of their lists are equal. Lists grow while the door is open, and only shrink after. The
//! steps ([`Stage`]) are taken by the clock of the caller, in this order on every validator:
//!
//! 1. `Open`: whoever says a compatible hello is met. When nobody is left that could still come,
//!    equal lists are final.
//! 2. `Closed`: nobody new is met. This lasts longer than the clocks of two validators differ, so
//!    that after it no list anywhere can grow.
//! 3. `Deciding`: only lists told from here on count. Where they disagree, the validator that
//!    agrees with the fewest is left out; equal lists are final.
//! 4. `Dropping`: whoever has not told its list since `Deciding` is left out too, and all have to
//!    tell theirs again.
//! 5. `Last`: by now honest lists are equal. Whoever has been silent since, or tells another list
//!    than most, is left out.
//!
//! Two validators that each count the other as a member have the same members. One that is left out
//! may still believe that it is in: it finds out with its first slice, as members check each
//! other's list with every request.
//!
//! Nothing here knows time, the network or signatures; what comes in has been verified.

use std::collections::{BTreeMap, BTreeSet};

use domain::Hotkey;

use crate::messages::{Hello, Offer};

/// How far an agreement is. Stages follow in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Whoever comes is met.
    Open,
    /// Nobody new is met.
    Closed,
    /// Only what is told from now on counts.
    Deciding,
    /// Those that have fallen silent are left out.
    Dropping,
    /// Those that disagree with most are left out.
    Last,
}

/// The agreed members of a merge, ascending by hotkey: slice `i` is the `i`th member's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    all: Vec<Hotkey>,
    givers: BTreeSet<Hotkey>,
}

impl Members {
    /// Members, each with whether it has a gradient to give.
    pub fn new(members: BTreeMap<Hotkey, bool>) -> Self {
        let givers = members.iter().filter(|(_, gives)| **gives).map(|(h, _)| h.clone()).collect();
        Self { all: members.into_keys().collect(), givers }
    }

    /// All of them, ascending.
    pub fn all(&self) -> &[Hotkey] {
        &self.all
    }

    /// Those with a gradient.
    pub fn givers(&self) -> &BTreeSet<Hotkey> {
        &self.givers
    }

    /// The place of a member, which is the slice that it owns.
    pub fn index_of(&self, hotkey: &Hotkey) -> Option<usize> {
        self.all.binary_search(hotkey).ok()
    }

    /// Whether these are the members.
    pub fn are(&self, members: &BTreeSet<Hotkey>) -> bool {
        self.all.len() == members.len() && self.all.iter().all(|h| members.contains(h))
    }
}

const DISAGREES: &str = "disagrees_on_the_members";

#[derive(Debug)]
struct Heard {
    offer: Offer,
    list: BTreeSet<Hotkey>,
    fresh: bool,
    differs: Option<&'static str>,
}

/// The agreement as one validator sees it.
#[derive(Debug)]
pub struct Meeting {
    me: Hotkey,
    offer: Offer,
    others: BTreeSet<Hotkey>,
    heard: BTreeMap<Hotkey, Heard>,
    met: BTreeSet<Hotkey>,
    dropped: BTreeMap<Hotkey, &'static str>,
    stage: Stage,
}

impl Meeting {
    /// A meeting of `me`, which brings `offer`, with the validators of the round.
    pub fn new(me: Hotkey, offer: Offer, mut others: BTreeSet<Hotkey>) -> Self {
        others.remove(&me);
        let met = BTreeSet::from([me.clone()]);
        let (heard, dropped) = (BTreeMap::new(), BTreeMap::new());
        Self { me, offer, others, heard, met, dropped, stage: Stage::Open }
    }

    /// Those that this validator has met, itself included.
    pub fn met(&self) -> &BTreeSet<Hotkey> {
        &self.met
    }

    /// What this validator brings.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Goes to a later stage; an earlier one changes nothing.
    pub fn advance(&mut self, stage: Stage) {
        if stage <= self.stage {
            return;
        }
        for next in [Stage::Closed, Stage::Deciding, Stage::Dropping, Stage::Last] {
            if next > self.stage && next <= stage {
                self.enter(next);
            }
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        if stage >= Stage::Dropping {
            self.drop_the_silent();
        }
        match stage {
            Stage::Open | Stage::Closed => {}
            Stage::Deciding | Stage::Dropping => {
                self.heard.values_mut().for_each(|heard| heard.fresh = false);
            }
            Stage::Last => self.drop_the_odd(),
        }
        self.prune();
    }

    /// Takes in a verified hello, first one or answer. Those of strangers change nothing.
    pub fn hear(&mut self, hello: &Hello) {
        let sender = &hello.envelope.sender;
        if !self.others.contains(sender) {
            return;
        }
        let differs = match self.heard.get(sender) {
            // Two offers of one validator in one round: none of them is to be trusted.
            Some(before) if before.offer != hello.offer => Some("changed_its_offer"),
            Some(before) => before.differs,
            None => self.offer.differs(&hello.offer),
        };
        if differs.is_some() {
            self.met.remove(sender);
        } else if self.stage == Stage::Open {
            self.met.insert(sender.clone());
        }
        let offer = self.heard.remove(sender).map_or_else(|| hello.offer.clone(), |h| h.offer);
        let heard = Heard { offer, list: hello.met.clone(), fresh: true, differs };
        self.heard.insert(sender.clone(), heard);
        self.prune();
    }

    /// The members, once they are agreed. A validator that is left with nobody is a member alone.
    pub fn agreed(&self) -> Option<Members> {
        let nobody_can_come =
            || self.others.iter().all(|h| self.met.contains(h) || self.differs(h).is_some());
        let may_end = match self.stage {
            Stage::Open => nobody_can_come(),
            Stage::Closed => false,
            Stage::Deciding | Stage::Dropping | Stage::Last => true,
        };
        let equal = self.met_others().all(|hotkey| {
            self.heard.get(hotkey).is_some_and(|heard| heard.fresh && heard.list == self.met)
        });
        let left_out = self.met.len() == 1 && !self.left_out_of().is_empty();
        if !may_end || !equal || left_out {
            return None;
        }
        let gives = |hotkey: &Hotkey| match self.heard.get(hotkey) {
            Some(heard) => heard.offer.has_gradient,
            None => self.offer.has_gradient,
        };
        Some(Members::new(self.met.iter().map(|h| (h.clone(), gives(h))).collect()))
    }

    /// The validators of the round that are not met, each with why.
    pub fn missing(&self) -> Vec<(Hotkey, &'static str)> {
        let why = |hotkey: &Hotkey| match (self.heard.get(hotkey), self.dropped.get(hotkey)) {
            (None, _) => "not_reached",
            (Some(Heard { differs: Some(differs), .. }), _) => differs,
            (Some(_), Some(dropped)) => dropped,
            (Some(_), None) => "came_late",
        };
        let missing = self.others.iter().filter(|h| !self.met.contains(h));
        missing.map(|h| (h.clone(), why(h))).collect()
    }

    fn differs(&self, hotkey: &Hotkey) -> Option<&'static str> {
        self.heard.get(hotkey).and_then(|heard| heard.differs)
    }

    fn met_others(&self) -> impl Iterator<Item = &Hotkey> {
        self.met.iter().filter(|hotkey| **hotkey != self.me)
    }

    /// Compatible validators that merge without this one: their fresh lists do not name it.
    fn left_out_of(&self) -> Vec<&Hotkey> {
        let compatible = self.heard.iter().filter(|(_, h)| h.fresh && h.differs.is_none());
        compatible
            .filter(|(_, h)| !h.list.contains(&self.me) && h.list.len() > 1)
            .map(|(k, _)| k)
            .collect()
    }

    /// The list of a met validator, where it counts.
    fn list(&self, hotkey: &Hotkey) -> Option<&BTreeSet<Hotkey>> {
        if *hotkey == self.me {
            return Some(&self.met);
        }
        self.heard.get(hotkey).filter(|heard| heard.fresh).map(|heard| &heard.list)
    }

    /// Leaves out, one after the other, the validator that agrees with the fewest of the rest, until
    /// every two name each other. Equal cases: the one that fewer lists name, then the later hotkey.
    fn prune(&mut self) {
        if self.stage < Stage::Deciding {
            return;
        }
        while let Some(worst) = self.worst() {
            if worst == self.me {
                // Everybody else has gone on without this one: see `left_out_of`.
                return;
            }
            self.drop(worst, DISAGREES);
        }
    }

    fn drop_the_silent(&mut self) {
        let fresh = |h: &Hotkey| self.heard.get(h).is_some_and(|heard| heard.fresh);
        let silent: Vec<Hotkey> = self.met_others().filter(|h| !fresh(h)).cloned().collect();
        silent.into_iter().for_each(|hotkey| self.drop(hotkey, "fell_silent"));
    }

    fn drop(&mut self, hotkey: Hotkey, why: &'static str) {
        self.met.remove(&hotkey);
        self.dropped.insert(hotkey, why);
    }

    /// Leaves out those whose list is not the most frequent one.
    fn drop_the_odd(&mut self) {
        let mut votes: BTreeMap<&BTreeSet<Hotkey>, usize> = BTreeMap::new();
        for list in self.met.iter().filter_map(|h| self.list(h)) {
            *votes.entry(list).or_default() += 1;
        }
        let most = votes.into_iter().max_by_key(|(list, votes)| (*votes, **list == self.met));
        let Some((most, _)) = most.filter(|(list, _)| **list == self.met) else { return };
        let odd: Vec<Hotkey> =
            self.met.iter().filter(|h| self.list(h) != Some(most)).cloned().collect();
        odd.into_iter().for_each(|hotkey| self.drop(hotkey, DISAGREES));
    }

    fn worst(&self) -> Option<Hotkey> {
        let listed: Vec<(&Hotkey, &BTreeSet<Hotkey>)> =
            self.met.iter().filter_map(|h| self.list(h).map(|list| (h, list))).collect();
        let rank = |&(hotkey, list): &(&Hotkey, &BTreeSet<Hotkey>)| {
            let estranged = listed
                .iter()
                .filter(|(other, others)| !list.contains(*other) || !others.contains(hotkey))
                .count();
            let named = listed.iter().filter(|(_, others)| others.contains(hotkey)).count();
            (estranged, std::cmp::Reverse(named), hotkey.clone())
        };
        listed.iter().map(rank).max().filter(|(estranged, ..)| *estranged > 0).map(|(.., h)| h)
    }
}

#[cfg(test)]
mod tests;
