//! What of the runtime this service uses, and whether a runtime's metadata has it.
//!
//! Runtimes change often, and calls are made dynamically: this is the place where a change that
//! matters is noticed, by name, before anything is read wrongly or sent in vain.

use scale_info::{PortableRegistry, TypeDef};
use subxt::Metadata;

/// Everything in use. [`crate::read`] and [`crate::call`] use nothing else.
const CALLS: &[Call] = &[
    Call { pallet: "Commitments", name: "set_commitment", arguments: &["netuid", "info"] },
    Call {
        pallet: "SubtensorModule",
        name: "serve_axon",
        arguments: &[
            "netuid",
            "version",
            "ip",
            "port",
            "ip_type",
            "protocol",
            "placeholder1",
            "placeholder2",
        ],
    },
];

/// Either of these is enough.
const WEIGHT_CALLS: [Call; 2] = [
    Call {
        pallet: "SubtensorModule",
        name: "set_mechanism_weights",
        arguments: &["netuid", "mecid", "dests", "weights", "version_key"],
    },
    Call {
        pallet: "SubtensorModule",
        name: "set_weights",
        arguments: &["netuid", "dests", "weights", "version_key"],
    },
];

/// Calls that commit weights to a round of the beacon; the first one that is there is used.
const TIMELOCK_CALLS: [Call; 2] = [
    Call {
        pallet: "SubtensorModule",
        name: "commit_timelocked_mechanism_weights",
        arguments: &["netuid", "mecid", "commit", "reveal_round", "commit_reveal_version"],
    },
    Call {
        pallet: "SubtensorModule",
        name: "commit_timelocked_weights",
        arguments: &["netuid", "commit", "reveal_round", "commit_reveal_version"],
    },
];

/// Calls that commit weights by hash, each with the one that reveals them; the first pair that is
/// there is used.
const HASH_CALLS: [[Call; 2]; 2] = [
    [
        Call {
            pallet: "SubtensorModule",
            name: "commit_mechanism_weights",
            arguments: &["netuid", "mecid", "commit_hash"],
        },
        Call {
            pallet: "SubtensorModule",
            name: "reveal_mechanism_weights",
            arguments: &["netuid", "mecid", "uids", "values", "salt", "version_key"],
        },
    ],
    [
        Call {
            pallet: "SubtensorModule",
            name: "commit_weights",
            arguments: &["netuid", "commit_hash"],
        },
        Call {
            pallet: "SubtensorModule",
            name: "reveal_weights",
            arguments: &["netuid", "uids", "values", "salt", "version_key"],
        },
    ],
];

/// `SubtensorModule.StakeThreshold`, `MechanismCountCurrent` and `CommitRevealWeightsVersion` are
/// read too where they are there: older runtimes ask for no stake, and have one mechanism.
const STORAGE: &[Storage] = &[
    Storage::new("SubtensorModule", "Weights", 2, &[]),
    Storage::new("SubtensorModule", "Uids", 2, &[]),
    Storage::new("SubtensorModule", "LastUpdate", 1, &[]),
    Storage::new("SubtensorModule", "WeightsSetRateLimit", 1, &[]),
    Storage::new("SubtensorModule", "CommitRevealWeightsEnabled", 1, &[]),
    Storage::new("SubtensorModule", "ServingRateLimit", 1, &[]),
    Storage::new("SubtensorModule", "MaxWeightsLimit", 1, &[]),
    Storage::new("SubtensorModule", "NetworksAdded", 1, &[]),
    Storage::new("SubtensorModule", "RevealPeriodEpochs", 1, &[]),
    Storage::new("Timestamp", "Now", 0, &[]),
    Storage::new("SubtensorModule", "Tempo", 1, &[]),
    Storage::new("SubtensorModule", "Axons", 2, &["block", "ip", "port", "ip_type"]),
    Storage::new("Commitments", "CommitmentOf", 2, &["block", "info"]),
    Storage::new("System", "Events", 0, &[]),
];

/// What stake setting weights takes, by its names: one of them is enough.
const STAKE_THRESHOLDS: [Storage; 2] = [
    Storage::new("SubtensorModule", "StakeThreshold", 0, &[]),
    Storage::new("SubtensorModule", "WeightsMinStake", 0, &[]),
];

/// Entries of one road of commit-reveal each: looked at where the runtime has the road's calls.
const HASH_STORAGE: Storage = Storage::new("SubtensorModule", "WeightCommits", 2, &[]);
const TIMELOCK_STORAGE: &[Storage] = &[
    Storage::new("SubtensorModule", "TimelockedWeightCommits", 2, &[]),
    Storage::new("Drand", "BeaconConfig", 0, &["public_key", "period", "genesis_time"]),
];

