//! How the submissions of a round stand to each other while it goes on: who is whose duplicate, and
//! whom another one must beat to be paid.

use std::collections::{BTreeMap, BTreeSet};

use super::{Miner, Policy, Round, Verdict};
use crate::{
    BlockNumber, Compared, DuplicateGroup, Hotkey, OwnData, RANK_SCORES, Rival, combined_seed,
    duplicates,
};

/// Equal and nearly equal submissions among those that were measured to their end.
pub(super) fn groups(round: &Round, policy: &Policy) -> Vec<DuplicateGroup> {
    let Some(frozen) = &round.frozen else { return Vec::new() };
    let committed: BTreeMap<&Hotkey, BlockNumber> =
        frozen.inputs.commit_1.iter().map(|c| (&c.hotkey, c.block)).collect();
    let compared = round.miners.iter().filter_map(|(hotkey, miner)| match &miner.verdict {
        Some(Verdict::Measured { raw, sketch, .. }) => {
            let compared = Compared {
                raw: *raw,
                model_hash: miner.submission.as_ref().map(|submission| submission.model_hash),
                sketch: sketch.as_ref(),
                committed_at: committed.get(hotkey).copied(),
            };
            Some((hotkey.clone(), compared))
        }
        Some(Verdict::OutOfReach { .. } | Verdict::Invalid(_)) | None => None,
    });
    let seeds: Vec<(&Hotkey, u64)> =
        frozen.validators.iter().map(|v| (&v.hotkey, v.seed)).collect();
    duplicates(&compared.collect(), &policy.duplicates, &combined_seed(&seeds))
}

/// Whether it scores 0 for being overfitted.
pub(super) fn is_overfitted(miner: &Miner, policy: &Policy) -> bool {
    match &miner.verdict {
        Some(Verdict::Measured { own: Some(own), .. }) => {
            policy.own_data.enforce && own.says == Some(OwnData::Overfitted)
        }
        Some(Verdict::Measured { own: None, .. } | Verdict::OutOfReach { .. })
        | Some(Verdict::Invalid(_))
        | None => false,
    }
}

/// Losses of those from the last paying rank on, best first, as scores would be given now. Whoever
/// does not reach one of them is not paid, unless one of those before it falls.
fn last_paid(round: &Round, policy: &Policy) -> Vec<Vec<f64>> {
    let zeroed: BTreeSet<Hotkey> = groups(round, policy)
        .into_iter()
        .flat_map(|group| {
            let DuplicateGroup { members, kept, .. } = group;
            members.into_iter().filter(move |member| kept.as_ref() != Some(member))
        })
        .collect();
    let mut standing: Vec<(f64, &Vec<f64>)> = round
        .miners
        .iter()
        .filter(|(hotkey, miner)| !zeroed.contains(*hotkey) && !is_overfitted(miner, policy))
        .filter_map(|(_, miner)| match &miner.verdict {
            Some(Verdict::Measured { raw, losses, .. }) if *raw > 0.0 => Some((*raw, losses)),
            Some(Verdict::Measured { .. } | Verdict::OutOfReach { .. } | Verdict::Invalid(_))
            | None => None,
        })
        .collect();
    standing.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    standing.into_iter().skip(RANK_SCORES.len() - 1).map(|(_, losses)| losses.clone()).collect()
}

/// What a submission must beat to be paid as the round stands; none while a rank is free, or where
/// policy has every submission measured to its end.
pub(super) fn rival(round: &Round, policy: &Policy) -> Option<Rival> {
    rivals(round, policy).into_iter().next()
}

/// The same with those behind it: rivals at earlier times.
fn rivals(round: &Round, policy: &Policy) -> Vec<Rival> {
    let Some(stop) = policy.early_stop else { return Vec::new() };
    let rival = |losses| Rival {
        losses,
        confidence: stop.confidence,
        minimum_batches: stop.minimum_batches as usize,
    };
    last_paid(round, policy).into_iter().map(rival).collect()
}

/// The rival that a submission with these losses does not reach: the present one, or one that has
/// been it before and was beaten since. `None` when it was stopped without need.
pub(super) fn beaten_by(losses: &[f64], round: &Round, policy: &Policy) -> Option<Rival> {
    rivals(round, policy).into_iter().find(|rival| rival.is_out_of_reach(losses))
}

/// Whose evaluation was stopped for a rival that is one no more: it turned out to be somebody's
/// duplicate.
pub(super) fn stopped_without_rival(round: &Round, policy: &Policy) -> BTreeSet<Hotkey> {
    let stopped = |miner: &Miner| match &miner.verdict {
        Some(Verdict::OutOfReach { losses, .. }) => Some(losses.clone()),
        Some(Verdict::Measured { .. } | Verdict::Invalid(_)) | None => None,
    };
    let all: Vec<(&Hotkey, Vec<f64>)> =
        round.miners.iter().filter_map(|(hotkey, miner)| Some((hotkey, stopped(miner)?))).collect();
    if all.is_empty() {
        return BTreeSet::new();
    }
    let rivals = rivals(round, policy);
    let lost = all
        .into_iter()
        .filter(|(_, losses)| !rivals.iter().any(|rival| rival.is_out_of_reach(losses)));
    lost.map(|(hotkey, _)| hotkey.clone()).collect()
}
