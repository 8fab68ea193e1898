//! What must hold after a demonstration, and the report that says whether it does.

use std::collections::BTreeMap;

use anyhow::Context as _;
use checkpoint::{Format, Limits, SliceId};
use client::MinerClient;
use devchain::Included;
use domain::{ExpertGroup, Phase, ValidatorCommitment};
use schnorrkel::signing_context;

use super::{
    report::{Cycle, MinerReport, Report, ValidatorReport},
    setup::Plan,
    subnet::Subnet,
    watch::Closed,
};

/// Makes the report of the first `cycles` cycles, and checks it.
pub async fn check(
    plan: &Plan,
    subnet: &Subnet,
    closed: Vec<Closed>,
    cycles: u64,
) -> anyhow::Result<Report> {
    let extrinsics = subnet.chain.extrinsics().await.context("read the chain's journal")?;
    let mut report = Report::default();
    for cycle in 0..cycles {
        let rounds: BTreeMap<usize, &Closed> = closed
            .iter()
            .filter(|closed| closed.cycle == cycle)
            .map(|closed| (closed.validator, closed))
            .collect();
        report.cycles.push(one_cycle(plan, subnet, cycle, &rounds, &extrinsics).await?);
    }
    let traces = report.cycles.iter().flat_map(|cycle| &cycle.validators);
    report.trace_ids = traces.map(|validator| validator.trace_id.clone()).collect();

    let mut broken = Vec::new();
    for cycle in &report.cycles {
        broken.extend(broken_in(plan, cycle));
    }
    broken.extend(served_is_committed(plan, subnet, &report).await);
    report.ok = broken.is_empty() && report.cycles.len() as u64 == cycles;
    report.broken = broken;
    Ok(report)
}

async fn one_cycle(
    plan: &Plan,
    subnet: &Subnet,
    cycle: u64,
    rounds: &BTreeMap<usize, &Closed>,
    extrinsics: &[Included],
) -> anyhow::Result<Cycle> {
    let mut validators = Vec::new();
    for (n, player) in plan.validators.iter().enumerate() {
        let Some(closed) = rounds.get(&n) else { continue };
        let round = &closed.round;
        let (start, _) =
            plan.schedule.phase_range(domain::CycleIndex(cycle), Phase::ValidatorCommit2);
        let end = start.0 + plan.schedule.cycle_length();
        let weights_of = extrinsics.iter().filter(|extrinsic| {
            extrinsic.signer == *player.hotkey.public_key()
                && extrinsic.call.contains("weights")
                && (start.0..end).contains(&u64::from(extrinsic.block))
        });
        let hashes: Vec<String> = weights_of
            .map(|extrinsic| match &extrinsic.error {
                None => format!("0x{}", hex::encode(extrinsic.hash)),
                Some(error) => format!("0x{} {error}", hex::encode(extrinsic.hash)),
            })
            .collect();
        let key = *player.hotkey.public_key();
        let next = plan.schedule.cycle_start(domain::CycleIndex(cycle + 1)).0;
        let at = u32::try_from(next).ok();
        let commitment = subnet.chain.commitment(key, at).await?;
        let committed = commitment
            .and_then(|found| ValidatorCommitment::parse(&found.data).ok()?.model_hash)
            .map(|hash| hash.to_hex());
        validators.push(ValidatorReport {
            hotkey: player.hotkey.to_string(),
            baseline_before: round.held_out_before,
            baseline_after: round.held_out_after,
            model_hash: closed.model_hash.clone(),
            committed_hash: committed.unwrap_or_default(),
            weights: round
                .weights
                .iter()
                .filter_map(|weight| Some((u16::try_from(weight.uid).ok()?, weight.value)))
                .collect(),
            weight_extrinsics: hashes,
            degradations: round
                .degradations
                .iter()
                .map(|degradation| format!("{}: {}", degradation.kind, degradation.detail))
                .collect(),
            trace_id: kit::trace::trace_id(&round.traceparent).unwrap_or_default().to_owned(),
        });
    }
    let miners = plan.miners.iter().enumerate().map(|(n, player)| {
        let seen: Vec<_> = rounds
            .values()
            .flat_map(|closed| &closed.round.miners)
            .filter(|miner| miner.hotkey == player.hotkey.as_str())
            .collect();
        let found = seen.iter().find(|miner| miner.assigned).or(seen.first());
        MinerReport {
            uid: player.uid,
            hotkey: player.hotkey.to_string(),
            behaviour: plan.behaviours[n].as_str().to_owned(),
            outcome: found.map(|miner| miner.outcome.clone()).unwrap_or_default(),
            reason: found.map(|miner| miner.reason.clone()).unwrap_or_default(),
            loss: found.and_then(|miner| miner.loss),
            score: found.and_then(|miner| miner.score),
        }
    });
    Ok(Cycle { cycle, miners: miners.collect(), validators })
}

