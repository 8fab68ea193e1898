//! Reads a validator's states one after the other and says what is new in each.

use std::collections::BTreeMap;

use proto::scheduler::v1::{ChainWrite, Merge, Miner, Round, RoundStage, RoundView};

/// What is new in a state.
#[derive(Debug, Default)]
pub struct News {
    /// A round has begun.
    pub opened: bool,
    /// The inputs were frozen.
    pub frozen: bool,
    /// Miners with a new outcome, or a new loss or score.
    pub miners: Vec<Miner>,
    /// The merge has ended.
    pub merged: Option<Merge>,
    /// Writes that have landed, or failed.
    pub writes: Vec<ChainWrite>,
    /// New degradations.
    pub degradations: Vec<proto::common::v1::Degradation>,
    /// The round has ended.
    pub closed: Option<Closed>,
}

/// A round that one validator has closed.
#[derive(Debug, Clone)]
pub struct Closed {
    /// The validator's place in the list.
    pub validator: usize,
    /// Index of the cycle.
    pub cycle: u64,
    /// Everything about it.
    pub round: Round,
    /// The validator's expert group slice at its end.
    pub model_hash: String,
}

/// What was seen of a validator so far.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    round: Option<Round>,
    closed: BTreeMap<u64, ()>,
}

impl Watcher {
    pub(super) fn take_in(&mut self, validator: usize, view: &RoundView) -> News {
        let mut news = News::default();
        let Some(round) = &view.round else { return news };
        let old = self.round.take().filter(|old| old.round_id == round.round_id);
        news.opened = old.is_none();
        let stage = |round: &Round| round.stage();
        news.frozen = stage(round) >= RoundStage::Evaluating
            && old.as_ref().is_none_or(|old| stage(old) < RoundStage::Evaluating);

        let known: BTreeMap<&str, &Miner> = old
            .iter()
            .flat_map(|old| &old.miners)
            .map(|miner| (miner.hotkey.as_str(), miner))
            .collect();
        news.miners = round
            .miners
            .iter()
            .filter(|miner| {
                known.get(miner.hotkey.as_str()).is_none_or(|old| {
                    (&old.outcome, &old.reason, old.loss, old.score)
                        != (&miner.outcome, &miner.reason, miner.loss, miner.score)
                })
            })
            .cloned()
            .collect();
        if old.as_ref().is_none_or(|old| old.merge.is_none()) {
            news.merged.clone_from(&round.merge);
        }
        let over = |write: &ChainWrite| write.state == "done" || write.state == "failed";
        let was_over = |kind: &str| {
            let writes = old.iter().flat_map(|old| &old.writes);
            writes.filter(|write| write.kind == kind).any(over)
        };
        let landed = round.writes.iter().filter(|write| over(write) && !was_over(&write.kind));
        news.writes = landed.cloned().collect();
        let seen = old.as_ref().map_or(0, |old| old.degradations.len());
        news.degradations = round.degradations.iter().skip(seen).cloned().collect();
        if round.stage() == RoundStage::Closed && self.closed.insert(round.cycle, ()).is_none() {
            let model_hash = view.base.as_ref().map(|base| base.model_hash.clone());
            news.closed = Some(Closed {
                validator,
                cycle: round.cycle,
                round: round.clone(),
                model_hash: model_hash.unwrap_or_default(),
            });
        }
        self.round = Some(round.clone());
        news
    }
}
