use domain::{ExpertGroup, ModelHash, RoundId};
use proptest::prelude::*;

use super::*;
use crate::messages::{Envelope, PROTOCOL};

fn hotkey(index: usize) -> Hotkey {
    Hotkey::from_public_key([index as u8 + 1; 32])
}

fn offer() -> Offer {
    Offer {
        group: ExpertGroup(0),
        base: ModelHash([1; 24]),
        layout: [2; 32],
        has_gradient: true,
        protocol: PROTOCOL,
    }
}

fn meeting(me: usize, count: usize) -> Meeting {
    Meeting::new(hotkey(me), offer(), (0..count).map(hotkey).collect())
}

fn hello(from: usize, offer: Offer, met: BTreeSet<Hotkey>) -> Hello {
    let envelope = Envelope {
        round: RoundId(336),
        sender: hotkey(from),
        receiver: hotkey(0),
        nonce: [0; 16],
        in_reply_to: None,
    };
    Hello { envelope, offer, met }
}

fn set(indices: &[usize]) -> BTreeSet<Hotkey> {
    indices.iter().copied().map(hotkey).collect()
}

/// `from` says hello to `to`, and hears its answer.
fn greet(all: &mut [Meeting], from: usize, to: usize) {
    let said = hello(from, all[from].offer.clone(), all[from].met.clone());
    all[to].hear(&said);
    let answer = hello(to, all[to].offer.clone(), all[to].met.clone());
    all[from].hear(&answer);
}

fn agreed(meeting: &Meeting) -> Option<BTreeSet<Hotkey>> {
    meeting.agreed().map(|members| members.all().iter().cloned().collect())
}

#[test]
fn everybody_meets_everybody_and_agrees_without_waiting_for_the_door_to_close() {
    let mut all: Vec<_> = (0..3).map(|me| meeting(me, 3)).collect();
    for _ in 0..2 {
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            greet(&mut all, from, to);
        }
    }
    for one in &all {
        assert_eq!(agreed(one), Some(set(&[0, 1, 2])));
    }
}

#[test]
fn a_validator_with_nobody_else_is_a_member_alone() {
    assert_eq!(agreed(&meeting(0, 1)), Some(set(&[0])));
}

#[test]
fn nobody_is_given_up_while_the_door_is_open() {
    let mut all = [meeting(0, 3), meeting(1, 3)];
    greet(&mut all, 0, 1);
    greet(&mut all, 0, 1);
    assert_eq!(agreed(&all[0]), None);
    all.iter_mut().for_each(|one| one.advance(Stage::Closed));
    all.iter_mut().for_each(|one| one.advance(Stage::Deciding));
    assert_eq!(agreed(&all[0]), None, "what was told before does not count");
    greet(&mut all, 0, 1);
    assert_eq!(agreed(&all[0]), Some(set(&[0, 1])));
    assert_eq!(all[0].missing(), [(hotkey(2), "not_reached")]);
}

#[test]
fn another_base_group_layout_or_protocol_is_left_out_by_name() {
    let others = [
        (Offer { base: ModelHash([9; 24]), ..offer() }, "other_base"),
        (Offer { group: ExpertGroup(1), ..offer() }, "other_group"),
        (Offer { layout: [9; 32], ..offer() }, "other_layout"),
        (Offer { protocol: PROTOCOL + 1, ..offer() }, "other_protocol"),
    ];
    for (other, reason) in others {
        let mut me = meeting(0, 2);
        me.hear(&hello(1, other, set(&[0, 1])));
        assert_eq!(me.missing(), [(hotkey(1), reason)]);
        assert_eq!(agreed(&me), Some(set(&[0])));
    }
}

#[test]
fn a_validator_that_changes_its_offer_is_left_out_for_good() {
    let mut me = meeting(0, 2);
    me.hear(&hello(1, offer(), set(&[0, 1])));
    me.hear(&hello(1, Offer { has_gradient: false, ..offer() }, set(&[0, 1])));
    me.hear(&hello(1, offer(), set(&[0, 1])));
    assert_eq!(me.missing(), [(hotkey(1), "changed_its_offer")]);
}

#[test]
fn a_stranger_is_never_met() {
    let mut me = meeting(0, 2);
    me.hear(&hello(7, offer(), set(&[0, 7])));
    assert_eq!(me.met(), &set(&[0]));
}