/// What did not hold in a cycle.
fn broken_in(plan: &Plan, cycle: &Cycle) -> Vec<String> {
    let mut broken = Vec::new();
    let n = cycle.cycle;
    if cycle.validators.len() != plan.validators.len() {
        broken.push(format!(
            "cycle {n}: {} of {} validators closed it",
            cycle.validators.len(),
            plan.validators.len()
        ));
    }
    for (validator, player) in cycle.validators.iter().zip(&plan.validators) {
        let name = &player.name;
        match (validator.baseline_before, validator.baseline_after) {
            (Some(before), Some(after)) if after < before => {}
            (before, after) => broken.push(format!(
                "cycle {n}: the held-out loss of {name} did not fall: {before:?} → {after:?}"
            )),
        }
        if validator.weight_extrinsics.len() != 1
            || validator.weight_extrinsics.iter().any(|hash| hash.contains(' '))
        {
            broken.push(format!(
                "cycle {n}: {name} did not set weights exactly once: {:?}",
                validator.weight_extrinsics
            ));
        }
        if validator.committed_hash != validator.model_hash {
            broken.push(format!(
                "cycle {n}: {name} has model {} and revealed {}",
                validator.model_hash, validator.committed_hash
            ));
        }
        for (uid, weight) in &validator.weights {
            let honest = plan.behaviour(*uid).is_some_and(|behaviour| behaviour.is_honest());
            if *weight > 0.0 && !honest {
                broken.push(format!("cycle {n}: {name} gave weight {weight} to UID {uid}"));
            }
        }
    }
    let mut hashes: Vec<&str> = cycle.validators.iter().map(|v| v.model_hash.as_str()).collect();
    hashes.sort_unstable();
    hashes.dedup();
    if hashes.len() > 1 {
        broken.push(format!("cycle {n}: the validators have different models: {hashes:?}"));
    }
    broken
}

/// Downloads what every gateway serves, and compares it with what is on chain.
async fn served_is_committed(plan: &Plan, subnet: &Subnet, report: &Report) -> Vec<String> {
    let mut broken = Vec::new();
    let Some(last) = report.cycles.last() else { return broken };
    for (n, validator) in last.validators.iter().enumerate() {
        match served(plan, subnet, n).await {
            Ok(hash) if hash == validator.committed_hash => {}
            Ok(hash) => broken.push(format!(
                "{} serves {hash} and has revealed {}",
                plan.validators[n].name, validator.committed_hash
            )),
            Err(error) => {
                broken.push(format!("{} serves nothing: {error:#}", plan.validators[n].name));
            }
        }
    }
    broken
}

/// Hash of the file that a gateway serves, computed from its bytes.
async fn served(plan: &Plan, subnet: &Subnet, n: usize) -> anyhow::Result<String> {
    let miner = plan.miners.first().context("no miner")?;
    let key = std::sync::Arc::clone(&miner.key);
    let sign = std::sync::Arc::new(move |message: &[u8]| {
        key.sign(signing_context(b"substrate").bytes(message)).to_bytes()
    });
    let client = MinerClient::new(&subnet.gateway(n), miner.hotkey.clone(), sign, None)?;
    let path = plan.folder.join(format!("served-{n}.pt"));
    client.download(SliceId::Group(ExpertGroup(0)), Format::Pt, &path).await?;
    let file = checkpoint::open(&path, Limits::default())?;
    Ok(checkpoint::model_hash(&file)?.to_hex())
}
