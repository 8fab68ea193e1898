//! The middle of a merge: agree with the others, and have the reduced slices here.

use std::{sync::Arc, time::Duration};

use checkpoint::OuterSgd;
use domain::Hotkey;
use merge::{Data, Ended, Gradient, Merged, Outcome as End, PROTOCOL, Roster, Saved, Start, Terms};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Task, keeping::patiently};
use crate::{
    chunks::{Chunks, Cut},
    gradient::Local,
    guests::{Limits, Open},
    keep::{Keeper, Kept},
    merger::{Clock, Handle, Hands, Merger, Note, clock::wall, hands::Tools},
    model::Model as Base,
    reduction::Reducer,
    report::{Failure, LeftOut, Outcome, Report},
    round::State,
    shelf::Shelf,
    step::ReducedVector,
};

impl Task {
    /// Agrees with the others on a result; `report` is filled, whatever comes of it.
    pub(super) async fn agree(
        &self,
        base: &Base,
        local: Local,
        report: &mut Report,
    ) -> Result<ReducedVector, Failure> {
        let keeper = Arc::new(self.take().await?);
        let (clock, kept) = self.resume(&keeper).await?;
        let roster = self.plan.roster();
        let cut = base.cut(self.config.codec, self.config.chunk_elements);
        let reducer = Reducer::new(&self.config.reduction, cut, self.weights(&roster));
        let terms = self.terms(base, cut, &reducer, &roster);
        report.terms = Some(terms.clone());

        let shelf = Shelf::new(self.folder.join("chunks"))
            .map_err(|error| Failure::Scratch(format!("make a folder for chunks: {error}")))?;
        let gradient = local.chunks.as_ref().map(|chunks| Gradient {
            bytes: cut.bytes(0..cut.chunks()),
            chunks: merge::Digest::of_chunks(chunks.list()),
        });
        if let Some(own) = local.chunks {
            shelf.set_own(own);
        }
        let start = Start {
            round: self.plan.round,
            me: self.plan.hotkey.clone(),
            terms,
            roster,
            gradient,
            callable: self.config.callable,
            allow_solo: self.plan.allow_solo,
            secret: rand::random(),
            audits: self.config.audits,
            incarnation: wall(),
        };
        let tools = Tools {
            me: self.plan.hotkey.clone(),
            cut,
            reducer,
            shelf,
            caller: self.caller.clone(),
            signer: self.signer.clone(),
            conduct: Arc::clone(&self.conduct),
            answer_wait: self.config.answer_wait,
            deadline: self.plan.deadline,
            audits: self.config.audits,
        };
        let (merger, handle, ended) =
            Merger::new(start, clock, Arc::clone(&keeper), kept, |asks| Hands::new(tools, asks));
        let hands = merger.hands();
        self.open(&handle);
        self.shown.send_modify(|shown| {
            shown.state = State::Merging;
            shown.merging = Some(handle);
        });
        self.drive(merger, keeper);
        let end = ended.await.map_err(|_| match self.stop.is_cancelled() {
            true => Failure::Stopping,
            false => Failure::TakenOver,
        })?;
        self.fill(report, &end, &hands);
        let slices = match end.ended {
            Ended::Failed(failure) => return Err(failure.into()),
            Ended::Solo => vec![hands.alone().await.map_err(reducing)?],
            Ended::Merged(merged) => parts(&merged, &hands)?,
        };
        report.reduced.influence = hands.tally().report();
        ReducedVector::new(hands.result_cut(), slices)
    }

    /// Lets the others of the round in.
    fn open(&self, handle: &Handle) {
        let others = self.plan.validators.keys().cloned();
        let limits =
            Limits { requests: self.config.max_requests, transfers: self.config.max_transfers };
        let (round, me) = (self.plan.round, self.plan.hotkey.clone());
        let merging = Arc::new(handle.clone());
        self.desk.open(Open::new(round, me, others, limits, merging, self.stop.clone()));
    }

