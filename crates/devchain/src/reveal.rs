//! Weights that were committed under a timelock: kept by the epoch of their commit, and opened by
//! the chain itself in the epoch of their reveal.
//!
//! As on the live chain, one whose pulse is missing is tried again in every block of that epoch
//! and forgotten after it, and one that does not open, or that the ordinary checks refuse, is
//! forgotten at once; nothing but the log tells.

use std::collections::BTreeSet;

use codec::Decode as _;

use crate::{
    dispatch::SetWeights,
    encode::Failure,
    epoch, pulses,
    runtime::MetadataError,
    state::{Account, State, number},
    subnet::{self, SUBTENSOR},
};

const COMMITS: &str = "TimelockedWeightCommits";

/// A sealed row of weights: who committed it, in which block, the bytes, and the round.
pub(crate) type Commit = (Account, u64, Vec<u8>, u64);

/// The epochs after that of a commit in which it is revealed.
pub(crate) fn period(state: &State<'_>, netuid: u16) -> Result<u64, MetadataError> {
    Ok(subnet::item(state, "RevealPeriodEpochs", netuid)?.unwrap_or(1))
}

/// The commits of one mechanism in one epoch, oldest first.
pub(crate) fn commits(
    state: &State<'_>,
    index: u16,
    epoch: u64,
) -> Result<Vec<Commit>, MetadataError> {
    Ok(state.get(SUBTENSOR, COMMITS, &[number(index), number(epoch)])?.unwrap_or_default())
}

/// Writes the commits of one mechanism in one epoch.
pub(crate) fn keep(
    state: &mut State<'_>,
    index: u16,
    epoch: u64,
    commits: &Vec<Commit>,
) -> Result<(), MetadataError> {
    let keys = [number(index), number(epoch)];
    if commits.is_empty() {
        return state.remove(SUBTENSOR, COMMITS, &keys);
    }
    state.put(SUBTENSOR, COMMITS, &keys, commits)
}

/// The rounds that commits of the subnet were sealed to.
pub(crate) fn waiting_rounds(
    state: &State<'_>,
    netuid: u16,
) -> Result<BTreeSet<u64>, MetadataError> {
    let mut rounds = BTreeSet::new();
    for mecid in 0..subnet::mechanisms(state, netuid)? {
        let index = subnet::index(netuid, mecid);
        for epoch in epochs(state, index)? {
            rounds.extend(commits(state, index, epoch)?.into_iter().map(|(.., round)| round));
        }
    }
    Ok(rounds)
}

/// The epochs that one mechanism has commits of. The key ends with the plain number.
fn epochs(state: &State<'_>, index: u16) -> Result<Vec<u64>, MetadataError> {
    let keys = state.keys(SUBTENSOR, COMMITS, &[number(index)])?;
    let epoch = |key: Vec<u8>| Some(u64::from_le_bytes(*key.last_chunk()?));
    Ok(keys.into_iter().filter_map(epoch).collect())
}

/// Opens what is due in the state's block, and forgets what is overdue.
pub(crate) fn on_block(state: &mut State<'_>, netuid: u16) -> Result<(), MetadataError> {
    let (epoch, period) = (epoch::index(state, netuid)?, period(state, netuid)?);
    let due = epoch.saturating_sub(period);
    for mecid in 0..subnet::mechanisms(state, netuid)? {
        let index = subnet::index(netuid, mecid);
        for old in epochs(state, index)?.into_iter().filter(|old| *old < due) {
            keep(state, index, old, &Vec::new())?;
        }
        if epoch < period {
            continue;
        }
        let waiting = commits(state, index, due)?;
        if waiting.is_empty() {
            continue;
        }
        let mut unheard = Vec::new();
        for commit in waiting {
            match pulses::signature(state, commit.3)? {
                None => unheard.push(commit),
                Some(signature) => reveal(state, netuid, mecid, &commit, &signature)?,
            }
        }
        keep(state, index, due, &unheard)?;
    }
    Ok(())
}

fn reveal(
    state: &mut State<'_>,
    netuid: u16,
    mecid: u8,
    (who, block, sealed, round): &Commit,
    signature: &[u8],
) -> Result<(), MetadataError> {
    let index = subnet::index(netuid, mecid);
    match open(sealed, signature, who).and_then(|(dests, weights, version_key)| {
        let call = SetWeights::new(netuid, mecid, dests, weights, version_key);
        call.set(who, state).map_err(NotRevealed::Refused)
    }) {
        Ok(()) => {
            let fields = [number(index), crate::state::account(who)];
            state.emit(SUBTENSOR, "TimelockedWeightsRevealed", &fields)
        }
        Err(why) => {
            tracing::debug!(who = %hex::encode(who), block, round, %why, "a commit is forgotten");
            Ok(())
        }
    }
}

/// Why weights never came.
#[derive(Debug, thiserror::Error)]
enum NotRevealed {
    #[error(transparent)]
    Open(#[from] drand::OpenError),
    #[error("the bytes inside are no weights")]
    Payload,
    #[error("the weights inside are of another hotkey")]
    Stranger,
    #[error(transparent)]
    Refused(Failure),
}

type Row = (Vec<u16>, Vec<u16>, u64);

/// UIDs, values and version key, after the hotkey. Commits without a hotkey are of an older form,
/// which the chain still takes.
fn open(sealed: &[u8], signature: &[u8], who: &Account) -> Result<Row, NotRevealed> {
    payload(&drand::open(sealed, signature)?, who)
}

fn payload(bytes: &[u8], who: &Account) -> Result<Row, NotRevealed> {
    let old = || Row::decode(&mut &*bytes).map_err(|_| NotRevealed::Payload);
    let input = &mut &*bytes;
    let Ok((hotkey, dests, weights, version_key)) =
        <(Vec<u8>, Vec<u16>, Vec<u16>, u64)>::decode(input)
    else {
        return old();
    };
    match hotkey.first_chunk::<32>() {
        Some(hotkey) if hotkey == who => Ok((dests, weights, version_key)),
        Some(_) => Err(NotRevealed::Stranger),
        None => old(),
    }
}

#[cfg(test)]
mod tests {
    use codec::Encode as _;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_row_or_a_named_reason(bytes: Vec<u8>, cut in 0usize..200) {
            let _ = payload(&bytes, &[7; 32]);
            let real = (vec![7u8; 32], vec![1u16; 9], vec![2u16; 9], 3u64).encode();
            let _ = payload(&real[..cut.min(real.len())], &[7; 32]);
        }

        #[test]
        fn a_row_is_set_for_its_own_hotkey_only(
            who: Account,
            other: Account,
            uids: Vec<u16>,
            values: Vec<u16>,
            key: u64,
        ) {
            prop_assume!(who != other);
            let bytes = (who.to_vec(), &uids, &values, key).encode();
            prop_assert_eq!(payload(&bytes, &who).unwrap(), (uids, values, key));
            prop_assert!(matches!(payload(&bytes, &other), Err(NotRevealed::Stranger)));
        }
    }

    #[test]
    fn the_older_form_without_a_hotkey_is_taken_too() {
        let row = (vec![1u16, 2], vec![3u16, 4], 5u64);
        assert_eq!(payload(&row.encode(), &[7; 32]).unwrap(), row);
    }
}
