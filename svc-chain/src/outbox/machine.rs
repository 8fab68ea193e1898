//! The rules of the outbox: pure functions from a record and facts to the next state.
//!
//! The one that matters most: a state from which a new extrinsic is signed (`Recorded`) is entered
//! from `Submitted` only when the old one provably can no longer land ([`lost`]), or was refused
//! before any node had it.

use super::intent::{Attempt, Intent, Key, Kind, Outcome, Payload, Slot, State};
use crate::{
    failure::{Advice, Failure},
    weights::Commit,
};

/// Blocks after which an extrinsic that is in no block is handed to a node again.
const REBROADCAST: u64 = 4;

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// Blocks that an extrinsic lives.
    pub(crate) mortality: u64,
    /// Most extrinsics for one intent.
    pub(crate) max_attempts: u32,
}

/// What is known of the final chain, all as of one final block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Final {
    /// Its height; every block from the attempt's birth up to it was searched, in vain.
    pub(crate) searched: u64,
    /// The account's next nonce.
    pub(crate) nonce: u64,
    /// Spec version of its runtime.
    pub(crate) spec: u32,
}

/// Why an attempt can no longer land; `None` while it can.
pub(crate) fn lost(attempt: &Attempt, known: Final) -> Option<Failure> {
    if known.nonce > attempt.nonce {
        // A final extrinsic used its nonce, and it was not this one.
        Some(Failure::Usurped)
    } else if known.searched >= attempt.last_block() {
        Some(Failure::Expired)
    } else if known.spec > attempt.spec {
        // An older one is not there yet: the attempt was signed past an upgrade that is not final.
        let detail = format!(
            "signed for the runtime of spec {}, and spec {} runs now",
            attempt.spec, known.spec
        );
        Some(Failure::BadProof { detail })
    } else {
        None
    }
}

/// Whether to hand an attempt to a node again, which held it last at `broadcast_at`.
pub(crate) fn is_due_again(broadcast_at: Option<u64>, best: u64) -> bool {
    broadcast_at.is_none_or(|at| best >= at + REBROADCAST)
}

/// The state after nothing of an intent can land any more, because of `failure`.
///
/// `best` is the best block, `allowed_at` where the chain's rate limit allows the next one.
pub(crate) fn after_failure(
    intent: &Intent,
    failure: &Failure,
    best: u64,
    allowed_at: Option<u64>,
    policy: Policy,
) -> State {
    let pointless = *failure == Failure::CommitRevealDisabled && intent.key.kind == Kind::Reveal;
    let not_before = match failure.advice() {
        Advice::Never | Advice::Follow => {
            return failed(intent, failure.to_string());
        }
        Advice::Resign { .. } if pointless => return failed(intent, failure.to_string()),
        Advice::Resign { after } => best + after,
        Advice::WhenAllowed => allowed_at.unwrap_or(best + 1).max(best + 1),
    };
    if intent.attempts >= policy.max_attempts {
        let note = format!("given up after {} extrinsics: {failure}", intent.attempts);
        return failed(intent, note);
    }
    State::Recorded { not_before }
}

/// The state of an intent that is refused for good.
pub(crate) fn failed(intent: &Intent, note: String) -> State {
    State::Failed { block: intent.state.block(), note }
}

/// The newest intent that writes over `key`'s slot after it; `None` when `key` is the newest.
/// Reveals write over each other in the order of their commits: see [`reveal_superseded_by`].
pub(crate) fn superseded_by<'a>(key: Key, all: impl IntoIterator<Item = &'a Key>) -> Option<Key> {
    if key.kind.slot() == Slot::Reveal {
        return None;
    }
    all.into_iter()
        .filter(|other| other.kind.slot() == key.kind.slot() && **other > key)
        .max()
        .copied()
}

