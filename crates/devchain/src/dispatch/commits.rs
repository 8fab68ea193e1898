//! `commit_weights` and `reveal_weights`, and the same for mechanisms: first the hash of a row of
//! weights, and in a later epoch the row itself.

use codec::Encode as _;
use scale_decode::DecodeAsType;

use super::weights::{self, SetWeights};
use crate::{
    encode::Failure,
    epoch::{self, Rule},
    refusal::Custom,
    reveal,
    runtime::{MetadataError, blake2_256},
    state::{Account, State, account, number},
    subnet::{self, SUBTENSOR},
};

const COMMITS: &str = "WeightCommits";
/// As many commits of one hotkey wait to be revealed.
pub(super) const MAX_UNREVEALED: usize = 10;

/// A hash, and when it was committed: by the modulo rule the block of the commit and the first
/// and the last block of its reveal, by the stateful rule the epoch and the block of the commit.
type Commit = ([u8; 32], u64, u64, u64);

#[derive(Debug, Clone, PartialEq, DecodeAsType)]
pub(crate) struct CommitWeights {
    netuid: u16,
    commit_hash: [u8; 32],
    #[decode_as_type(skip)]
    pub(super) mecid: u8,
}

#[derive(Debug, Clone, PartialEq, DecodeAsType)]
pub(crate) struct RevealWeights {
    netuid: u16,
    uids: Vec<u16>,
    values: Vec<u16>,
    salt: Vec<u16>,
    version_key: u64,
    #[decode_as_type(skip)]
    pub(super) mecid: u8,
}

impl CommitWeights {
    pub(super) fn check_early(
        &self,
        signer: &Account,
        state: &State<'_>,
    ) -> Result<Result<(), Custom>, MetadataError> {
        if !weights::has_stake(state, self.netuid, signer)? {
            return Ok(Err(Custom::StakeTooLow));
        }
        if let Some(uid) = subnet::uid(state, self.netuid, signer)?
            && !weights::is_in_time(state, self.netuid, self.mecid, uid)?
        {
            return Ok(Err(Custom::RateLimit));
        }
        Ok(Ok(()))
    }

    pub(super) fn dispatch(&self, signer: &Account, state: &mut State<'_>) -> Result<(), Failure> {
        let fail = |error| Err(Failure::subtensor(error));
        let netuid = self.netuid;
        if !weights::has_stake(state, netuid, signer)? {
            return fail("NotEnoughStakeToSetWeights");
        }
        if !subnet::has_mechanism(state, netuid, self.mecid)? {
            return fail("MechanismDoesNotExist");
        }
        if !weights::commit_reveal(state, netuid)? {
            return fail("CommitRevealDisabled");
        }
        let Some(uid) = subnet::uid(state, netuid, signer)? else {
            return fail("HotKeyNotRegisteredInSubNet");
        };
        if !weights::is_in_time(state, netuid, self.mecid, uid)? {
            return fail("CommittingWeightsTooFast");
        }
        let index = subnet::index(netuid, self.mecid);
        let (mut waiting, _) = unexpired(state, netuid, index, signer)?;
        if waiting.len() >= MAX_UNREVEALED {
            return fail("TooManyUnrevealedCommits");
        }
        waiting.push(stamped(state, netuid, self.commit_hash)?);
        keep(state, index, signer, &waiting)?;
        weights::touch(state, index, netuid, uid)?;
        let hash = scale_value::Value::from_bytes(self.commit_hash);
        state.emit(SUBTENSOR, "WeightsCommitted", &[account(signer), number(index), hash])?;
        Ok(())
    }
}

impl RevealWeights {
    pub(super) fn check_early(
        &self,
        signer: &Account,
        state: &State<'_>,
    ) -> Result<Result<(), Custom>, MetadataError> {
        if !weights::has_stake(state, self.netuid, signer)? {
            return Ok(Err(Custom::StakeTooLow));
        }
        let hash = self.hash(signer);
        let index = subnet::index(self.netuid, self.mecid);
        let waiting = commits(state, index, signer)?.unwrap_or_default();
        let Some(commit) = waiting.iter().find(|commit| commit.0 == hash) else {
            return Ok(Err(Custom::CommitNotFound));
        };
        let now = epoch::index(state, self.netuid)?;
        if now != reveal_epoch(state, self.netuid, commit)? {
            return Ok(Err(Custom::NotInRevealRange));
        }
        Ok(Ok(()))
    }