    /// Waits until no other service of this validator has the merge.
    async fn take(&self) -> Result<Keeper, Failure> {
        let mut told = false;
        let until = self.patience();
        loop {
            let take = async || Ok(Keeper::take(&self.store, self.plan.deadline).await?);
            if let Some(keeper) = patiently(until, take).await? {
                return Ok(keeper);
            }
            if !told {
                info!("another service of this validator has the merge: waiting for its lease");
                told = true;
            }
            if Instant::now() >= until {
                return Err(Failure::TakenOver);
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// What an earlier run of the round has said, and when the merge began.
    async fn resume(&self, keeper: &Keeper) -> Result<(Clock, Kept), Failure> {
        let round = self.plan.round;
        let find = async || Ok(keeper.find(round).await?);
        let kept = patiently(self.patience(), find).await?;
        let forget = async || Ok(keeper.forget_before(round).await?);
        patiently(self.patience(), forget).await?;
        Ok(match kept {
            Some(kept) => {
                info!(said = kept.saved.said.len(), "going on with what was said before");
                (Clock::since(kept.began), kept)
            }
            None => {
                let began = self.clock.began();
                (self.clock, Kept { round, began, saved: Saved::default() })
            }
        })
    }

    fn terms(&self, base: &Base, cut: Cut, reducer: &Reducer, roster: &Roster) -> Terms {
        let config = &self.config;
        let optimizer = OuterSgd::from(&config.optimizer);
        Terms {
            protocol: PROTOCOL,
            group: self.plan.group,
            base: self.plan.base.model_hash,
            layout: base.layout_digest(&optimizer),
            codec: cut.name(),
            reduction: reducer.name(),
            roster: roster.digest(),
            chunks: cut.chunks(),
            min_group: config.min_group,
            target_group: config.target_group,
            max_faults: config.max_faults,
            deadline_ms: u64::try_from(self.plan.deadline.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn weights(&self, roster: &Roster) -> std::collections::BTreeMap<Hotkey, f64> {
        // Where nobody has any stake all count alike.
        let staked = roster.0.values().any(|stake| *stake > 0);
        let by_stake = self.config.reduction.weigh_by_stake && staked;
        let weight = |stake: u64| if by_stake { stake as f64 } else { 1.0 };
        roster.0.iter().map(|(hotkey, stake)| (hotkey.clone(), weight(*stake))).collect()
    }

    /// Has the merge go on in the background until it is over for everybody.
    fn drive(&self, merger: Merger, keeper: Arc<Keeper>) {
        let stop = self.stop.clone();
        let (artifacts, key) = (self.artifacts.clone(), self.plan.round_key("proofs.json"));
        let run = async move {
            let proofs = tokio::select! {
                proofs = merger.run() => proofs.unwrap_or_default(),
                () = keeper.hold() => {
                    warn!("the lease on the merge is lost");
                    Vec::new()
                }
                () = stop.cancelled() => Vec::new(),
            };
            if let Some(keeper) = Arc::into_inner(keeper) {
                keeper.release().await;
            }
            if proofs.is_empty() {
                return;
            }
            let kept = match serde_json::to_vec_pretty(&proofs) {
                Ok(json) => artifacts.put_bytes(&key, json.into()).await.map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = kept {
                warn!(%error, key, "proofs against members could not be kept");
            }
        };
        use tracing::Instrument as _;
        self.stop.spawn(run.instrument(tracing::Span::current()));
    }

    /// Says in the report what has come of it.
    fn fill(&self, report: &mut Report, end: &End, hands: &Hands) {
        let reduced = &mut report.reduced;
        let notes = hands.notes();
        let left_out = |one: &merge::LeftOut| {
            let detail = notes.get(&one.hotkey).map(|Note { detail, .. }| detail.clone());
            LeftOut {
                hotkey: one.hotkey.clone(),
                reason: one.reason.clone(),
                detail: detail.unwrap_or_default(),
            }
        };
        reduced.dropped = end.dropped.iter().map(left_out).collect();
        reduced.proofs.clone_from(&end.proofs);
        for proof in &end.proofs {
            warn!(peer = %proof.against(), reason = proof.reason(), "proven to have broken the rules");
        }
        match &end.ended {
            Ended::Merged(merged) => {
                reduced.outcome = Outcome::Merged;
                reduced.members = merged.members.keys().cloned().collect();
                reduced.participants.clone_from(&merged.participants);
                reduced.signers.clone_from(&merged.signers);
                reduced.digest = merged.digest.to_string();
                reduced.parts.clone_from(&merged.parts);
            }
            Ended::Solo => {
                reduced.outcome = Outcome::Solo;
                reduced.members = vec![self.plan.hotkey.clone()];
                reduced.participants.clone_from(&reduced.members);
            }
            Ended::Failed(_) => {}
        }
    }
}

fn reducing(error: std::io::Error) -> Failure {
    Failure::Write(format!("reduce the own gradient: {error}"))
}

/// The slices of a result, which the machine has seen to be here.
fn parts(merged: &Merged, hands: &Hands) -> Result<Vec<Chunks>, Failure> {
    let part = |part: &merge::Part| {
        let chunks = hands.chunks_of(&Data::Reduced(part.statement));
        chunks.ok_or_else(|| Failure::Write(format!("the slice of {} is gone", part.owner)))
    };
    merged.parts.iter().map(part).collect()
}
