//! What the owner does at a block: the next thing for every intent that is not finished.
//!
//! Each step stores its result under the fence before it acts on it, so that stopping anywhere in
//! between repeats a question and never a write. Weights that were committed leave a second intent
//! behind, to be revealed: both are stored in one write.

use store::{Lease, Write};
use tracing::{Instrument as _, debug, info, info_span, warn};

use super::{
    Intent, Key, Kind, Payload, Slot, State, all, encode,
    intent::{Attempt, Outcome},
    machine, newest_sent, store_error,
    worker::{Memory, Worker},
};
use crate::{
    call,
    chain::{Block, BlockId, Tips},
    degradations,
    error::Error,
    failure::{Advice, Failure},
    metrics,
    preflight::Verdict,
    submit::{self, Refusal, Search},
    weights::Reveal,
};

impl Worker {
    /// Does the next thing for every intent that is not finished.
    pub(super) async fn reconcile(&self, lease: &Lease, memory: &mut Memory) -> Result<(), Error> {
        let mut intents = all(&self.store).await?;
        self.prune(lease, &intents).await?;
        let keys: Vec<Key> = intents.iter().map(|intent| intent.key).collect();
        let of_weights =
            |intent: &&Intent| matches!(intent.key.kind.slot(), Slot::Weights | Slot::Reveal);
        let weights: Vec<Intent> = intents.iter().filter(of_weights).cloned().collect();
        intents.retain(|intent| !intent.state.is_finished());
        metrics::intents_open(intents.len());
        if intents.is_empty() {
            return Ok(());
        }
        let tips = self.chain.tips().await?;
        for intent in &mut intents {
            self.follow(lease, memory, intent, tips).await?;
        }
        // Its nonce is the next one of the best block: a second one would have the same.
        let mut under_way =
            intents.iter().any(|intent| matches!(intent.state, State::Submitted { .. }));
        for intent in &mut intents {
            let State::Recorded { not_before } = intent.state else { continue };
            let by = match intent.key.kind.slot() {
                Slot::Reveal => {
                    machine::reveal_superseded_by(intent.key, &weights, tips.best.number.0)
                }
                Slot::Commitment | Slot::Weights | Slot::Axon => {
                    machine::superseded_by(intent.key, &keys)
                }
            };
            if let Some(by) = by {
                let failure = Failure::Superseded { by: by.to_string() };
                self.fail(lease, intent, failure, tips, None).await?;
            } else if !under_way && not_before <= tips.best.number.0 {
                let span = info_span!(
                    "outbox.send",
                    round = intent.key.round.0,
                    kind = intent.key.kind.as_str()
                );
                if let Some(trace) = &intent.trace {
                    kit::trace::attach(&span, trace);
                }
                self.send(lease, memory, intent, tips).instrument(span).await?;
                under_way = matches!(intent.state, State::Submitted { .. });
            }
        }
        Ok(())
    }

    /// Looks where an intent that was sent has got to.
    async fn follow(
        &self,
        lease: &Lease,
        memory: &mut Memory,
        intent: &mut Intent,
        tips: Tips,
    ) -> Result<(), Error> {
        if let State::Submitted { attempt } = intent.state.clone() {
            self.follow_submitted(lease, memory, intent, &attempt, tips).await?;
        }
        if let State::Included { attempt, block, block_hash, outcome } = intent.state.clone() {
            if block > tips.best.number.0 {
                return Ok(());
            }
            let here = self.chain.block(domain::BlockNumber(block)).await?;
            if here.hash != block_hash {
                warn!(key = %intent.key, block, "a reorganisation took the extrinsic's block away");
                memory.searched.remove(&intent.key);
                let state = machine::after_reorganisation(attempt.as_ref());
                return self.save(lease, intent, state).await;
            }
            if tips.finalized.number.0 >= block {
                self.conclude(lease, intent, &here, outcome, tips).await?;
            }
        }
        Ok(())
    }

