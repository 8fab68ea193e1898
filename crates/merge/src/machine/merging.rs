//! With the group agreed: the own slices are reduced, those of others taken in, audited and claimed
//! to be wrong, until the result is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use domain::Hotkey;

use crate::{
    bytes::{Bytes, Digest},
    event::{Command, Data, Verdict},
    group::Group,
    machine::Machine,
    proof::{Inputs, Proof},
    statement::{Claim, Slice, Slot, Statement, Verified},
};

/// A slice and the attempt at it.
pub(super) type Turn = (u16, u16);

/// What is known of one merge beside what was said.
#[derive(Debug)]
pub(super) struct Merging {
    pub(super) entered: Duration,
    /// Own turns: since when, and whether they were handed out to be reduced.
    pub(super) turns: BTreeMap<Turn, (Duration, bool)>,
}

impl Merging {
    pub(super) fn new(entered: Duration) -> Self {
        Self { entered, turns: BTreeMap::new() }
    }
}

impl Machine {
    /// One look at everything; whether it has ended.
    pub(super) fn merge(
        &mut self,
        now: Duration,
        merging: &mut Merging,
        out: &mut Vec<Command>,
    ) -> bool {
        let Some(group) = self.group.clone() else { return true };
        self.take_turns(now, merging, &group, out);
        self.push_pieces(now, merging, &group, out);
        let accepted = self.accept_slices(now, &group, out);
        self.vouch(accepted, out);
        self.follow_claims(now, &group, out);
        self.conclude(now, &group, out)
    }

    /// How many owners a slice may have, one after the other.
    pub(super) fn attempts(&self, group: &Group) -> u16 {
        (u16::from(self.start.terms.max_faults) + 1).min(group.slices().parts)
    }

    pub(super) fn slice(&self, statement: &Digest) -> Option<&Slice> {
        match &self.bag.get(statement)?.said().what {
            Statement::Slice(slice) => Some(slice),
            Statement::Offer(_)
            | Statement::Claim(_)
            | Statement::Vouch(_)
            | Statement::Ready(_)
            | Statement::Final(_) => None,
        }
    }