/// Entries of the schedule of epochs: looked at where the runtime keeps one in its state.
const EPOCH_INDEX: &str = "SubnetEpochIndex";
const EPOCH_STORAGE: &[Storage] = &[
    Storage::new("SubtensorModule", EPOCH_INDEX, 1, &[]),
    Storage::new("SubtensorModule", "LastEpochBlock", 1, &[]),
    Storage::new("SubtensorModule", "PendingEpochAt", 1, &[]),
    Storage::new("SubtensorModule", "BlocksSinceLastStep", 1, &[]),
];

const APIS: &[Api] =
    &[Api { interface: "AccountNonceApi", method: "account_nonce", inputs: 1, fields: &[] }];

/// The metagraph in one answer. Where it is missing, [`METAGRAPH_STORAGE`] is enough.
const METAGRAPH_API: Api = Api {
    interface: "SubnetInfoRuntimeApi",
    method: "get_selective_metagraph",
    inputs: 2,
    fields: &[
        "min_allowed_weights",
        "weights_version",
        "weights_rate_limit",
        "commit_reveal_weights_enabled",
        "hotkeys",
        "coldkeys",
        "axons",
        "validator_permit",
        "last_update",
        "incentives",
        "block_at_registration",
        "total_stake",
    ],
};

/// `SubtensorModule.TaoWeight` is read too where it is there: what a stake in the root subnet counts.
/// It has a key on some runtimes.
const METAGRAPH_STORAGE: &[Storage] = &[
    Storage::new("SubtensorModule", "SubnetworkN", 1, &[]),
    Storage::new("SubtensorModule", "Keys", 2, &[]),
    Storage::new("SubtensorModule", "Owner", 1, &[]),
    Storage::new("SubtensorModule", "TotalHotkeyAlpha", 2, &[]),
    Storage::new("SubtensorModule", "Incentive", 1, &[]),
    Storage::new("SubtensorModule", "ValidatorPermit", 1, &[]),
    Storage::new("SubtensorModule", "BlockAtRegistration", 2, &[]),
    Storage::new("SubtensorModule", "MinAllowedWeights", 1, &[]),
    Storage::new("SubtensorModule", "WeightsVersionKey", 1, &[]),
];

struct Call {
    pallet: &'static str,
    name: &'static str,
    arguments: &'static [&'static str],
}

struct Storage {
    pallet: &'static str,
    entry: &'static str,
    keys: usize,
    /// Fields of its value that are read.
    fields: &'static [&'static str],
}

impl Storage {
    const fn new(
        pallet: &'static str,
        entry: &'static str,
        keys: usize,
        fields: &'static [&'static str],
    ) -> Self {
        Self { pallet, entry, keys, fields }
    }
}

struct Api {
    interface: &'static str,
    method: &'static str,
    inputs: usize,
    /// Fields of its answer that are read.
    fields: &'static [&'static str],
}

/// Names everything in use that the metadata lacks, or has in another shape. Empty when all is
/// well.
pub(crate) fn missing(metadata: &Metadata) -> Vec<String> {
    let mut missing: Vec<String> = CALLS.iter().filter_map(|call| call.missing(metadata)).collect();
    let weights: Vec<_> = WEIGHT_CALLS.iter().filter_map(|call| call.missing(metadata)).collect();
    if weights.len() == WEIGHT_CALLS.len() {
        missing.push(weights.join(" and "));
    }
    if timelock_call(metadata).is_some() {
        missing.extend(TIMELOCK_STORAGE.iter().flat_map(|storage| storage.missing(metadata)));
    }
    if hash_calls(metadata).is_some() {
        missing.extend(HASH_STORAGE.missing(metadata));
    }
    if has_stateful_epochs(metadata) {
        missing.extend(EPOCH_STORAGE.iter().flat_map(|storage| storage.missing(metadata)));
    }
    missing.extend(STORAGE.iter().flat_map(|storage| storage.missing(metadata)));
    let thresholds: Vec<_> = STAKE_THRESHOLDS.iter().map(|name| name.missing(metadata)).collect();
    if thresholds.iter().all(|missing| !missing.is_empty()) {
        missing.push(thresholds.concat().join(" and "));
    }
    missing.extend(APIS.iter().flat_map(|api| api.missing(metadata)));
    let called = METAGRAPH_API.missing(metadata);
    let stored: Vec<_> = METAGRAPH_STORAGE.iter().flat_map(|s| s.missing(metadata)).collect();
    if !called.is_empty() && !stored.is_empty() {
        missing.extend(called.iter().map(|called| format!("{called} and {}", stored.join(", "))));
    }
    missing
}

/// Whether the runtime keeps the schedule of epochs in its state.
pub(crate) fn has_stateful_epochs(metadata: &Metadata) -> bool {
    keys_of(metadata, "SubtensorModule", EPOCH_INDEX).is_some()
}

/// Whether the metagraph can be had in one answer.
pub(crate) fn has_selective_metagraph(metadata: &Metadata) -> bool {
    METAGRAPH_API.missing(metadata).is_empty()
}

