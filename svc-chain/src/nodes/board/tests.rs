use domain::{BlockHash, BlockNumber};
use proptest::prelude::*;

use super::*;
use crate::chain::Block;

const POLICY: Policy = Policy {
    max_lag: 2,
    return_after: Duration::from_secs(20),
    breaker: breaker::Policy {
        failures: 3,
        rest: (Duration::from_millis(500), Duration::from_secs(10)),
        trial: Duration::from_secs(5),
    },
};

fn at(seconds: u64) -> Now {
    Duration::from_secs(seconds)
}

fn told(number: u64) -> News {
    let block = |number| Block {
        number: BlockNumber(number),
        hash: BlockHash([0; 32]),
        parent: BlockHash([0; 32]),
    };
    News::Probed(Told { best: block(number), finalized: block(number), spec: 365 })
}

fn answered() -> News {
    News::Answered { latency: Duration::from_millis(1) }
}

fn failed() -> News {
    News::Failed { why: "refused".to_owned() }
}

/// Endpoints that all have told of block 10.
fn well(count: usize) -> Board {
    let mut board = Board::new(count, POLICY);
    for rank in 0..count {
        board.hear(rank, answered(), at(0), 0.5);
        board.hear(rank, told(10), at(0), 0.5);
    }
    assert_eq!(board.current(), Some(0));
    board
}

#[test]
fn the_first_choice_waits_for_those_that_are_preferred() {
    let mut board = Board::new(2, POLICY);
    board.hear(1, answered(), at(0), 0.5);
    assert_eq!(board.current(), None);
    assert_eq!(board.order(at(0)), [1, 0], "it is asked all the same");
    assert_eq!(board.hear(0, failed(), at(1), 0.5), None);
    assert_eq!(board.current(), Some(1));
}

#[test]
fn an_endpoint_that_fails_is_left_at_once_and_taken_again_when_it_was_well_for_a_while() {
    let mut board = well(2);
    let switch = board.hear(0, failed(), at(1), 0.5).unwrap();
    assert_eq!((switch.from, switch.to, switch.why.as_str()), (0, 1, "refused"));
    assert_eq!(board.hear(0, answered(), at(2), 0.5), None);
    assert_eq!(board.hear(0, answered(), at(21), 0.5), None, "19 seconds");
    let switch = board.hear(1, answered(), at(22), 0.5).unwrap();
    assert_eq!((switch.from, switch.to), (1, 0));
}

#[test]
fn an_endpoint_that_comes_and_goes_is_not_followed_back_and_forth() {
    let mut board = well(2);
    let mut switches = 0;
    for round in 0..60 {
        let news = if round % 3 == 0 { failed() } else { answered() };
        switches += usize::from(board.hear(0, news, at(5 * round), 0.5).is_some());
        switches += usize::from(board.hear(1, answered(), at(5 * round), 0.5).is_some());
    }
    assert_eq!(switches, 1);
    assert_eq!(board.current(), Some(1));
}

#[test]
fn an_endpoint_that_loses_its_connections_between_two_questions_is_not_well_for_long() {
    let mut board = well(2);
    board.hear(0, failed(), at(1), 0.5).unwrap();
    for second in (2..60).step_by(2) {
        board.hear(0, News::Reconnected, at(second), 0.5);
        assert_eq!(board.hear(0, answered(), at(second), 0.5), None);
    }
}

#[test]
fn an_endpoint_that_is_behind_is_left_and_one_that_is_one_block_late_is_not() {
    let mut board = well(2);
    assert_eq!(board.hear(1, told(11), at(4), 0.5), None);
    assert_eq!(board.hear(0, told(11), at(8), 0.5), None);
    let switch = board.hear(1, told(13), at(12), 0.5).unwrap();
    assert_eq!((switch.to, switch.why.as_str()), (1, "it is 2 blocks behind"));
    assert_eq!(board.state(0), State::Lagging);
    board.hear(0, told(13), at(16), 0.5);
    assert_eq!(board.state(0), State::Ok);
}

