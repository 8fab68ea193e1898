//! Everything that has been said: statements are only added, in the order in which they came, each
//! once. What honest members have is the same in the end; what a hostile one may add is bounded.
//!
//! A statement that could count is never refused because of others: a member that floods one honest
//! member would otherwise make it miss what another honest one has taken in. So what is bounded is how
//! many variants of one statement each *teller* may bring, and honest ones bring few.

use std::collections::{BTreeMap, BTreeSet};

use domain::Hotkey;

use crate::{
    bytes::Digest,
    proof::Proof,
    statement::{Claim, Slot, Statement, Verified},
};

/// So many variants of one statement an honest member tells at most: two that prove the equivocation,
/// and two that it has accepted.
const VARIANTS: u8 = 4;

#[derive(Debug, Default)]
pub(crate) struct Bag {
    log: Vec<Verified>,
    index: BTreeMap<Digest, usize>,
    slots: BTreeMap<Slot, BTreeMap<Hotkey, Vec<Digest>>>,
    told: BTreeMap<(Slot, Hotkey, Hotkey), u8>,
    vouchers: BTreeMap<Digest, BTreeSet<Hotkey>>,
    claims: BTreeMap<Digest, BTreeMap<Hotkey, Digest>>,
    proofs: Vec<Proof>,
}

impl Bag {
    pub(crate) fn get(&self, digest: &Digest) -> Option<&Verified> {
        self.index.get(digest).and_then(|at| self.log.get(*at))
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.index.contains_key(digest)
    }

    /// In the order in which they came: what a statement is about comes before it.
    pub(crate) fn log(&self) -> &[Verified] {
        &self.log
    }

    /// What one author has said in a slot: nothing, one thing, or two that contradict each other.
    pub(crate) fn said(&self, slot: Slot, author: &Hotkey) -> &[Digest] {
        self.slots.get(&slot).and_then(|of_slot| of_slot.get(author)).map_or(&[], Vec::as_slice)
    }

    /// Everything said in a slot, by author.
    pub(crate) fn in_slot(&self, slot: Slot) -> impl Iterator<Item = (&Hotkey, &[Digest])> {
        let of_slot = self.slots.get(&slot).into_iter().flatten();
        of_slot.map(|(author, digests)| (author, digests.as_slice()))
    }

    /// Who has vouched for a statement, or for a unanimity.
    pub(crate) fn vouchers(&self, digest: &Digest) -> impl Iterator<Item = &Hotkey> {
        self.vouchers.get(digest).into_iter().flatten()
    }

    /// Who claims that a slice is wrong, and by which statement.
    pub(crate) fn claims(&self, slice: &Digest) -> impl Iterator<Item = (&Hotkey, &Digest)> {
        self.claims.get(slice).into_iter().flatten()
    }

    /// Proofs of what members said twice.
    pub(crate) fn proofs(&self) -> &[Proof] {
        &self.proofs
    }

    /// Adds a statement that may count, told by `teller`. `countable` are those of its items that can
    /// be vouched for; what is `needed` is taken in beyond all bounds.
    pub(crate) fn add(
        &mut self,
        one: Verified,
        teller: &Hotkey,
        countable: &BTreeSet<Digest>,
        needed: bool,
    ) {
        let digest = one.digest();
        if self.has(&digest) {
            return;
        }
        let author = one.said().author.clone();
        if let Some(slot) = one.said().slot() {
            let told = self.told.entry((slot, author.clone(), teller.clone())).or_default();
            if *told >= VARIANTS && !needed {
                return;
            }
            *told = told.saturating_add(1);
            let said = self.slots.entry(slot).or_default().entry(author).or_default();
            if let [first] = said.as_slice()
                && let Some(first) = self.index.get(first)
            {
                let first = Box::new(self.log[*first].signed().clone());
                let second = Box::new(one.signed().clone());
                self.proofs.push(Proof::Equivocation { first, second });
            }
            said.push(digest);
        } else {
            match &one.said().what {
                Statement::Vouch(items) => {
                    let by = |item| self.vouchers.get(item).is_some_and(|by| by.contains(&author));
                    if countable.iter().all(by) {
                        return;
                    }
                    // All of them: what is not known yet may come, and counts then.
                    for item in items {
                        self.vouchers.entry(*item).or_default().insert(author.clone());
                    }
                }
                Statement::Claim(Claim { statement, .. }) => {
                    let of_slice = self.claims.entry(*statement).or_default();
                    if of_slice.contains_key(&author) {
                        return;
                    }
                    of_slice.insert(author, digest);
                }
                Statement::Offer(_)
                | Statement::Slice(_)
                | Statement::Ready(_)
                | Statement::Final(_) => return,
            }
        }
        self.index.insert(digest, self.log.len());
        self.log.push(one);
    }
}