/// Whether weights can be set for a mechanism by number.
pub(crate) fn has_mechanism_weights(metadata: &Metadata) -> bool {
    WEIGHT_CALLS[0].missing(metadata).is_none()
}

/// The call for timelocked commits, and whether it names the mechanism; `None` where there is none.
pub(crate) fn timelock_call(metadata: &Metadata) -> Option<(&'static str, bool)> {
    let [of_mechanism, of_subnet] = &TIMELOCK_CALLS;
    let there = |call: &Call| call.missing(metadata).is_none();
    there(of_mechanism)
        .then_some((of_mechanism.name, true))
        .or_else(|| there(of_subnet).then_some((of_subnet.name, false)))
}

/// The calls to commit and to reveal by hash, and whether they name the mechanism; `None` where
/// there are none.
pub(crate) fn hash_calls(metadata: &Metadata) -> Option<([&'static str; 2], bool)> {
    let [of_mechanism, of_subnet] = &HASH_CALLS;
    let there = |pair: &[Call; 2]| pair.iter().all(|call| call.missing(metadata).is_none());
    let names = |pair: &[Call; 2]| [pair[0].name, pair[1].name];
    there(of_mechanism)
        .then_some((names(of_mechanism), true))
        .or_else(|| there(of_subnet).then_some((names(of_subnet), false)))
}

/// How many keys an item of the storage has; `None` where it is missing.
pub(crate) fn keys_of(metadata: &Metadata, pallet: &str, entry: &str) -> Option<usize> {
    let pallet = metadata.pallet_by_name(pallet)?;
    Some(pallet.storage()?.entry_by_name(entry)?.keys().len())
}

impl Call {
    fn missing(&self, metadata: &Metadata) -> Option<String> {
        let Self { pallet, name, arguments } = self;
        let call = metadata.pallet_by_name(pallet).and_then(|p| p.call_variant_by_name(name));
        let Some(call) = call else { return Some(format!("call {pallet}.{name}")) };
        let found: Vec<_> =
            call.fields.iter().map(|field| field.name.as_deref().unwrap_or("?")).collect();
        (found != *arguments).then(|| {
            format!("call {pallet}.{name}({}): it is ({})", arguments.join(", "), found.join(", "))
        })
    }
}

impl Storage {
    fn missing(&self, metadata: &Metadata) -> Vec<String> {
        let Self { pallet, entry, keys, fields } = self;
        let found = metadata
            .pallet_by_name(pallet)
            .and_then(|p| p.storage())
            .and_then(|storage| storage.entry_by_name(entry));
        let Some(found) = found else { return vec![format!("storage {pallet}.{entry}")] };
        let mut missing = Vec::new();
        if found.keys().len() != *keys {
            missing.push(format!(
                "storage {pallet}.{entry} with {keys} keys: it has {}",
                found.keys().len()
            ));
        }
        let have = fields_of(metadata.types(), found.value_ty());
        let lacks = fields.iter().filter(|field| !have.iter().any(|name| name == *field));
        missing.extend(lacks.map(|field| format!("field `{field}` of storage {pallet}.{entry}")));
        missing
    }
}

impl Api {
    fn missing(&self, metadata: &Metadata) -> Vec<String> {
        let Self { interface, method, inputs, fields } = self;
        let found = metadata
            .runtime_api_trait_by_name(interface)
            .and_then(|api| api.method_by_name(method));
        let Some(found) = found else { return vec![format!("runtime API {interface}.{method}")] };
        let mut missing = Vec::new();
        let count = found.inputs().count();
        if count != *inputs {
            missing.push(format!(
                "runtime API {interface}.{method} with {inputs} inputs: it has {count}"
            ));
        }
        let have = fields_of(metadata.types(), found.output_ty());
        let lacks = fields.iter().filter(|field| !have.iter().any(|name| name == *field));
        missing.extend(lacks.map(|field| format!("field `{field}` of {interface}.{method}")));
        missing
    }
}

/// Names of the fields of a struct, or of the struct that an option holds.
fn fields_of(types: &PortableRegistry, id: u32) -> Vec<String> {
    let Some(ty) = types.resolve(id) else { return Vec::new() };
    match &ty.type_def {
        TypeDef::Composite(composite) => {
            composite.fields.iter().filter_map(|field| field.name.clone()).collect()
        }
        TypeDef::Variant(option) => option
            .variants
            .iter()
            .find(|variant| variant.name == "Some")
            .and_then(|some| some.fields.first())
            .map(|field| fields_of(types, field.ty.id))
            .unwrap_or_default(),
        TypeDef::Sequence(_)
        | TypeDef::Array(_)
        | TypeDef::Tuple(_)
        | TypeDef::Primitive(_)
        | TypeDef::Compact(_)
        | TypeDef::BitSequence(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
