//! `Commitments.set_commitment`: one slot of a few bytes per hotkey, and a budget per epoch.

use scale_decode::DecodeAsType;
use scale_value::{Composite, Value, ValueDef};

use crate::{
    encode::Failure,
    epoch,
    runtime::MetadataError,
    state::{Account, State, account, number},
    subnet,
};

const PALLET: &str = "Commitments";
/// A commitment costs at least this many bytes of the budget.
const MIN_COST: u64 = 100;
/// The budget where the runtime has none of its own.
const DEFAULT_BUDGET: u32 = 3100;
/// At most as many fields where the runtime does not say.
const DEFAULT_MAX_FIELDS: u32 = 3;

#[derive(Debug, Clone, PartialEq, DecodeAsType)]
pub(crate) struct SetCommitment {
    netuid: u16,
    info: Info,
}

#[derive(Debug, Clone, PartialEq, DecodeAsType)]
struct Info {
    fields: Vec<Value>,
}

/// What a hotkey used of its budget.
#[derive(Debug, Default, DecodeAsType)]
struct Usage {
    last_epoch: u64,
    used_space: u64,
}

impl SetCommitment {
    pub(super) fn dispatch(&self, signer: &Account, state: &mut State<'_>) -> Result<(), Failure> {
        let fail = |error| Err(Failure::Module { pallet: PALLET, error });
        if subnet::uid(state, self.netuid, signer)?.is_none() {
            return fail("AccountNotAllowedCommit");
        }
        if self.info.fields.len() > max_fields(state)? {
            return fail("TooManyFieldsInCommitmentInfo");
        }
        let keys = [number(self.netuid), account(signer)];
        let epoch = epoch::index(state, self.netuid)?;
        let usage: Usage = state.get(PALLET, "UsedSpaceOf", &keys)?.unwrap_or_default();
        let used = if usage.last_epoch == epoch { usage.used_space } else { 0 };
        let length: usize = self.info.fields.iter().map(length).sum();
        let used = used + MIN_COST.max(length as u64);
        let budget: u32 = state.get(PALLET, "MaxSpace", &[])?.unwrap_or(DEFAULT_BUDGET);
        if used > budget.into() {
            return fail("SpaceLimitExceeded");
        }
        let usage =
            Value::named_composite([("last_epoch", number(epoch)), ("used_space", number(used))]);
        state.put(PALLET, "UsedSpaceOf", &keys, &usage)?;
        let fields = Value::unnamed_composite(self.info.fields.iter().cloned());
        state.put(PALLET, "CommitmentOf", &keys, &registration(state, fields))?;
        state.put(PALLET, "LastCommitment", &keys, &state.block())?;
        state.emit(PALLET, "Commitment", &keys)?;
        Ok(())
    }
}

/// What the slot of a hotkey holds.
fn registration(state: &State<'_>, fields: Value) -> Value {
    Value::named_composite([
        ("deposit", number(0u8)),
        ("block", number(state.block())),
        ("info", Value::named_composite([("fields", fields)])),
    ])
}

/// Writes raw bytes into the slot of a hotkey, whatever the rules say.
pub(crate) fn commit(
    state: &mut State<'_>,
    netuid: u16,
    hotkey: &Account,
    data: &[u8],
) -> Result<(), MetadataError> {
    let raw = Value::unnamed_variant(format!("Raw{}", data.len()), [Value::from_bytes(data)]);
    let registration = registration(state, Value::unnamed_composite([raw]));
    state.put(PALLET, "CommitmentOf", &[number(netuid), account(hotkey)], &registration)
}

fn max_fields(state: &State<'_>) -> Result<usize, MetadataError> {
    let pallet = state.runtime().metadata().pallet_by_name(PALLET);
    let limit = match pallet.as_ref().and_then(|p| p.constant_by_name("MaxFields")) {
        Some(constant) => state.runtime().decode("MaxFields", constant.value(), constant.ty())?,
        None => DEFAULT_MAX_FIELDS,
    };
    Ok(limit as usize)
}

/// The bytes of a `Data` field: of `Raw…` and `BigRaw` their length, of hashes 32, of nothing 0.
fn length(field: &Value) -> usize {
    let ValueDef::Variant(variant) = &field.value else { return 0 };
    match &variant.values {
        Composite::Unnamed(values) => values.first().map_or(0, leaves),
        Composite::Named(values) => values.first().map_or(0, |(_, value)| leaves(value)),
    }
}

fn leaves(value: &Value) -> usize {
    match &value.value {
        ValueDef::Composite(inner) => inner.values().map(leaves).sum(),
        ValueDef::Variant(_) | ValueDef::BitSequence(_) | ValueDef::Primitive(_) => 1,
    }
}

/// What a hotkey committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commitment {
    /// The block in which it was made.
    pub block: u32,
    /// The bytes of its first field.
    pub data: Vec<u8>,
}

/// The part of the chain's `Registration` that is read back.
#[derive(Debug, DecodeAsType)]
struct Registration {
    block: u32,
    info: Info,
}

/// The commitment of a hotkey.
pub(crate) fn read(
    state: &State<'_>,
    netuid: u16,
    hotkey: &Account,
) -> Result<Option<Commitment>, MetadataError> {
    let keys = [number(netuid), account(hotkey)];
    let registration: Option<Registration> = state.get(PALLET, "CommitmentOf", &keys)?;
    Ok(registration.map(|r| Commitment {
        block: r.block,
        data: r.info.fields.first().map(bytes).unwrap_or_default(),
    }))
}

fn bytes(value: &Value) -> Vec<u8> {
    match &value.value {
        ValueDef::Variant(variant) => variant.values.values().flat_map(bytes).collect(),
        ValueDef::Composite(inner) => inner.values().flat_map(bytes).collect(),
        ValueDef::Primitive(primitive) => {
            primitive.as_u128().and_then(|b| u8::try_from(b).ok()).into_iter().collect()
        }
        ValueDef::BitSequence(_) => Vec::new(),
    }
}
