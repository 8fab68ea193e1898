//! `commit_timelocked_weights`, and the same for mechanisms: weights that the chain opens by
//! itself when their round of drand has come.

use scale_decode::DecodeAsType;

use super::{commits::MAX_UNREVEALED, weights};
use crate::{
    encode::Failure,
    epoch, pulses,
    refusal::Custom,
    reveal,
    runtime::{MetadataError, blake2_256},
    state::{Account, State, account, number},
    subnet::{self, SUBTENSOR},
};

/// The version of commits where the runtime does not say.
const DEFAULT_VERSION: u16 = 4;

#[derive(Debug, Clone, PartialEq, DecodeAsType)]
pub(crate) struct CommitTimelocked {
    netuid: u16,
    commit: Vec<u8>,
    reveal_round: u64,
    commit_reveal_version: u16,
    #[decode_as_type(skip)]
    pub(super) mecid: u8,
}

/// What is wrong with a commit, by both roads on which the chain says so.
type Fault = (&'static str, Custom);

impl CommitTimelocked {
    /// The live runtime cannot decode a longer commit.
    pub(super) fn bounded(self) -> Result<Self, String> {
        match self.commit.len() {
            length if length > drand::MAX_SEALED => Err(format!("a commit of {length} bytes")),
            _ => Ok(self),
        }
    }

    pub(super) fn check_early(
        &self,
        signer: &Account,
        state: &State<'_>,
    ) -> Result<Result<(), Custom>, MetadataError> {
        Ok(self.fault(signer, state)?.map_or(Ok(()), |(_, custom)| Err(custom)))
    }

    fn fault(&self, signer: &Account, state: &State<'_>) -> Result<Option<Fault>, MetadataError> {
        if !weights::has_stake(state, self.netuid, signer)? {
            return Ok(Some(("NotEnoughStakeToSetWeights", Custom::StakeTooLow)));
        }
        if self.reveal_round < pulses::last_round(state)? {
            return Ok(Some(("InvalidRevealRound", Custom::BadRevealRound)));
        }
        Ok(None)
    }

    pub(super) fn dispatch(&self, signer: &Account, state: &mut State<'_>) -> Result<(), Failure> {
        let fail = |error| Err(Failure::subtensor(error));
        let netuid = self.netuid;
        if let Some((error, _)) = self.fault(signer, state)? {
            return fail(error);
        }
        if !subnet::has_mechanism(state, netuid, self.mecid)? {
            return fail("MechanismDoesNotExist");
        }
        if !weights::commit_reveal(state, netuid)? {
            return fail("CommitRevealDisabled");
        }
        let version = state.get(SUBTENSOR, "CommitRevealWeightsVersion", &[])?;
        if self.commit_reveal_version != version.unwrap_or(DEFAULT_VERSION) {
            return fail("IncorrectCommitRevealVersion");
        }
        let Some(uid) = subnet::uid(state, netuid, signer)? else {
            return fail("HotKeyNotRegisteredInSubNet");
        };
        if !weights::is_in_time(state, netuid, self.mecid, uid)? {
            return fail("CommittingWeightsTooFast");
        }
        let index = subnet::index(netuid, self.mecid);
        let epoch = epoch::index(state, netuid)?;
        let mut waiting = reveal::commits(state, index, epoch)?;
        if waiting.iter().filter(|(who, ..)| who == signer).count() >= MAX_UNREVEALED {
            return fail("TooManyUnrevealedCommits");
        }
        let block = state.block().into();
        waiting.push((*signer, block, self.commit.clone(), self.reveal_round));
        reveal::keep(state, index, epoch, &waiting)?;
        weights::touch(state, index, netuid, uid)?;
        let hash = scale_value::Value::from_bytes(blake2_256(&self.commit));
        let fields = [account(signer), number(index), hash, number(self.reveal_round)];
        state.emit(SUBTENSOR, "TimelockedWeightsCommitted", &fields)?;
        Ok(())
    }
}
