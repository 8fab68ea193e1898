//! What counts of all that is said: what is taken in at all, what everybody is ready for, and what was
//! chosen by whom.

use std::{collections::BTreeSet, time::Duration};

use domain::Hotkey;

use crate::{
    bytes::{Bytes, Digest},
    machine::Machine,
    statement::{Choice, Slot, Stage, Statement, Verified},
};

impl Machine {
    /// Adds what may count.
    pub(super) fn take(&mut self, teller: &Hotkey, one: Verified) {
        if one.said().round != self.start.round || !self.counts(&one) {
            return;
        }
        let countable = match &one.said().what {
            Statement::Vouch(items) => {
                let unanimities = self.unanimity_names();
                let known = |item: &Digest| match self.bag.get(item).map(|one| &one.said().what) {
                    Some(Statement::Offer(_) | Statement::Slice(_)) => true,
                    Some(
                        Statement::Claim(_)
                        | Statement::Vouch(_)
                        | Statement::Ready(_)
                        | Statement::Final(_),
                    )
                    | None => false,
                };
                let countable = |item: &&Digest| unanimities.contains(item) || known(item);
                items.iter().filter(countable).copied().collect()
            }
            Statement::Offer(_)
            | Statement::Slice(_)
            | Statement::Claim(_)
            | Statement::Ready(_)
            | Statement::Final(_) => BTreeSet::new(),
        };
        let needed = self.is_ready_like_me(&one);
        self.bag.add(one, teller, &countable, needed);
    }

    /// Names of what everybody is ready for, by stage.
    pub(super) fn unanimity_names(&self) -> Vec<Digest> {
        let result = self.group.as_ref().map(|group| Stage::Result(group.digest()));
        let stages = [Some(Stage::Group), result].into_iter().flatten();
        stages.filter_map(|stage| self.unanimity(stage)).map(|c| unanimity_name(&c)).collect()
    }

    /// Whether it says to be ready for what this validator is ready for.
    pub(super) fn is_ready_like_me(&self, one: &Verified) -> bool {
        let Statement::Ready(choice) = &one.said().what else { return false };
        self.my_ready(choice.stage) == Some(choice)
    }

    fn my_ready(&self, stage: Stage) -> Option<&Choice> {
        self.ready_of(self.bag.said(Slot::Ready(stage), &self.start.me).first()?)
    }

    fn ready_of(&self, digest: &Digest) -> Option<&Choice> {
        match &self.bag.get(digest)?.said().what {
            Statement::Ready(choice) => Some(choice),
            Statement::Offer(_)
            | Statement::Slice(_)
            | Statement::Claim(_)
            | Statement::Vouch(_)
            | Statement::Final(_) => None,
        }
    }

    pub(super) fn counts(&self, one: &Verified) -> bool {
        let author = &one.said().author;
        if !self.start.roster.0.contains_key(author) {
            return false;
        }
        let group = self.group.as_ref();
        let member = group.is_some_and(|group| group.has(author));
        match &one.said().what {
            Statement::Offer(_) => true,
            Statement::Vouch(_) => true,
            Statement::Ready(choice) | Statement::Final(choice) => match (choice.stage, group) {
                (Stage::Group, _) => choice.items.len() <= self.start.roster.0.len(),
                (Stage::Result(digest), Some(group)) => {
                    member
                        && digest == group.digest()
                        && choice.items.len() == usize::from(group.slices().parts)
                }
                (Stage::Result(_), None) => false,
            },
            Statement::Slice(slice) => group.is_some_and(|group| {
                let rising = slice.contributors.windows(2).all(|pair| pair[0] < pair[1]);
                slice.group == group.digest()
                    && slice.slice < group.slices().parts
                    && slice.attempt < self.attempts(group)
                    && group.owner(slice.slice, slice.attempt) == Some(author)
                    && !slice.contributors.is_empty()
                    && rising
                    && slice.contributors.iter().all(|hotkey| group.gives(hotkey))
            }),
            Statement::Claim(claim) => {
                member
                    && self.slice(&claim.statement).is_some_and(|slice| {
                        group.is_some_and(|g| g.slices().range(slice.slice).contains(&claim.chunk))
                    })
            }
        }
    }

    /// Takes note that everybody is ready for the same, while that counts.
    pub(super) fn see_unanimity(
        &mut self,
        now: Duration,
        stage: Stage,
        base: Duration,
    ) -> Option<Digest> {
        if self.unanimous.contains_key(&stage) {
            return None;
        }
        let choice = self.unanimity(stage)?;
        let name = unanimity_name(&choice);
        let others = self.bag.vouchers(&name).filter(|hotkey| !self.is_me(hotkey)).count();
        if now > self.schedule.unanimity(base, others) {
            return None;
        }
        self.unanimous.insert(stage, choice);
        Some(name)
    }

    /// What everybody, this validator too, has said to be ready for. There cannot be two: an honest
    /// one says it once.
    pub(super) fn unanimity(&self, stage: Stage) -> Option<Choice> {
        let slot = Slot::Ready(stage);
        let mine = self.my_ready(stage)?;
        let agrees = |voter: &Hotkey| {
            self.bag.said(slot, voter).iter().any(|digest| self.ready_of(digest) == Some(mine))
        };
        let all = match (stage, &self.group) {
            (Stage::Group, _) => self.start.roster.0.keys().all(agrees),
            (Stage::Result(_), Some(group)) => group.members().all(agrees),
            (Stage::Result(_), None) => false,
        };
        all.then(|| mine.clone())
    }

    /// The choices that were made for a stage, and by whom.
    pub(super) fn finals(&self, stage: Stage) -> Vec<(Choice, BTreeSet<Hotkey>)> {
        let mut finals: Vec<(Choice, BTreeSet<Hotkey>)> = Vec::new();
        for (author, digests) in self.bag.in_slot(Slot::Final(stage)) {
            for digest in digests {
                let Some(known) = self.bag.get(digest) else { continue };
                let Statement::Final(choice) = &known.said().what else { continue };
                match finals.iter_mut().find(|(other, _)| other == choice) {
                    Some((_, authors)) => {
                        authors.insert(author.clone());
                    }
                    None => finals.push((choice.clone(), BTreeSet::from([author.clone()]))),
                }
            }
        }
        finals
    }
}

/// The name under which a unanimity is vouched for.
pub(super) fn unanimity_name(choice: &Choice) -> Digest {
    Bytes::new("unanimity").digest(&choice.digest()).hash()
}
