//! What is signed, what it is bound to, and what proves somebody guilty.

use std::time::Duration;

use domain::{ExpertGroup, Hotkey, ModelHash, RoundId};
use merge::{
    Choice, Claim, Command, Digest, Event, Gradient, Inputs, Machine, Offer, PROTOCOL, Proof,
    Recompute, Refused, Roster, Said, Saved, Signature, Signed, Slice, Stage, Start, Statement,
    Terms, Unproven, Verified, Verify,
};
use proptest::prelude::*;

struct Keys;

impl Keys {
    fn sign(said: Said) -> Signed {
        let mut signature = [0; 64];
        let half = blake3::keyed_hash(said.author.public_key(), &said.bytes());
        signature[..32].copy_from_slice(half.as_bytes());
        Signed { said, signature: Signature(signature) }
    }
}

impl Verify for Keys {
    fn verify(&self, author: &Hotkey, bytes: &[u8], signature: &Signature) -> bool {
        blake3::keyed_hash(author.public_key(), bytes).as_bytes()[..] == signature.0[..32]
    }
}

/// Says the same of every chunk.
struct Bytes(Option<bool>);

impl Recompute for Bytes {
    fn is_right(&self, _: &Slice, _: &[&Offer], _: u32) -> Option<bool> {
        self.0
    }
}

fn hotkey(index: u8) -> Hotkey {
    Hotkey::from_public_key([index; 32])
}

fn terms() -> Terms {
    Terms {
        protocol: PROTOCOL,
        group: ExpertGroup(1),
        base: ModelHash([7; 24]),
        layout: Digest([1; 32]),
        codec: "plain".to_owned(),
        reduction: "mean".to_owned(),
        roster: roster().digest(),
        chunks: 12,
        min_group: 2,
        target_group: 8,
        max_faults: 1,
        deadline_ms: 60_000,
    }
}

fn roster() -> Roster {
    Roster((1..=3).map(|index| (hotkey(index), 5)).collect())
}

fn offer(gradient: u8) -> Statement {
    let gradient = Some(Gradient { bytes: 9, chunks: Digest([gradient; 32]) });
    Statement::Offer(Offer { terms: terms(), gradient, callable: true })
}

fn said(author: u8, what: Statement) -> Signed {
    Keys::sign(Said { round: RoundId(336), author: hotkey(author), what })
}

fn choice(item: u8) -> Choice {
    Choice { stage: Stage::Group, items: vec![Digest([item; 32])] }
}

/// An offer, the slice that was reduced of it, and what fixes it.
fn reduced() -> (Signed, Inputs) {
    let given = said(2, offer(2));
    let group = vec![given.said.digest()];
    let members: Vec<Digest> = group.clone();
    let digest = merge_group(&members);
    let slice = Slice {
        group: digest,
        slice: 0,
        attempt: 0,
        contributors: vec![hotkey(2)],
        chunks: Digest([3; 32]),
    };
    (said(1, Statement::Slice(slice)), Inputs { group, offers: vec![given] })
}

/// The group's digest, by way of a group of one.
fn merge_group(_: &[Digest]) -> Digest {
    let Statement::Offer(offered) = offer(2) else { unreachable!() };
    let counted = merge::Counted { digest: said(2, offer(2)).said.digest(), offer: offered };
    let offers = [(hotkey(2), counted)].into();
    merge::Group::choose(&terms(), &roster(), &offers).0.digest()
}

#[test]
fn a_statement_is_its_authors_and_of_one_round_and_kind() {
    let signed = said(1, Statement::Ready(choice(1)));
    assert!(Verified::new(signed.clone(), &Keys).is_ok());
    let mut changed = [signed.clone(), signed.clone(), signed.clone(), signed];
    changed[0].said.round = RoundId(337);
    changed[1].said.author = hotkey(2);
    changed[2].said.what = Statement::Final(choice(1));
    changed[3].said.what = Statement::Ready(choice(2));
    for one in changed {
        assert_eq!(Verified::new(one, &Keys), Err(Refused::BadSignature));
    }
}

#[test]
fn what_is_longer_than_anything_honest_is_refused_before_its_signature_is_checked() {
    let items = vec![Digest([0; 32]); merge::MAX_ITEMS + 1];
    let mut signed = said(1, Statement::Vouch(items));
    signed.signature = Signature([0; 64]);
    assert_eq!(Verified::new(signed, &Keys), Err(Refused::TooLarge));
}

#[test]
fn two_things_said_in_one_place_are_a_proof_that_survives_being_written_down() {
    for (first, second, reason) in [
        (offer(1), offer(2), "two_offers"),
        (Statement::Ready(choice(1)), Statement::Ready(choice(2)), "two_choices"),
        (Statement::Final(choice(1)), Statement::Final(choice(2)), "two_choices"),
    ] {
        let (first, second) = (Box::new(said(1, first)), Box::new(said(1, second)));
        let proof = Proof::Equivocation { first, second };
        let text = serde_json::to_string(&proof).unwrap();
        let read: Proof = serde_json::from_str(&text).unwrap();
        assert_eq!(read.verify(&Keys, &Bytes(None)), Ok(&hotkey(1)));
        assert_eq!((read.reason(), &read), (reason, &proof));
    }
}