#[test]
fn a_head_that_does_not_move_while_others_do_is_stuck_before_the_second_block_is_missed() {
    let mut board = well(2);
    board.hear(1, News::Head(11), at(12), 0.5);
    for second in [13, 17] {
        assert_eq!(board.hear(0, told(10), at(second), 0.5), None);
    }
    let switch = board.hear(0, told(10), at(21), 0.5).unwrap();
    assert_eq!((switch.from, switch.to), (0, 1));
    assert!(switch.why.contains("no new blocks"), "{}", switch.why);
}

#[test]
fn an_endpoint_of_another_chain_is_never_asked_and_the_last_one_standing_stays() {
    let mut board = well(2);
    let foreign = News::WrongGenesis { why: "genesis".to_owned() };
    assert_eq!(board.hear(0, foreign.clone(), at(1), 0.5).unwrap().to, 1);
    assert_eq!(board.order(at(1)), [1]);
    for _ in 0..5 {
        assert_eq!(board.hear(1, failed(), at(1), 1.0), None, "there is no better one");
    }
    assert_eq!(board.order(at(1)), Vec::<usize>::new(), "it rests");
    assert_eq!(board.order(at(2)), [1]);
    board.hear(1, foreign, at(3), 0.5);
    assert!(board.all_foreign());
}

#[test]
fn a_liar_rests_at_once() {
    let mut board = well(3);
    let lied = News::Lied { why: "its header has another hash".to_owned() };
    assert_eq!(board.hear(0, lied, at(1), 0.5).unwrap().to, 1);
    assert_eq!(board.state(0), State::Resting);
    assert_eq!(board.order(at(1)), [1, 2]);
}

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Hear(usize, u8, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..8).prop_map(Step::Wait),
        (0usize..3, 0u8..7, 0u64..4).prop_map(|(rank, what, n)| Step::Hear(rank, what, n)),
    ]
}

proptest! {
    /// Whatever is heard: the endpoint in use is never a worse one when a well one is there, a
    /// switch always goes from the one that was in use, and between two switches to an endpoint
    /// that is preferred it was well for the time that is asked for.
    #[test]
    fn a_well_endpoint_is_in_use_whenever_there_is_one(
        steps in prop::collection::vec(step(), 1..120)
    ) {
        let (mut board, mut now, mut height) = (well(3), Duration::ZERO, 10);
        let mut left_at: [Option<Now>; 3] = [None; 3];
        for step in steps {
            let (rank, news) = match step {
                Step::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    continue;
                }
                Step::Hear(rank, 0, _) => (rank, failed()),
                Step::Hear(rank, 1, n) => {
                    height += n;
                    (rank, told(height))
                }
                Step::Hear(rank, 2, n) => (rank, told(height.saturating_sub(n))),
                Step::Hear(rank, 3, _) => (rank, News::Lied { why: String::new() }),
                Step::Hear(rank, 4, _) => (rank, News::Reconnected),
                Step::Hear(rank, _, _) => (rank, answered()),
            };
            let before = board.current();
            let switch = board.hear(rank, news, now, 0.5);
            let current = board.current().unwrap();
            match switch {
                Some(switch) => {
                    prop_assert_eq!((Some(switch.from), switch.to), (before, current));
                    prop_assert_ne!(switch.from, switch.to);
                    if board.state(switch.from) == State::Ok {
                        let left = left_at[switch.to].unwrap_or_default();
                        prop_assert!(now - left >= POLICY.return_after);
                    }
                    left_at[switch.from] = Some(now);
                }
                None => prop_assert_eq!(before, Some(current)),
            }
            let best = (0..3).map(|rank| board.state(rank)).min().unwrap();
            if best == State::Ok {
                prop_assert_eq!(board.state(current), State::Ok);
            }
            prop_assert!(board.order(now + POLICY.breaker.rest.1).len() == 3);
        }
    }
}