    async fn follow_submitted(
        &self,
        lease: &Lease,
        memory: &mut Memory,
        intent: &mut Intent,
        attempt: &Attempt,
        tips: Tips,
    ) -> Result<(), Error> {
        let from = memory.searched.get(&intent.key).copied().unwrap_or(attempt.birth);
        match submit::search(&self.chain, self.key.hotkey(), attempt, from, tips).await? {
            Search::Found { block, outcome } => {
                memory.news = None;
                let state = State::Included {
                    attempt: Some(attempt.clone()),
                    block: block.number.0,
                    block_hash: block.hash,
                    outcome,
                };
                self.save(lease, intent, state).await
            }
            Search::Absent(known) => {
                memory.searched.insert(intent.key, known.searched);
                if let Some(failure) = machine::lost(attempt, known) {
                    memory.news = None;
                    return self.fail(lease, intent, failure, tips, None).await;
                }
                let best = tips.best.number.0;
                if machine::is_due_again(memory.broadcast.get(&intent.key).copied(), best) {
                    // It may have landed or be in a pool: what a node says against it proves
                    // nothing.
                    memory.broadcast.insert(intent.key, best);
                    match submit::broadcast(&self.chain, &attempt.bytes).await {
                        Ok(news) => memory.news = Some(news),
                        Err(refusal) => {
                            debug!(key = %intent.key, ?refusal, "node has it or does not want it")
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// Its block is final: reads the value back, or draws the consequence of its failure.
    async fn conclude(
        &self,
        lease: &Lease,
        intent: &mut Intent,
        block: &Block,
        outcome: Outcome,
        tips: Tips,
    ) -> Result<(), Error> {
        if let Outcome::Failed { failure } = outcome {
            let allowed_at = self.allowed_at(intent, &failure, tips).await?;
            return self.fail(lease, intent, failure, tips, allowed_at).await;
        }
        let found = self.preflight().read_back(intent, block, tips).await?;
        let (note, reveal) = match found {
            Ok(found) => (Ok(found.note), found.reveal),
            Err(other) => (Err(other), None),
        };
        let (state, failure) = machine::after_read_back(intent, &outcome, note);
        if let Some(failure) = failure {
            metrics::intent_failure(intent.key.kind.as_str(), failure.reason());
            intent.last = Some(failure);
        }
        let follow_up = reveal.map(|reveal| to_reveal(intent, reveal, tips));
        let writes = match &follow_up {
            Some(follow_up) => vec![Write::Put(follow_up.key.path(), encode(follow_up)?)],
            None => Vec::new(),
        };
        self.save_with(lease, intent, state, writes).await?;
        if let Some(follow_up) = follow_up {
            metrics::intent(follow_up.key.kind.as_str(), "recorded");
            info!(key = %follow_up.key, detail = follow_up.detail(), "intent");
        }
        Ok(())
    }

    /// Signs and sends an intent, unless the chain's rules or its own state say otherwise.
    async fn send(
        &self,
        lease: &Lease,
        memory: &mut Memory,
        intent: &mut Intent,
        tips: Tips,
    ) -> Result<(), Error> {
        // A runtime that lacks something is not signed for; one that has it again is, later.
        self.chain.runtime_ok()?;
        let newest = newest_sent(&self.store, intent.key).await?;
        if let Some(by) = newest.filter(|newest| *newest > intent.key) {
            let failure = Failure::Superseded { by: by.to_string() };
            return self.fail(lease, intent, failure, tips, None).await;
        }
        let how = match self.preflight().check(intent, &tips.best).await? {
            Verdict::Send { how } => how,
            Verdict::Unchanged { block } => {
                let note = "the chain holds this value already: nothing was sent".to_owned();
                // Carried out as well: an older one may not follow it.
                let (done, mark) = (State::Done { block, note }, mark(intent.key)?);
                return self.save_with(lease, intent, done, mark).await;
            }
            Verdict::AlreadyThere { block } => {
                let state = State::Included {
                    attempt: None,
                    block: block.number.0,
                    block_hash: block.hash,
                    outcome: Outcome::Success,
                };
                return self.save_with(lease, intent, state, mark(intent.key)?).await;
            }
            Verdict::Wait { until, why } => {
                if let Some(failure) = why {
                    self.note(intent, &failure);
                }
                return self.save(lease, intent, State::Recorded { not_before: until }).await;
            }
            Verdict::Refuse(failure) => return self.fail(lease, intent, failure, tips, None).await,
        };
        let at = self.chain.at(BlockId::Hash(tips.best.hash)).await?;
        let Some(call) = call::of(&intent.payload, how.as_ref(), self.target, at.metadata_ref())
        else {
            let detail = "this runtime has no call for it".to_owned();
            return self.fail(lease, intent, Failure::NoCommitReveal { detail }, tips, None).await;
        };
        let period = self.policy.mortality;
        let attempt = submit::sign(&self.chain, &self.key, &call, period, tips).await?;
        let bytes = attempt.bytes.clone();
        intent.attempts += 1;
        intent.extrinsic = Some(attempt.hash);
        intent.how = how;
        memory.searched.insert(intent.key, attempt.birth);
        memory.broadcast.insert(intent.key, tips.best.number.0);
        info!(key = %intent.key, extrinsic = %attempt.hash, nonce = attempt.nonce, "sending");
        self.save_with(lease, intent, State::Submitted { attempt }, mark(intent.key)?).await?;
        match submit::broadcast(&self.chain, &bytes).await {
            Ok(news) => memory.news = Some(news),
            // No node ever had these bytes: another extrinsic may take their place.
            Err(Refusal::Refused(failure)) if failure.advice() != Advice::Follow => {
                let allowed_at = self.allowed_at(intent, &failure, tips).await?;
                self.fail(lease, intent, failure, tips, allowed_at).await?;
            }
            Err(Refusal::Refused(_)) => {}
            Err(Refusal::Unknown(why)) => {
                warn!(key = %intent.key, why, "not known whether the node took it");
                memory.broadcast.remove(&intent.key);
            }
        }
        Ok(())
    }

    /// The block where the chain's rate limit allows the next try, for failures that wait for it.
    async fn allowed_at(
        &self,
        intent: &Intent,
        failure: &Failure,
        tips: Tips,
    ) -> Result<Option<u64>, Error> {
        if failure.advice() != Advice::WhenAllowed {
            return Ok(None);
        }
        self.preflight().allowed_at(&intent.payload, &tips.best).await
    }

    /// Nothing of the intent can land any more.
    async fn fail(
        &self,
        lease: &Lease,
        intent: &mut Intent,
        failure: Failure,
        tips: Tips,
        allowed_at: Option<u64>,
    ) -> Result<(), Error> {
        let best = tips.best.number.0;
        let over = failure.advice() == Advice::Never || intent.attempts >= self.policy.max_attempts;
        let overtaken = matches!(failure, Failure::Superseded { .. });
        if intent.key.kind == Kind::Reveal && over && !overtaken {
            let detail = format!("the weights of {}: {failure}", intent.key);
            self.degradations.note(degradations::Kind::RevealSkipped, detail, tips.best.number);
        }
        let state = machine::after_failure(intent, &failure, best, allowed_at, self.policy);
        self.note(intent, &failure);
        self.save(lease, intent, state).await
    }

    fn note(&self, intent: &mut Intent, failure: &Failure) {
        metrics::intent_failure(intent.key.kind.as_str(), failure.reason());
        warn!(key = %intent.key, reason = failure.reason(), %failure, "intent was not carried out");
        intent.last = Some(failure.clone());
    }

    /// Makes a transition: stored under the fence first, told afterwards.
    async fn save(&self, lease: &Lease, intent: &mut Intent, state: State) -> Result<(), Error> {
        self.save_with(lease, intent, state, Vec::new()).await
    }

    /// Makes a transition together with other writes: all of them, or none.
    async fn save_with(
        &self,
        lease: &Lease,
        intent: &mut Intent,
        state: State,
        mut writes: Vec<Write>,
    ) -> Result<(), Error> {
        let before = std::mem::replace(&mut intent.state, state);
        writes.push(Write::Put(intent.key.path(), encode(intent)?));
        self.store.write_fenced(lease, writes).await.map_err(store_error)?;
        if before.name() != intent.state.name() {
            let (key, state, detail) = (intent.key, intent.state.name(), intent.detail());
            metrics::intent(key.kind.as_str(), state);
            info!(%key, state, block = intent.state.block(), detail, "intent");
        }
        Ok(())
    }

    /// Forgets the oldest finished intents beyond those that are kept.
    async fn prune(&self, lease: &Lease, intents: &[Intent]) -> Result<(), Error> {
        let old = machine::forgettable(intents, self.keep);
        if old.is_empty() {
            return Ok(());
        }
        let old = old.into_iter().map(|key| Write::Delete(key.path())).collect();
        self.store.write_fenced(lease, old).await.map_err(store_error)
    }
}

/// The intent to make committed weights known.
fn to_reveal(intent: &Intent, reveal: Reveal, tips: Tips) -> Intent {
    let key = Key { round: intent.key.round, kind: Kind::Reveal };
    let opens = reveal.opens;
    let payload = Payload::Reveal(reveal);
    let mut follow_up = Intent::new(key, payload, tips.best.number.0, intent.trace.clone());
    follow_up.state = State::Recorded { not_before: opens };
    follow_up
}

/// What keeps older intents of the slot from being sent after this one, for good.
fn mark(key: Key) -> Result<Vec<Write>, Error> {
    let Some(path) = key.kind.slot().mark() else { return Ok(Vec::new()) };
    let value = serde_json::to_vec(&key)
        .map_err(|error| Error::StoredIntent { key: key.to_string(), why: error.to_string() })?;
    Ok(vec![Write::Put(path.to_owned(), value.into())])
}
