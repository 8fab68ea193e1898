//! The result: which statements stand, when everybody has seen the same, and when enough have signed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use domain::Hotkey;

use crate::{
    bytes::Digest,
    event::{Command, Data},
    group::Group,
    machine::Machine,
    outcome::{Ended, Failure, Merged, Part},
    statement::{Choice, Slot, Stage, Statement},
};

impl Machine {
    /// Says what is ready and what is chosen; whether the merge has ended.
    pub(super) fn conclude(
        &mut self,
        now: Duration,
        group: &Group,
        out: &mut Vec<Command>,
    ) -> bool {
        let stage = Stage::Result(group.digest());
        let parts = group.slices().parts;
        let standing: Option<Vec<Digest>> =
            (0..parts).map(|slice| Some(self.standing(group, slice)?.1)).collect();
        let audited = self.work.auditing().is_none_or(|until| self.due(now, until));
        if let Some(items) = &standing
            && audited
            && self.bag.said(Slot::Ready(stage), &self.start.me).is_empty()
            && now <= self.schedule.claims
        {
            self.speak(Statement::Ready(Choice { stage, items: items.clone() }), out);
        }
        if let Some(name) = self.see_unanimity(now, stage, self.schedule.claims) {
            self.vouch(vec![name], out);
        }
        let decided = self.unanimous.get(&stage).cloned().or_else(|| {
            let items = standing.clone()?;
            self.due(now, self.schedule.decided).then_some(Choice { stage, items })
        });
        if let Some(choice) = decided
            && self.bag.said(Slot::Final(stage), &self.start.me).is_empty()
        {
            self.speak(Statement::Final(choice), out);
        }

        let signed: Vec<(Choice, BTreeSet<Hotkey>)> = self.finals(stage);
        let by_most = signed.iter().find(|(_, authors)| authors.len() >= group.quorum());
        if let Some((choice, authors)) = by_most {
            if self.get_all(now, group, choice, authors, out)
                && let Some(merged) = self.merged(group, choice, authors)
            {
                self.end(Ended::Merged(merged), out);
                return true;
            }
            if self.due(now, self.schedule.end) {
                self.end(Ended::Failed(Failure::Behind), out);
                return true;
            }
            return false;
        }
        if !self.due(now, self.schedule.end) {
            return false;
        }
        let missing = (0..parts).find(|slice| self.standing(group, *slice).is_none());
        let failure = match missing {
            Some(slice) => Failure::SliceMissing { slice },
            None => {
                let most = signed.iter().map(|(_, authors)| authors.len()).max();
                Failure::NotConfirmed { signed: most.unwrap_or(0), needed: group.quorum() }
            }
        };
        self.end(Ended::Failed(failure), out);
        true
    }

    /// Whether all of a choice is held; fetches the rest from its owners and whoever has signed it.
    fn get_all(
        &mut self,
        now: Duration,
        group: &Group,
        choice: &Choice,
        signers: &BTreeSet<Hotkey>,
        out: &mut Vec<Command>,
    ) -> bool {
        let mut all = true;
        for digest in &choice.items {
            let data = Data::Reduced(*digest);
            if self.held.contains(&data) {
                continue;
            }
            all = false;
            let Some(owner) = self.bag.get(digest).map(|one| one.said().author.clone()) else {
                continue;
            };
            let mut holders = self.holders(group, &owner, digest);
            holders.extend(signers.iter().filter(|hotkey| !self.is_me(hotkey)).cloned());
            self.fetch(now, &data, holders, now + self.schedule.fetch, out);
        }
        all
    }

    fn merged(&self, group: &Group, choice: &Choice, signers: &BTreeSet<Hotkey>) -> Option<Merged> {
        let mut parts = Vec::new();
        let mut members: BTreeMap<Hotkey, u16> = BTreeMap::new();
        for digest in &choice.items {
            let (owner, slice) = (&self.bag.get(digest)?.said().author, self.slice(digest)?);
            for contributor in &slice.contributors {
                *members.entry(contributor.clone()).or_default() += 1;
            }
            parts.push(Part {
                owner: owner.clone(),
                statement: *digest,
                chunks: slice.chunks,
                contributors: slice.contributors.clone(),
            });
        }
        let chunks: Vec<Digest> = parts.iter().map(|part| part.chunks).collect();
        Some(Merged {
            digest: Digest::of_chunks(&chunks),
            group: group.digest(),
            members,
            participants: group.members().cloned().collect(),
            signers: signers.iter().cloned().collect(),
            parts,
        })
    }
}
