//! Who is in: a pure function of the offers that count, so that all who agree on them agree on this.

use std::{cmp::Reverse, collections::BTreeMap};

use domain::Hotkey;
use serde::{Deserialize, Serialize};

use crate::{
    bytes::{Bytes, Digest},
    slices::Slices,
    terms::{Offer, Roster, Terms},
};

/// Somebody who is not in the result, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Who.
    pub hotkey: Hotkey,
    /// Stable snake_case reason.
    pub reason: String,
}

/// An offer, and the name of the statement that it was made in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Digest of the statement.
    pub digest: Digest,
    /// What was offered.
    pub offer: Offer,
}

/// The agreed members, ascending by hotkey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    members: BTreeMap<Hotkey, Counted>,
    callable: Vec<Hotkey>,
    chunks: u32,
    min_group: usize,
    digest: Digest,
}

impl Group {
    /// Those with exactly these `terms`, at most `target_group` of them: the ones with the most stake,
    /// and of equals the lower hotkeys. Stake is what cannot be had by making up names, and what
    /// others follow when models differ.
    pub fn choose(
        terms: &Terms,
        roster: &Roster,
        offers: &BTreeMap<Hotkey, Counted>,
    ) -> (Self, Vec<LeftOut>) {
        let mut left_out = Vec::new();
        let mut leave = |hotkey: &Hotkey, reason: &str| {
            left_out.push(LeftOut { hotkey: hotkey.clone(), reason: reason.to_owned() });
        };
        let mut fitting = Vec::new();
        for (hotkey, counted) in offers {
            match terms.differs(&counted.offer.terms) {
                Some(why) => leave(hotkey, why),
                None => fitting.push((hotkey, counted)),
            }
        }
        let stake = |hotkey: &Hotkey| roster.0.get(hotkey).copied().unwrap_or(0);
        fitting.sort_by_key(|(hotkey, _)| (Reverse(stake(hotkey)), (*hotkey).clone()));
        let room = usize::try_from(terms.target_group).unwrap_or(usize::MAX).min(fitting.len());
        for (hotkey, _) in fitting.drain(room..) {
            leave(hotkey, "group_full");
        }
        let members: BTreeMap<Hotkey, Counted> = fitting
            .into_iter()
            .map(|(hotkey, counted)| (hotkey.clone(), counted.clone()))
            .collect();
        let callable =
            members.iter().filter(|(_, c)| c.offer.callable).map(|(h, _)| h.clone()).collect();
        let names: Vec<Digest> = members.values().map(|counted| counted.digest).collect();
        let min_group = usize::try_from(terms.min_group).unwrap_or(usize::MAX);
        let digest = group_digest(&names);
        (Self { members, callable, chunks: terms.chunks, min_group, digest }, left_out)
    }

    /// Digest over the members' offers.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Digests of the members' offers, ascending by hotkey.
    pub fn names(&self) -> Vec<Digest> {
        self.members.values().map(|counted| counted.digest).collect()
    }

    /// The members, ascending.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &Hotkey> {
        self.members.keys()
    }

    /// Number of members.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// Whether it is a member.
    pub fn has(&self, hotkey: &Hotkey) -> bool {
        self.members.contains_key(hotkey)
    }

    /// What a member offered.
    pub fn offer(&self, hotkey: &Hotkey) -> Option<&Counted> {
        self.members.get(hotkey)
    }

    /// Those with a gradient, ascending.
    pub fn givers(&self) -> impl Iterator<Item = &Hotkey> {
        self.members.iter().filter(|(_, c)| c.offer.gradient.is_some()).map(|(hotkey, _)| hotkey)
    }

    /// Whether a member has a gradient.
    pub fn gives(&self, hotkey: &Hotkey) -> bool {
        self.offer(hotkey).is_some_and(|counted| counted.offer.gradient.is_some())
    }

    /// Those that others can call, ascending: the owners of the slices.
    pub fn callable(&self) -> &[Hotkey] {
        &self.callable
    }

    /// How the vector is split among them.
    pub fn slices(&self) -> Slices {
        Slices {
            chunks: self.chunks,
            parts: u16::try_from(self.callable.len()).unwrap_or(u16::MAX),
        }
    }

    /// Who reduces a slice in an attempt.
    pub fn owner(&self, slice: u16, attempt: u16) -> Option<&Hotkey> {
        let parts = self.slices().parts;
        self.callable.get(usize::from(crate::slices::owner(slice, attempt, parts)))
    }

    /// How many signatures decide: more than half of the members, and `min_group`.
    pub fn quorum(&self) -> usize {
        (self.size() / 2 + 1).max(self.min_group)
    }
}

pub(crate) fn group_digest(names: &[Digest]) -> Digest {
    Bytes::new("group").list(names, |bytes, name| bytes.digest(name)).hash()
}
