//! What a miner scored in its last rounds (protocol, section 6).

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{Hotkey, RoundId, Uid};

/// Rounds that are remembered per UID.
pub const HISTORY_ROUNDS: usize = 8;

/// The score of one round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScoreRecord {
    /// The round.
    pub round: RoundId,
    /// Rank score, 0 or one of [`crate::RANK_SCORES`].
    pub score: f64,
}

/// The last rounds of the hotkey that holds a UID, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MinerHistory {
    hotkey: Hotkey,
    records: VecDeque<ScoreRecord>,
}

impl MinerHistory {
    /// Who earned the scores.
    pub fn hotkey(&self) -> &Hotkey {
        &self.hotkey
    }

    /// The remembered rounds, oldest first.
    pub fn records(&self) -> impl ExactSizeIterator<Item = &ScoreRecord> {
        self.records.iter()
    }

    /// Arithmetic mean of the remembered scores; 0 without any.
    pub fn average(&self) -> f64 {
        if self.records.is_empty() {
            return 0.0;
        }
        self.records.iter().map(|record| record.score).sum::<f64>() / self.records.len() as f64
    }

    /// Whether a round is remembered.
    pub fn has(&self, round: RoundId) -> bool {
        self.records.iter().any(|record| record.round == round)
    }

    /// The newest remembered round.
    pub fn last_round(&self) -> Option<RoundId> {
        self.records.back().map(|record| record.round)
    }
}

/// The histories of all UIDs. Part of the validator's state: it is saved and replayed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History {
    miners: BTreeMap<Uid, MinerHistory>,
}

impl History {
    /// Writes the score of a round. A changed hotkey clears what its predecessor earned. The same
    /// round again replaces its score, so that a replay changes nothing.
    pub fn record(&mut self, uid: Uid, hotkey: &Hotkey, round: RoundId, score: f64) {
        self.observe(uid, hotkey);
        let miner = self
            .miners
            .entry(uid)
            .or_insert_with(|| MinerHistory { hotkey: hotkey.clone(), records: VecDeque::new() });
        miner.records.retain(|record| record.round != round);
        let at = miner.records.partition_point(|record| record.round < round);
        miner.records.insert(at, ScoreRecord { round, score });
        while miner.records.len() > HISTORY_ROUNDS {
            miner.records.pop_front();
        }
    }

    /// Tells that `hotkey` holds `uid` now: clears the history of another one.
    pub fn observe(&mut self, uid: Uid, hotkey: &Hotkey) {
        if self.miners.get(&uid).is_some_and(|miner| miner.hotkey != *hotkey) {
            self.miners.remove(&uid);
        }
    }

    /// What is remembered of a UID.
    pub fn get(&self, uid: Uid) -> Option<&MinerHistory> {
        self.miners.get(&uid)
    }

    /// Every UID with a history, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Uid, &MinerHistory)> {
        self.miners.iter().map(|(uid, miner)| (*uid, miner))
    }
}

#[cfg(test)]
mod tests;
