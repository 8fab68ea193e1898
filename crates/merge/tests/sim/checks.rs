//! What has to hold.

use std::{collections::BTreeSet, time::Duration};

use merge::{Digest, Ended, Outcome};

use super::{Fault, Keys, Member, World, hotkey};

/// How each member ended, and when.
pub type Ends = Vec<Option<(Duration, Outcome)>>;

/// A member that is killed, given up, slow or cut off has failed too, though it did no wrong.
pub fn is_faulty(member: &Member) -> bool {
    !matches!(member.fault, Fault::None | Fault::Replays)
}

fn digest_of(outcome: &Outcome) -> Option<Digest> {
    match &outcome.ended {
        Ended::Merged(merged) => Some(merged.digest),
        Ended::Solo | Ended::Failed(_) => None,
    }
}

/// What holds in any network: nobody honest is proven guilty, proofs convince, and, where no more lie
/// than the quorum bears, whoever has merged has the same bits.
pub fn check_always(keys: &Keys, members: &[Member], agree: bool, ended: &Ends) {
    let liars: BTreeSet<usize> =
        (0..members.len()).filter(|index| members[*index].fault.lies()).collect();
    let mut digests = BTreeSet::new();
    for (index, end) in ended.iter().enumerate() {
        let Some((_, outcome)) = end.as_ref().filter(|_| !liars.contains(&index)) else { continue };
        for proof in &outcome.proofs {
            let against = proof.verify(keys, keys).expect("a proof convinces");
            assert!(
                liars.iter().any(|liar| hotkey(*liar) == *against),
                "{} is blamed by {index} for {}",
                (0..members.len()).find(|i| hotkey(*i) == *against).unwrap(),
                proof.reason(),
            );
        }
        digests.extend(digest_of(outcome));
    }
    assert!(!agree || digests.len() <= 1, "results differ");
}

/// What holds when the network is timely and no more are faulty than the deadlines have room for.
pub fn check_timely(world: &World, members: &[Member], ended: &Ends) {
    for (index, member) in members.iter().enumerate() {
        if is_faulty(member) {
            continue;
        }
        let (at, outcome) = ended[index].as_ref().unwrap_or_else(|| panic!("{index} never ended"));
        assert!(*at <= world.schedule.end + world.schedule.step, "{index} ended too late");
        let Ended::Merged(merged) = &outcome.ended else {
            panic!("{index} ended with {:?}", outcome.ended);
        };
        for (giver, other) in members.iter().enumerate() {
            if !is_faulty(other) && other.gives {
                assert!(merged.members.contains_key(&hotkey(giver)), "{giver} was left out");
            }
        }
    }
}