#[test]
fn who_comes_after_the_door_has_closed_waits_for_the_next_round() {
    let mut all = [meeting(0, 3), meeting(1, 3), meeting(2, 3)];
    greet(&mut all, 0, 1);
    all[0].advance(Stage::Closed);
    greet(&mut all, 2, 1);
    greet(&mut all, 2, 0);
    for stage in [Stage::Closed, Stage::Deciding] {
        all.iter_mut().for_each(|one| one.advance(stage));
        for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 1)] {
            greet(&mut all, from, to);
        }
    }
    assert_eq!(agreed(&all[0]), Some(set(&[0, 1])));
    assert_eq!(agreed(&all[1]), Some(set(&[0, 1])));
    assert_eq!(agreed(&all[2]), None);
    assert_eq!(all[0].missing(), [(hotkey(2), "came_late")]);
    assert_eq!(all[1].missing(), [(hotkey(2), "disagrees_on_the_members")]);
}

#[test]
fn who_falls_silent_is_dropped_by_all() {
    let mut all: Vec<_> = (0..4).map(|me| meeting(me, 4)).collect();
    for (from, to) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)] {
        greet(&mut all, from, to);
    }
    for stage in [Stage::Closed, Stage::Deciding, Stage::Dropping] {
        all[..3].iter_mut().for_each(|one| one.advance(stage));
        for (from, to) in [(0, 1), (0, 2), (1, 2), (0, 1)] {
            greet(&mut all, from, to);
        }
    }
    for (one, why) in all[..3].iter().zip(["fell_silent", "fell_silent", "not_reached"]) {
        assert_eq!(agreed(one), Some(set(&[0, 1, 2])));
        assert_eq!(one.missing(), [(hotkey(3), why)]);
    }
}

#[test]
fn who_names_a_member_that_nobody_knows_is_dropped_by_all_others() {
    let mut all: Vec<_> = (0..3).map(|me| meeting(me, 4)).collect();
    for stage in [Stage::Open, Stage::Closed, Stage::Deciding, Stage::Dropping, Stage::Last] {
        all.iter_mut().for_each(|one| one.advance(stage));
        for _ in 0..2 {
            for one in &mut all {
                one.hear(&hello(3, offer(), set(&[0, 1, 2, 3, 9])));
            }
            for (from, to) in [(0, 1), (1, 2), (2, 0)] {
                greet(&mut all, from, to);
            }
        }
    }
    for one in &all {
        assert_eq!(agreed(one), Some(set(&[0, 1, 2])));
    }
}

proptest! {
    #[test]
    fn two_that_count_on_each_other_have_the_same_members_whatever_gets_lost(
        count in 2_usize..6,
        steps in prop::collection::vec((0_usize..6, 0_usize..6, any::<bool>()), 0..200),
    ) {
        let mut all: Vec<_> = (0..count).map(|me| meeting(me, count)).collect();
        let mut ended: Vec<Option<BTreeSet<Hotkey>>> = vec![None; count];
        let fifth = steps.len() / 5 + 1;
        for (at, (from, to, answered)) in steps.into_iter().enumerate() {
            let stages = [Stage::Open, Stage::Closed, Stage::Deciding, Stage::Dropping, Stage::Last];
            let stage = stages[at / fifth];
            all.iter_mut().enumerate().filter(|(me, _)| ended[*me].is_none())
                .for_each(|(_, one)| one.advance(stage));
            let (from, to) = (from % count, to % count);
            if from == to {
                continue;
            }
            // One that has ended answers with its members and hears nothing more.
            let said = hello(from, offer(), all[from].met.clone());
            if ended[to].is_none() {
                all[to].hear(&said);
            }
            if answered && ended[from].is_none() {
                let answer = hello(to, offer(), all[to].met.clone());
                all[from].hear(&answer);
            }
            for me in [from, to] {
                if ended[me].is_none() {
                    ended[me] = agreed(&all[me]);
                }
            }
        }
        for (i, mine) in ended.iter().enumerate() {
            for (j, theirs) in ended.iter().enumerate() {
                let (Some(mine), Some(theirs)) = (mine, theirs) else { continue };
                if mine.contains(&hotkey(j)) && theirs.contains(&hotkey(i)) {
                    prop_assert_eq!(mine, theirs);
                }
            }
        }
    }
}
