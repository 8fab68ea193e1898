//! What gateways remember together of attempts on a file: each ends in a mark, so that no gateway repeats
//! what another has found out, and nothing is tried for ever.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use domain::{BlockNumber, Hotkey, RoundId};
use serde::{Deserialize, Serialize};
use store::{Store, StoreError};

/// Most blocks between two attempts.
const FARTHEST: u64 = 8;

/// How an attempt ended that brought nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    /// Why.
    pub(crate) reason: String,
    /// Whether that is the miner's fault: then it was the last one.
    pub(crate) settled: bool,
    /// Newest block when it ended.
    pub(crate) block: BlockNumber,
}

/// All attempts on one miner's file in a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attempts(Vec<Attempt>);

impl Attempts {
    /// How many there were.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Why the last one brought nothing.
    pub(crate) fn last_reason(&self) -> Option<&str> {
        self.0.last().map(|attempt| attempt.reason.as_str())
    }

    /// Whether nothing more is to be found out: at most `most` attempts are made.
    pub(crate) fn are_over(&self, most: u32) -> bool {
        self.0.iter().any(|attempt| attempt.settled) || self.0.len() >= most as usize
    }

    /// Whether the next one may begin at `block`: they are farther apart each time.
    pub(crate) fn are_due(&self, block: BlockNumber) -> bool {
        self.0.last().is_none_or(|last| {
            let doubled = 1u64.checked_shl(u32::try_from(self.0.len() - 1).unwrap_or(u32::MAX));
            let wait = doubled.unwrap_or(FARTHEST).min(FARTHEST);
            block.0 >= last.block.0.saturating_add(wait)
        })
    }
}

fn key(round: RoundId, hotkey: &Hotkey, number: usize) -> String {
    // Marks are listed in the order of their text.
    format!("hub/{round}/{hotkey}/{number:04}")
}

/// What is remembered of a round.
pub(crate) async fn of_round(
    store: &Store,
    round: RoundId,
) -> Result<BTreeMap<Hotkey, Attempts>, StoreError> {
    let prefix = format!("hub/{round}/");
    let mut found: BTreeMap<Hotkey, Attempts> = BTreeMap::new();
    for (key, value) in store.list(&prefix).await? {
        let hotkey =
            key.strip_prefix(&prefix).and_then(|rest| rest.split('/').next()?.parse().ok());
        let attempt = serde_json::from_slice(&value).ok();
        if let Some((hotkey, attempt)) = hotkey.zip(attempt) {
            found.entry(hotkey).or_default().0.push(attempt);
        }
    }
    Ok(found)
}

/// What is remembered of one miner.
pub(crate) async fn of_miner(
    store: &Store,
    round: RoundId,
    hotkey: &Hotkey,
) -> Result<Attempts, StoreError> {
    let marks = store.list(&format!("hub/{round}/{hotkey}/")).await?;
    Ok(Attempts(marks.iter().filter_map(|(_, value)| serde_json::from_slice(value).ok()).collect()))
}

/// Remembers attempt `number`. Returns whether nobody had.
pub(crate) async fn remember(
    store: &Store,
    (round, hotkey, number): (RoundId, &Hotkey, usize),
    attempt: &Attempt,
    ttl: Duration,
) -> Result<bool, StoreError> {
    let value = serde_json::to_vec(attempt).unwrap_or_default();
    store.put_if_absent(&key(round, hotkey, number), Bytes::from(value), Some(ttl)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(settled: bool, block: u64) -> Attempt {
        Attempt { reason: "hub_unreachable".into(), settled, block: BlockNumber(block) }
    }

    #[test]
    fn attempts_are_farther_apart_each_time_and_end() {
        let mut attempts = Attempts::default();
        assert!(attempts.are_due(BlockNumber(0)));
        let (mut block, mut waits) = (100, Vec::new());
        while !attempts.are_over(6) {
            attempts.0.push(attempt(false, block));
            let due = (block..).find(|block| attempts.are_due(BlockNumber(*block))).unwrap();
            waits.push(due - block);
            block = due;
        }
        assert_eq!(waits, [1, 2, 4, 8, 8, 8]);
        assert!(Attempts(vec![attempt(true, 1)]).are_over(6));
    }

    #[tokio::test]
    async fn gateways_remember_together_and_each_attempt_once() {
        let (store, hotkey) = (Store::in_memory(), Hotkey::from_public_key([1; 32]));
        let (round, ttl) = (RoundId(336), Duration::from_secs(60));
        for (number, new) in [(0, true), (0, false), (1, true)] {
            let said = attempt(false, 340 + number as u64);
            let first = remember(&store, (round, &hotkey, number), &said, ttl).await.unwrap();
            assert_eq!(first, new);
        }
        let of_round = of_round(&store, round).await.unwrap();
        let of_miner = of_miner(&store, round, &hotkey).await.unwrap();
        assert_eq!(of_round.get(&hotkey), Some(&of_miner));
        assert_eq!(of_miner.0, [attempt(false, 340), attempt(false, 341)]);
    }
}