/// The intent that makes a reveal of `key`'s round pointless at block `best`: weights of a newer
/// round that are known already, or can be from now on.
pub(crate) fn reveal_superseded_by(key: Key, all: &[Intent], best: u64) -> Option<Key> {
    let overtakes = |other: &&Intent| match (&other.payload, &other.state) {
        (_, State::Failed { .. }) => false,
        (Payload::Reveal(reveal), State::Recorded { .. }) => reveal.opens <= best,
        (Payload::Weights { .. }, State::Recorded { .. }) => false,
        (
            Payload::Reveal(_),
            State::Submitted { .. } | State::Included { .. } | State::Done { .. },
        ) => true,
        (
            Payload::Weights { .. },
            State::Submitted { .. } | State::Included { .. } | State::Done { .. },
        ) => other.how == Some(Commit::Plain),
        (Payload::Commitment { .. } | Payload::Axon { .. }, _) => false,
    };
    let newer = all.iter().filter(|other| other.key.round > key.round);
    newer.filter(overtakes).map(|other| other.key).max()
}

/// The intent that weights of the stale guard would be written over, and must not: a round's own
/// that are still on their way.
pub(crate) fn guarded<'a>(
    key: Key,
    payload: &Payload,
    all: impl IntoIterator<Item = &'a Intent>,
) -> Option<Key> {
    if key.kind.slot() != Slot::Weights || !payload.is_stale_guard() {
        return None;
    }
    let own = |other: &&Intent| {
        matches!(other.payload, Payload::Weights { stale_guard: false, .. })
            && !other.state.is_finished()
    };
    all.into_iter().filter(own).map(|other| other.key).max()
}

/// The finished intents to forget, oldest first, so that `keep` of them stay. Weights that a reveal
/// on its way may not be written over are kept until it is finished.
pub(crate) fn forgettable(all: &[Intent], keep: usize) -> Vec<Key> {
    let reveals = all.iter().filter(|i| i.key.kind == Kind::Reveal && !i.state.is_finished());
    let oldest = reveals.map(|reveal| reveal.key.round).min();
    let needed = |intent: &Intent| {
        matches!(intent.key.kind.slot(), Slot::Weights | Slot::Reveal)
            && oldest.is_some_and(|oldest| intent.key.round > oldest)
    };
    let finished: Vec<_> = all.iter().filter(|i| i.state.is_finished()).collect();
    let surplus = finished.len().saturating_sub(keep);
    finished.into_iter().take(surplus).filter(|i| !needed(i)).map(|i| i.key).collect()
}

/// The state of an intent whose block is no longer on the best chain.
pub(crate) fn after_reorganisation(attempt: Option<&Attempt>) -> State {
    match attempt {
        Some(attempt) => State::Submitted { attempt: attempt.clone() },
        None => State::Recorded { not_before: 0 },
    }
}