    pub(super) fn dispatch(&self, signer: &Account, state: &mut State<'_>) -> Result<(), Failure> {
        let fail = |error| Err(Failure::subtensor(error));
        let netuid = self.netuid;
        if !weights::has_stake(state, netuid, signer)? {
            return fail("NotEnoughStakeToSetWeights");
        }
        if !weights::commit_reveal(state, netuid)? {
            return fail("CommitRevealDisabled");
        }
        let index = subnet::index(netuid, self.mecid);
        if commits(state, index, signer)?.is_none() {
            return fail("NoWeightsCommitFound");
        }
        let (mut waiting, expired) = unexpired(state, netuid, index, signer)?;
        let hash = self.hash(signer);
        let Some(at) = waiting.iter().position(|commit| commit.0 == hash) else {
            return fail(match expired.iter().any(|commit| commit.0 == hash) {
                true => "ExpiredWeightCommit",
                false if waiting.is_empty() => "NoWeightsCommitFound",
                false => "InvalidRevealCommitHashNotMatch",
            });
        };
        if epoch::index(state, netuid)? != reveal_epoch(state, netuid, &waiting[at])? {
            return fail("RevealTooEarly");
        }
        waiting.drain(..=at);
        keep(state, index, signer, &waiting)?;
        let (uids, values) = (self.uids.clone(), self.values.clone());
        SetWeights::new(netuid, self.mecid, uids, values, self.version_key).set(signer, state)?;
        let hash = scale_value::Value::from_bytes(hash);
        state.emit(SUBTENSOR, "WeightsRevealed", &[account(signer), number(index), hash])?;
        Ok(())
    }

    /// What was committed, if these are the weights.
    fn hash(&self, signer: &Account) -> [u8; 32] {
        let index = subnet::index(self.netuid, self.mecid);
        let row = (signer, index, &self.uids, &self.values, &self.salt, self.version_key);
        blake2_256(&row.encode())
    }
}

/// A commit of the state's block.
fn stamped(state: &State<'_>, netuid: u16, hash: [u8; 32]) -> Result<Commit, MetadataError> {
    let block = u64::from(state.block());
    let epoch = epoch::index(state, netuid)?;
    Ok(match epoch::rule(state) {
        Rule::Stateful => (hash, epoch, block, 0),
        Rule::Modulo => {
            let reveal = epoch.saturating_add(reveal::period(state, netuid)?);
            let (first, last) = epoch::blocks_of(state, netuid, reveal)?;
            (hash, block, first, last)
        }
    })
}

/// The one epoch in which a commit may be revealed.
fn reveal_epoch(state: &State<'_>, netuid: u16, commit: &Commit) -> Result<u64, MetadataError> {
    let made = match epoch::rule(state) {
        Rule::Stateful => commit.1,
        Rule::Modulo => epoch::index_of(state, netuid, commit.1)?,
    };
    Ok(made.saturating_add(reveal::period(state, netuid)?))
}

fn commits(
    state: &State<'_>,
    index: u16,
    signer: &Account,
) -> Result<Option<Vec<Commit>>, MetadataError> {
    state.get(SUBTENSOR, COMMITS, &[number(index), account(signer)])
}

/// The commits that can still be revealed, and those before them that cannot, oldest first.
fn unexpired(
    state: &State<'_>,
    netuid: u16,
    index: u16,
    signer: &Account,
) -> Result<(Vec<Commit>, Vec<Commit>), MetadataError> {
    let mut expired = commits(state, index, signer)?.unwrap_or_default();
    let now = epoch::index(state, netuid)?;
    let mut at = 0;
    while at < expired.len() && now > reveal_epoch(state, netuid, &expired[at])? {
        at += 1;
    }
    let waiting = expired.split_off(at);
    Ok((waiting, expired))
}

fn keep(
    state: &mut State<'_>,
    index: u16,
    signer: &Account,
    waiting: &Vec<Commit>,
) -> Result<(), MetadataError> {
    let keys = [number(index), account(signer)];
    if waiting.is_empty() {
        return state.remove(SUBTENSOR, COMMITS, &keys);
    }
    state.put(SUBTENSOR, COMMITS, &keys, waiting)
}