    /// What the owner has said about a slice in its turn.
    fn stated<'a>(&'a self, group: &Group, (slice, attempt): Turn) -> &'a [Digest] {
        let slot = Slot::Slice { group: group.digest(), slice, attempt };
        group.owner(slice, attempt).map_or(&[], |owner| self.bag.said(slot, owner))
    }

    fn accepted_in<'a>(&'a self, group: &Group, turn: Turn) -> Vec<&'a Digest> {
        let stated = self.stated(group, turn).iter();
        stated.filter(|digest| self.accepted.contains_key(*digest)).collect()
    }

    /// The statement that stands for a slice: that of the first owner who made one that counts and is
    /// not contradicted, by itself or by a claim.
    pub(super) fn standing(&self, group: &Group, slice: u16) -> Option<(u16, Digest)> {
        (0..self.attempts(group)).find_map(|attempt| {
            match self.accepted_in(group, (slice, attempt)).as_slice() {
                [one] if !self.work.void.contains(*one) => Some((attempt, **one)),
                _ => None,
            }
        })
    }

    /// Whether nothing good can come of a turn any more.
    fn is_spoilt(&self, group: &Group, turn: Turn) -> bool {
        let accepted = self.accepted_in(group, turn);
        accepted.len() > 1 || accepted.iter().any(|one| self.work.void.contains(*one))
    }

    /// Reduces what is this validator's to reduce: its own slice, and those of owners before it that
    /// have nothing to show by now.
    fn take_turns(
        &mut self,
        now: Duration,
        merging: &mut Merging,
        group: &Group,
        out: &mut Vec<Command>,
    ) {
        for (slice, attempt) in self.turns(group, &self.start.me) {
            let turn = (slice, attempt);
            if !self.stated(group, turn).is_empty() || now > self.schedule.slice(0) {
                continue;
            }
            if !merging.turns.contains_key(&turn) {
                if self.standing(group, slice).is_some_and(|(standing, _)| standing < attempt) {
                    continue;
                }
                let spoilt = (0..attempt).all(|before| self.is_spoilt(group, (slice, before)));
                let begins = merging.entered + self.schedule.attempt * u32::from(attempt);
                if !spoilt && !self.due(now, begins) {
                    continue;
                }
                merging.turns.insert(turn, (now, false));
            }
            let Some((began, asked)) = merging.turns.get(&turn).copied() else { continue };
            if asked {
                continue;
            }
            let until = began + self.schedule.gather;
            let mut contributors = Vec::new();
            let mut missing = false;
            for giver in group.givers() {
                let data = Data::Piece { giver: giver.clone(), slice };
                if self.has_piece(&data) {
                    contributors.push(giver.clone());
                } else {
                    missing = true;
                    self.fetch(now, &data, vec![giver.clone()], until, out);
                }
            }
            if missing && !self.due(now, until) {
                continue;
            }
            merging.turns.insert(turn, (began, true));
            if !contributors.is_empty() {
                self.work.reducing.insert(turn, contributors.clone());
                out.push(Command::Reduce { slice, attempt, contributors });
            }
        }
    }

    /// The turns of a member.
    pub(super) fn turns(&self, group: &Group, member: &Hotkey) -> Vec<Turn> {
        let attempts = self.attempts(group);
        let turns = (0..group.slices().parts).flat_map(|s| (0..attempts).map(move |a| (s, a)));
        turns.filter(|(slice, attempt)| group.owner(*slice, *attempt) == Some(member)).collect()
    }

    fn has_piece(&self, data: &Data) -> bool {
        let own = matches!(data, Data::Piece { giver, .. } if self.is_me(giver));
        if own { self.gives } else { self.held.contains(data) }
    }

    /// An own slice is reduced, or cannot be.
    pub(super) fn reduced(
        &mut self,
        now: Duration,
        turn: Turn,
        chunks: Option<Digest>,
        out: &mut Vec<Command>,
    ) {
        let Some(contributors) = self.work.reducing.remove(&turn) else { return };
        let (Some(chunks), Some(group)) = (chunks, &self.group) else { return };
        // Later it would count here and not with others.
        if now > self.schedule.slice(0) || self.outcome.is_some() {
            return;
        }
        let (slice, attempt) = turn;
        let group = group.digest();
        let slice = Slice { group, slice, attempt, contributors, chunks };
        let said = crate::statement::Said {
            round: self.start.round,
            author: self.start.me.clone(),
            what: Statement::Slice(slice.clone()),
        };
        // Another one may have been said before a restart; its bytes are not these.
        self.held.insert(Data::Reduced(said.digest()));
        self.speak(Statement::Slice(slice), out);
    }

    /// Fetches what others have reduced, takes it in while it counts, and has it audited.
    fn accept_slices(
        &mut self,
        now: Duration,
        group: &Group,
        out: &mut Vec<Command>,
    ) -> Vec<Digest> {
        let mut accepted = Vec::new();
        let attempts = self.attempts(group);
        let turns = (0..group.slices().parts).flat_map(|s| (0..attempts).map(move |a| (s, a)));
        for (slice, attempt) in turns {
            let Some(owner) = group.owner(slice, attempt).cloned() else { continue };
            for digest in self.stated(group, (slice, attempt)).to_vec() {
                if let Some(at) = self.accepted.get(&digest).copied() {
                    self.push_accepted(now, at, group, &owner, &digest, out);
                    continue;
                }
                if self.accepted_in(group, (slice, attempt)).len() >= 2 {
                    continue;
                }
                let data = Data::Reduced(digest);
                if !self.held.contains(&data) {
                    if now <= self.schedule.slice(usize::MAX) {
                        let holders = self.holders(group, &owner, &digest);
                        self.fetch(now, &data, holders, now + self.schedule.fetch, out);
                    }
                } else if now <= self.schedule.slice(self.signers(&owner, &digest)) {
                    self.accepted.insert(digest, now);
                    if !self.is_me(&owner) {
                        accepted.push(digest);
                        self.audit_some(now, group, &digest, out);
                    }
                }
            }
        }
        accepted
    }

    /// Who should hold a reduced slice.
    pub(super) fn holders(&self, group: &Group, owner: &Hotkey, digest: &Digest) -> Vec<Hotkey> {
        let vouchers = self.bag.vouchers(digest).filter(|voucher| *voucher != owner);
        let all = [owner].into_iter().chain(vouchers).filter(|h| group.has(h) && !self.is_me(h));
        all.cloned().collect()
    }

    /// Chunks that nobody else can foresee: a wrong chunk is found by each auditor with a chance of
    /// its own, however the owner turns it.
    fn audit_some(
        &mut self,
        now: Duration,
        group: &Group,
        digest: &Digest,
        out: &mut Vec<Command>,
    ) {
        let Some(slice) = self.slice(digest).map(|stated| stated.slice) else { return };
        let range = group.slices().range(slice);
        let count = u64::try_from(range.len()).unwrap_or(0);
        if count == 0 {
            return;
        }
        for draw in 0..self.start.audits {
            let seed = Bytes::new("audit").raw(&self.start.secret).digest(digest);
            let Digest(seed) = seed.number(draw.into()).hash();
            let mut first = [0; 8];
            first.copy_from_slice(&seed[..8]);
            let offset = u32::try_from(u64::from_le_bytes(first) % count).unwrap_or(0);
            self.audit(now, group, *digest, range.start + offset, out);
        }
    }

    pub(super) fn audit(
        &mut self,
        now: Duration,
        group: &Group,
        digest: Digest,
        chunk: u32,
        out: &mut Vec<Command>,
    ) {
        let Some(author) = self.bag.get(&digest).map(|one| one.said().author.clone()) else {
            return;
        };
        let Some(slice) = self.slice(&digest) else { return };
        let mut sources: BTreeSet<Hotkey> = slice.contributors.iter().cloned().collect();
        sources.extend(self.bag.claims(&digest).map(|(claimant, _)| claimant.clone()));
        sources.extend(self.holders(group, &author, &digest));
        sources.remove(&self.start.me);
        let until = now + self.schedule.step;
        if self.work.audit(now, (digest, chunk), until) {
            let sources = sources.into_iter().filter(|h| self.can_be_called(h)).collect();
            out.push(Command::Audit { statement: digest, chunk, sources, until });
        }
    }

    pub(super) fn audited(&mut self, now: Duration, digest: Digest, chunk: u32, verdict: Verdict) {
        let again = now + self.schedule.pace;
        self.work.audited((digest, chunk), verdict, again);
    }

    /// Looks into what others claim to be wrong, and claims what is found to be.
    fn follow_claims(&mut self, now: Duration, group: &Group, out: &mut Vec<Command>) {
        let accepted: Vec<Digest> = self.accepted.keys().copied().collect();
        for digest in accepted {
            if self.slice(&digest).is_none() {
                continue;
            }
            let claims: Vec<(Hotkey, u32, Digest)> = self
                .bag
                .claims(&digest)
                .filter_map(|(author, claim)| match &self.bag.get(claim)?.said().what {
                    Statement::Claim(Claim { chunk, .. }) => Some((author.clone(), *chunk, *claim)),
                    Statement::Offer(_)
                    | Statement::Slice(_)
                    | Statement::Vouch(_)
                    | Statement::Ready(_)
                    | Statement::Final(_) => None,
                })
                .collect();
            for (_, chunk, claim) in &claims {
                match self.work.verdict((digest, *chunk)) {
                    Some(Verdict::Right) => self.blame_claim(group, claim, &digest),
                    Some(Verdict::Wrong) => {}
                    Some(Verdict::Unknown) | None => {
                        if now <= self.schedule.decided {
                            self.audit(now, group, digest, *chunk, out);
                            self.due(now, now + self.schedule.pace);
                        }
                    }
                }
            }
            if let Some(chunk) = self.work.wrong(&digest) {
                self.blame_reduction(group, &digest, chunk);
                let others = claims.iter().filter(|(author, ..)| !self.is_me(author)).count();
                if !self.work.void.contains(&digest) && now <= self.schedule.claim(others) {
                    self.work.void.insert(digest);
                    self.speak(Statement::Claim(Claim { statement: digest, chunk }), out);
                }
            }
        }
    }

    fn blame_reduction(&mut self, group: &Group, digest: &Digest, chunk: u32) {
        let Some((slice, inputs)) = self.inputs(group, digest) else { return };
        let proof = Proof::WrongReduction { slice: Box::new(slice), inputs, chunk };
        if self.work.blamed.insert((*digest, None)) {
            self.proofs.push(proof);
        }
    }

    fn blame_claim(&mut self, group: &Group, claim: &Digest, digest: &Digest) {
        let Some((slice, inputs)) = self.inputs(group, digest) else { return };
        let Some(claimed) = self.bag.get(claim).map(Verified::signed) else { return };
        let claimed = Box::new(claimed.clone());
        let proof = Proof::FalseClaim { claim: claimed, slice: Box::new(slice), inputs };
        if self.work.blamed.insert((*digest, Some(*claim))) {
            self.proofs.push(proof);
        }
    }

    fn inputs(&self, group: &Group, digest: &Digest) -> Option<(crate::Signed, Inputs)> {
        let signed = self.bag.get(digest)?.signed().clone();
        let contributors = &self.slice(digest)?.contributors;
        let offer = |h: &Hotkey| Some(self.bag.get(&group.offer(h)?.digest)?.signed().clone());
        let offers: Option<Vec<crate::Signed>> = contributors.iter().map(offer).collect();
        Some((signed, Inputs { group: group.names(), offers: offers? }))
    }
}