/// The state of an intent whose value was read back from a final block.
pub(crate) fn after_read_back(
    intent: &Intent,
    outcome: &Outcome,
    found: Result<String, String>,
) -> (State, Option<Failure>) {
    match found {
        Ok(note) => (State::Done { block: intent.state.block(), note }, None),
        Err(detail) => {
            let failure = match outcome {
                Outcome::Unknown => Failure::OutcomeUnknown,
                Outcome::Success | Outcome::Failed { .. } => Failure::ReadBackMismatch { detail },
            };
            (failed(intent, failure.to_string()), Some(failure))
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::{BlockHash, RoundId};
    use proptest::prelude::*;

    use super::*;
    use crate::weights::{Opening, Reveal};

    const POLICY: Policy = Policy { mortality: 32, max_attempts: 3 };

    fn key(round: u64, kind: Kind) -> Key {
        Key { round: RoundId(round), kind }
    }

    fn attempt() -> Attempt {
        Attempt {
            hash: BlockHash([1; 32]),
            nonce: 7,
            birth: 100,
            period: 32,
            spec: 365,
            bytes: vec![],
        }
    }

    fn submitted(attempts: u32) -> Intent {
        let payload = Payload::Commitment { data: vec![1] };
        let mut intent = Intent::new(key(1, Kind::Seed), payload, 99, None);
        intent.state = State::Submitted { attempt: attempt() };
        intent.attempts = attempts;
        intent
    }

    fn known(searched: u64, nonce: u64, spec: u32) -> Final {
        Final { searched, nonce, spec }
    }

    #[test]
    fn an_extrinsic_is_given_up_only_when_it_can_no_longer_land() {
        let attempt = attempt();
        assert_eq!(lost(&attempt, known(100, 7, 365)), None);
        assert_eq!(lost(&attempt, known(130, 7, 365)), None, "block 131 can still hold it");
        assert_eq!(lost(&attempt, known(131, 7, 365)), Some(Failure::Expired));
        assert_eq!(lost(&attempt, known(105, 8, 365)), Some(Failure::Usurped));
        assert_eq!(lost(&attempt, known(105, 7, 366)).unwrap().reason(), "bad_proof");
        assert_eq!(lost(&attempt, known(105, 7, 364)), None, "an upgrade that is not final yet");
    }

    #[test]
    fn a_rate_limit_waits_for_the_block_where_it_is_allowed() {
        let state = after_failure(&submitted(1), &Failure::RateLimited, 110, Some(150), POLICY);
        assert_eq!(state, State::Recorded { not_before: 150 });
    }

    #[test]
    fn attempts_are_bounded_and_the_last_reason_is_kept() {
        let state = after_failure(&submitted(2), &Failure::Expired, 140, None, POLICY);
        assert_eq!(state, State::Recorded { not_before: 140 });
        let state = after_failure(&submitted(3), &Failure::Expired, 140, None, POLICY);
        let State::Failed { note, .. } = state else { panic!("{state:?}") };
        assert!(note.contains("3 extrinsics") && note.contains("lifetime"), "{note}");
    }

    #[test]
    fn what_cannot_change_is_final_at_once() {
        let state = after_failure(&submitted(1), &Failure::NoPermit, 110, None, POLICY);
        assert!(matches!(state, State::Failed { .. }), "{state:?}");
    }

    #[test]
    fn a_newer_intent_takes_the_slot_and_only_its_own() {
        let all = [
            key(1, Kind::Seed),
            key(1, Kind::SignedHash),
            key(1, Kind::Weights),
            key(2, Kind::Seed),
        ];
        assert_eq!(superseded_by(key(1, Kind::Seed), &all), Some(key(2, Kind::Seed)));
        assert_eq!(superseded_by(key(1, Kind::Weights), &all), None);
        assert_eq!(superseded_by(key(2, Kind::Seed), &all), None);
        assert_eq!(superseded_by(key(0, Kind::Weights), &all), Some(key(1, Kind::Weights)));
    }

    #[test]
    fn an_extrinsic_that_was_reorganised_away_is_followed_again_and_not_replaced() {
        let state = after_reorganisation(Some(&attempt()));
        assert_eq!(state, State::Submitted { attempt: attempt() });
    }

    fn reveal(round: u64, opens: u64, state: State) -> Intent {
        let reveal = Reveal {
            weights: vec![(1, 65535)],
            opens,
            closes: opens + 10,
            opening: Opening::Chain { sealed: vec![1], round: 7 },
            stale_guard: false,
        };
        let payload = Payload::Reveal(reveal);
        Intent { state, ..Intent::new(key(round, Kind::Reveal), payload, 1, None) }
    }

    fn plain(round: u64, stale_guard: bool, state: State) -> Intent {
        let payload = Payload::Weights { weights: vec![(1, 65535)], stale_guard };
        let how = Some(Commit::Plain);
        Intent { state, how, ..Intent::new(key(round, Kind::Weights), payload, 1, None) }
    }

    fn done() -> State {
        State::Done { block: 1, note: String::new() }
    }

    #[test]
    fn reveals_go_in_order_and_an_old_one_is_left_out_once_a_newer_one_can_go() {
        let first = key(1, Kind::Reveal);
        let waiting = || State::Recorded { not_before: 0 };
        let all = [reveal(1, 50, waiting()), reveal(2, 90, waiting())];
        assert_eq!(reveal_superseded_by(first, &all, 89), None, "the newer one cannot go yet");
        assert_eq!(reveal_superseded_by(first, &all, 90), Some(key(2, Kind::Reveal)));
        assert_eq!(reveal_superseded_by(key(2, Kind::Reveal), &all, 90), None);
        let landed = [reveal(1, 50, waiting()), reveal(2, 90, done())];
        assert_eq!(reveal_superseded_by(first, &landed, 60), Some(key(2, Kind::Reveal)));
        let open = [reveal(1, 50, waiting()), plain(2, false, done())];
        assert_eq!(reveal_superseded_by(first, &open, 60), Some(key(2, Kind::Weights)));
        let failed = State::Failed { block: 0, note: String::new() };
        let failed = [reveal(1, 50, waiting()), reveal(2, 50, failed)];
        assert_eq!(reveal_superseded_by(first, &failed, 60), None);
    }

    #[test]
    fn weights_are_not_forgotten_while_an_older_rounds_reveal_could_be_written_over_them() {
        let waits = reveal(1, 50, State::Recorded { not_before: 50 });
        let newer = plain(2, false, done());
        let all = [plain(1, false, done()), waits, newer.clone()];
        assert_eq!(forgettable(&all, 0), [key(1, Kind::Weights)]);
        assert_eq!(forgettable(&all, 2), []);
        let over = [plain(1, false, done()), reveal(1, 50, done()), newer];
        let all_but_one = [key(1, Kind::Weights), key(1, Kind::Reveal)];
        assert_eq!(forgettable(&over, 1), all_but_one);
    }

    #[test]
    fn the_stale_guard_never_takes_the_place_of_a_rounds_own_weights() {
        let guard = Payload::Weights { weights: vec![(2, 65535)], stale_guard: true };
        let own = Payload::Weights { weights: vec![(2, 65535)], stale_guard: false };
        let waits = [plain(1, false, State::Recorded { not_before: 9 })];
        let next = key(2, Kind::Weights);
        assert_eq!(guarded(next, &guard, &waits), Some(key(1, Kind::Weights)));
        assert_eq!(guarded(next, &own, &waits), None);
        assert_eq!(guarded(next, &guard, &[plain(1, false, done())]), None);
        assert_eq!(
            guarded(next, &guard, &[plain(1, true, State::Recorded { not_before: 9 })]),
            None
        );
    }

    #[test]
    fn a_reveal_where_commit_reveal_was_switched_off_is_over_and_weights_take_the_other_road() {
        let off = Failure::CommitRevealDisabled;
        let state = after_failure(&reveal(1, 50, done()), &off, 60, None, POLICY);
        assert!(matches!(state, State::Failed { .. }), "{state:?}");
        let state = after_failure(&plain(1, false, done()), &off, 60, None, POLICY);
        assert_eq!(state, State::Recorded { not_before: 61 });
    }

    proptest! {
        #[test]
        fn while_an_extrinsic_may_land_no_other_is_signed(
            searched in 100_u64..131, nonce in 0_u64..=7,
        ) {
            prop_assert_eq!(lost(&attempt(), known(searched, nonce, 365)), None);
        }

        #[test]
        fn every_failure_leads_to_a_bounded_number_of_extrinsics(
            attempts in 0_u32..10, best in 0_u64..1000, allowed in proptest::option::of(0_u64..2000),
        ) {
            for failure in [Failure::RateLimited, Failure::Expired, Failure::PoolFull, Failure::NoPermit] {
                let state = after_failure(&submitted(attempts), &failure, best, allowed, POLICY);
                if attempts >= POLICY.max_attempts {
                    prop_assert_eq!(state.name(), "failed");
                }
                if let State::Recorded { not_before } = state {
                    prop_assert!(not_before >= best);
                }
            }
        }
    }
}
