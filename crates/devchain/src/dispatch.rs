//! The calls this chain carries out. Any other call is included and fails, as a filtered call
//! does on the live chain; its arguments are never decoded.

mod axon;
mod commitments;
mod commits;
mod registration;
mod staking;
mod timelocked;
mod weights;

use scale_decode::DecodeAsFields;
use scale_info::{Variant, form::PortableForm};
use subxt::ext::scale_type_resolver::Field;

pub use self::commitments::Commitment;
pub(crate) use self::{
    commitments::{commit, read as commitment},
    registration::reset as reset_registrations,
    weights::SetWeights,
};
use crate::{
    encode::Failure,
    refusal::Custom,
    runtime::{MetadataError, Runtime},
    state::{Account, State},
};

/// The rules that are the development chain's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) netuid: u16,
    pub(crate) allow_loopback_axons: bool,
    /// Whether the chain's own refusals come at submission, as on chains since spec 240 or so.
    pub(crate) refuse_early: bool,
    /// Whether every epoch gives the permits to those with the most stake.
    pub(crate) permits_by_stake: bool,
}

/// A call with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Call {
    SetWeights(weights::SetWeights),
    ServeAxon(axon::ServeAxon),
    SetCommitment(commitments::SetCommitment),
    CommitWeights(commits::CommitWeights),
    RevealWeights(commits::RevealWeights),
    CommitTimelocked(timelocked::CommitTimelocked),
    BurnedRegister(registration::BurnedRegister),
    AddStake(staking::AddStake),
    Other,
}

impl Call {
    /// Decodes the arguments of the calls that are carried out here.
    pub(crate) fn decode(
        runtime: &Runtime,
        pallet: &str,
        variant: &Variant<PortableForm>,
        args: &[u8],
    ) -> Result<Self, String> {
        Ok(match (pallet, variant.name.as_str()) {
            ("SubtensorModule", "set_weights") => {
                Self::SetWeights(arguments(runtime, variant, args)?)
            }
            ("SubtensorModule", "set_mechanism_weights") => {
                let mut call: weights::SetWeights = arguments(runtime, variant, args)?;
                call.mecid = mecid(runtime, variant, args)?;
                Self::SetWeights(call)
            }
            ("SubtensorModule", "commit_weights") => {
                Self::CommitWeights(arguments(runtime, variant, args)?)
            }
            ("SubtensorModule", "commit_mechanism_weights") => {
                let mut call: commits::CommitWeights = arguments(runtime, variant, args)?;
                call.mecid = mecid(runtime, variant, args)?;
                Self::CommitWeights(call)
            }
            ("SubtensorModule", "reveal_weights") => {
                Self::RevealWeights(arguments(runtime, variant, args)?)
            }
            ("SubtensorModule", "reveal_mechanism_weights") => {
                let mut call: commits::RevealWeights = arguments(runtime, variant, args)?;
                call.mecid = mecid(runtime, variant, args)?;
                Self::RevealWeights(call)
            }
            ("SubtensorModule", "commit_timelocked_weights") => {
                let call: timelocked::CommitTimelocked = arguments(runtime, variant, args)?;
                Self::CommitTimelocked(call.bounded()?)
            }
            ("SubtensorModule", "commit_timelocked_mechanism_weights") => {
                let mut call: timelocked::CommitTimelocked = arguments(runtime, variant, args)?;
                call.mecid = mecid(runtime, variant, args)?;
                Self::CommitTimelocked(call.bounded()?)
            }
            ("SubtensorModule", "burned_register") => {
                Self::BurnedRegister(arguments(runtime, variant, args)?)
            }
            ("SubtensorModule", "add_stake") => Self::AddStake(arguments(runtime, variant, args)?),
            ("SubtensorModule", "serve_axon") => {
                Self::ServeAxon(arguments(runtime, variant, args)?)
            }
            ("Commitments", "set_commitment") => {
                Self::SetCommitment(arguments(runtime, variant, args)?)
            }
            _ => Self::Other,
        })
    }

    /// What the chain refuses before a block is made of it.
    pub(crate) fn check(
        &self,
        signer: &Account,
        state: &State<'_>,
        rules: Rules,
    ) -> Result<Result<(), Custom>, MetadataError> {
        if !rules.refuse_early {
            return Ok(Ok(()));
        }
        match self {
            Self::SetWeights(call) => call.check_early(signer, state),
            Self::ServeAxon(call) => call.check_early(signer, state, rules),
            Self::CommitWeights(call) => call.check_early(signer, state),
            Self::RevealWeights(call) => call.check_early(signer, state),
            Self::CommitTimelocked(call) => call.check_early(signer, state),
            Self::BurnedRegister(call) => call.check_early(state),
            Self::SetCommitment(_) | Self::AddStake(_) | Self::Other => Ok(Ok(())),
        }
    }

    /// Carries the call out. What a failed call wrote is for the caller to undo.
    pub(crate) fn dispatch(
        &self,
        signer: &Account,
        state: &mut State<'_>,
        rules: Rules,
    ) -> Result<(), Failure> {
        match self {
            Self::SetWeights(call) => call.dispatch(signer, state),
            Self::ServeAxon(call) => call.dispatch(signer, state, rules),
            Self::SetCommitment(call) => call.dispatch(signer, state),
            Self::CommitWeights(call) => call.dispatch(signer, state),
            Self::RevealWeights(call) => call.dispatch(signer, state),
            Self::CommitTimelocked(call) => call.dispatch(signer, state),
            Self::BurnedRegister(call) => call.dispatch(signer, state, rules),
            Self::AddStake(call) => call.dispatch(signer, state, rules),
            Self::Other => Err(Failure::Module { pallet: "System", error: "CallFiltered" }),
        }
    }
}

fn arguments<T: DecodeAsFields>(
    runtime: &Runtime,
    variant: &Variant<PortableForm>,
    mut args: &[u8],
) -> Result<T, String> {
    let mut fields = variant.fields.iter().map(|f| Field::new(f.ty.id, f.name.as_deref()));
    let value = T::decode_as_fields(&mut args, &mut fields, runtime.types())
        .map_err(|e| format!("the arguments of {} do not decode: {e}", variant.name))?;
    if args.is_empty() { Ok(value) } else { Err(format!("{} bytes too many", args.len())) }
}

/// The mechanism that a call of its own form names.
fn mecid(runtime: &Runtime, variant: &Variant<PortableForm>, args: &[u8]) -> Result<u8, String> {
    Ok(arguments::<weights::Mechanism>(runtime, variant, args)?.mecid)
}

/// Whether the chain was waiting long enough since `last`, where 0 is never.
fn waited(last: u64, now: u32, limit: u64) -> bool {
    last == 0 || u64::from(now).saturating_sub(last) >= limit
}
