//! What the owner does at a block: the next thing for every intent that is not finished.
//!
//! Each step stores its result under the fence before it acts on it, so that stopping anywhere in
//! between repeats a question and never a write.

use store::{Lease, Write};
use tracing::{Instrument as _, debug, info, info_span, warn};

use super::{
    Intent, Key, State, all, encode,
    intent::{Attempt, Outcome},
    machine, store_error,
    worker::{Memory, Worker},
};
use crate::{
    chain::{Block, Tips},
    error::Error,
    failure::{Advice, Failure},
    metrics,
    preflight::{self, Verdict},
    submit::{self, Refusal, Search},
};

impl Worker {
    /// Does the next thing for every intent that is not finished.
    pub(super) async fn reconcile(&self, lease: &Lease, memory: &mut Memory) -> Result<(), Error> {
        let mut intents = all(&self.store).await?;
        self.prune(lease, &intents).await?;
        let keys: Vec<Key> = intents.iter().map(|intent| intent.key).collect();
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
            if let Some(by) = machine::superseded_by(intent.key, &keys) {
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
        let hotkey = self.key.hotkey();
        let found = preflight::read_back(&self.chain, hotkey, &intent.payload, block, tips).await?;
        let (state, failure) = machine::after_read_back(intent, &outcome, found);
        if let Some(failure) = failure {
            metrics::intent_failure(intent.key.kind.as_str(), failure.reason());
            intent.last = Some(failure);
        }
        self.save(lease, intent, state).await
    }

    /// Signs and sends an intent, unless the chain's rules or its own state say otherwise.
    async fn send(
        &self,
        lease: &Lease,
        memory: &mut Memory,
        intent: &mut Intent,
        tips: Tips,
    ) -> Result<(), Error> {
        let hotkey = self.key.hotkey();
        match preflight::check(&self.chain, hotkey, intent, &tips.best).await? {
            Verdict::Send => {}
            Verdict::Unchanged { block } => {
                let note = "the chain holds this value already: nothing was sent".to_owned();
                return self.save(lease, intent, State::Done { block, note }).await;
            }
            Verdict::AlreadyThere { block } => {
                let state = State::Included {
                    attempt: None,
                    block: block.number.0,
                    block_hash: block.hash,
                    outcome: Outcome::Success,
                };
                return self.save(lease, intent, state).await;
            }
            Verdict::Wait { until } => {
                self.note(intent, &Failure::RateLimited);
                return self.save(lease, intent, State::Recorded { not_before: until }).await;
            }
            Verdict::Refuse(failure) => return self.fail(lease, intent, failure, tips, None).await,
        }
        let attempt = submit::sign(
            &self.chain,
            &self.key,
            &intent.payload,
            self.target,
            self.policy.mortality,
            tips,
        )
        .await?;
        let bytes = attempt.bytes.clone();
        intent.attempts += 1;
        intent.extrinsic = Some(attempt.hash);
        memory.searched.insert(intent.key, attempt.birth);
        memory.broadcast.insert(intent.key, tips.best.number.0);
        info!(key = %intent.key, extrinsic = %attempt.hash, nonce = attempt.nonce, "sending");
        self.save(lease, intent, State::Submitted { attempt }).await?;
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
        preflight::allowed_at(&self.chain, self.key.hotkey(), &intent.payload, &tips.best).await
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
        let before = std::mem::replace(&mut intent.state, state);
        let stored = encode(intent)?;
        self.store.put_fenced(lease, &intent.key.path(), stored).await.map_err(store_error)?;
        if before.name() != intent.state.name() {
            let (key, state, detail) = (intent.key, intent.state.name(), intent.detail());
            metrics::intent(key.kind.as_str(), state);
            info!(%key, state, block = intent.state.block(), detail, "intent");
        }
        Ok(())
    }

    /// Forgets the oldest finished intents beyond those that are kept.
    async fn prune(&self, lease: &Lease, intents: &[Intent]) -> Result<(), Error> {
        let finished: Vec<_> = intents.iter().filter(|i| i.state.is_finished()).collect();
        let surplus = finished.len().saturating_sub(self.keep);
        if surplus == 0 {
            return Ok(());
        }
        let old = finished.iter().take(surplus).map(|i| Write::Delete(i.key.path())).collect();
        self.store.write_fenced(lease, old).await.map_err(store_error)
    }
}