#[test]
fn what_an_honest_member_may_say_proves_nothing() {
    let pairs = [
        (said(1, offer(1)), said(1, offer(1))),
        (said(1, offer(1)), said(2, offer(2))),
        (said(1, Statement::Ready(choice(1))), said(1, Statement::Final(choice(2)))),
        (said(1, Statement::Vouch(vec![])), said(1, Statement::Vouch(vec![Digest([1; 32])]))),
    ];
    for (first, second) in pairs {
        let proof = Proof::Equivocation { first: Box::new(first), second: Box::new(second) };
        assert_eq!(proof.verify(&Keys, &Bytes(None)), Err(Unproven::NoConflict));
    }
    let (first, mut second) = (said(1, offer(1)), said(1, offer(2)));
    second.signature = first.signature;
    let proof = Proof::Equivocation { first: Box::new(first), second: Box::new(second) };
    assert_eq!(proof.verify(&Keys, &Bytes(None)), Err(Unproven::BadSignature));
}

#[test]
fn an_owner_is_guilty_of_a_wrong_chunk_only_by_the_inputs_of_its_group() {
    let (slice, inputs) = reduced();
    let proof = |inputs: &Inputs| Proof::WrongReduction {
        slice: Box::new(slice.clone()),
        inputs: inputs.clone(),
        chunk: 1,
    };
    assert_eq!(proof(&inputs).verify(&Keys, &Bytes(Some(false))), Ok(&hotkey(1)));
    assert_eq!(proof(&inputs).verify(&Keys, &Bytes(Some(true))), Err(Unproven::Refuted));
    assert_eq!(proof(&inputs).verify(&Keys, &Bytes(None)), Err(Unproven::NoEvidence));
    // A contributor that has made a second offer cannot turn it against the owner.
    let second = said(2, offer(3));
    let forged = Inputs { group: inputs.group.clone(), offers: vec![second.clone()] };
    assert_eq!(proof(&forged).verify(&Keys, &Bytes(Some(false))), Err(Unproven::Unrelated));
    let forged = Inputs { group: vec![second.said.digest()], offers: vec![second] };
    assert_eq!(proof(&forged).verify(&Keys, &Bytes(Some(false))), Err(Unproven::Unrelated));
}

#[test]
fn a_false_claim_is_turned_against_its_author() {
    let (slice, inputs) = reduced();
    let claim = Claim { statement: slice.said.digest(), chunk: 1 };
    let claim = Box::new(said(3, Statement::Claim(claim)));
    let proof = Proof::FalseClaim { claim, slice: Box::new(slice), inputs };
    assert_eq!(proof.verify(&Keys, &Bytes(Some(true))), Ok(&hotkey(3)));
    assert_eq!(proof.verify(&Keys, &Bytes(Some(false))), Err(Unproven::Refuted));
}

#[test]
fn who_is_started_again_with_another_gradient_says_what_it_said_before() {
    let start = |gradient: u8, incarnation| Start {
        round: RoundId(336),
        me: hotkey(1),
        terms: terms(),
        roster: roster(),
        gradient: Some(Gradient { bytes: 9, chunks: Digest([gradient; 32]) }),
        callable: true,
        allow_solo: false,
        secret: [0; 32],
        audits: 1,
        incarnation,
    };
    let first = Machine::new(start(1, 1), Saved::default()).handle(Duration::ZERO, Event::Tick);
    let [Command::Save(saved), Command::Sign(before), ..] = first.as_slice() else {
        panic!("what is to be signed is saved first: {first:?}");
    };
    // As it is kept: a text.
    let saved: Saved = serde_json::from_str(&serde_json::to_string(saved).unwrap()).unwrap();
    let second = Machine::new(start(2, 2), saved).handle(Duration::ZERO, Event::Tick);
    let [Command::Sign(again), ..] = second.as_slice() else { panic!("{second:?}") };
    assert_eq!(again, before);
}

proptest! {
    #[test]
    fn terms_that_differ_are_named_and_have_other_bytes(which in 0..12_usize) {
        let mut other = terms();
        match which {
            0 => other.protocol += 1,
            1 => other.group.0 += 1,
            2 => other.base.0[0] += 1,
            3 => other.layout.0[0] += 1,
            4 => other.codec.push('x'),
            5 => other.reduction.push('x'),
            6 => other.roster.0[0] ^= 1,
            7 => other.chunks += 1,
            8 => other.min_group += 1,
            9 => other.target_group += 1,
            10 => other.max_faults += 1,
            _ => other.deadline_ms += 1,
        }
        prop_assert!(terms().differs(&other).is_some());
        prop_assert_eq!(terms().differs(&terms()), None);
        let bytes = |terms: Terms| {
            let what = Statement::Offer(Offer { terms, gradient: None, callable: true });
            said(1, what).said.bytes()
        };
        prop_assert_ne!(bytes(terms()), bytes(other));
    }

    /// Where one text ends and the next begins is part of the bytes.
    #[test]
    fn texts_cannot_be_moved_from_one_field_to_the_next(text in "[a-z]{2,12}", cut in 1..12_usize) {
        let cut = cut.min(text.len() - 1);
        let bytes = |codec: &str, reduction: &str| {
            let terms =
                Terms { codec: codec.to_owned(), reduction: reduction.to_owned(), ..terms() };
            let what = Statement::Offer(Offer { terms, gradient: None, callable: true });
            said(1, what).said.bytes()
        };
        prop_assert_ne!(bytes(&text, ""), bytes(&text[..cut], &text[cut..]));
    }
}
