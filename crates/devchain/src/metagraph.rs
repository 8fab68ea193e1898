//! The subnet in one answer: metagraphs and hyperparameters, made field by field from the
//! storage of one block, by the names that the metadata gives the fields.

use scale_decode::DecodeAsType;
use scale_info::{PortableRegistry, TypeDef};
use scale_value::Value;

use crate::{
    encode,
    runtime::MetadataError,
    runtime_api::{none, some},
    state::{Account, State, account, number},
    subnet::{self, SUBTENSOR},
};

/// Fields that are one item of the subnet's storage.
const ITEMS: [(&str, &str); 39] = [
    ("activity_cutoff", "ActivityCutoff"),
    ("adjustment_alpha", "AdjustmentAlpha"),
    ("adjustment_interval", "AdjustmentInterval"),
    ("alpha_in", "SubnetAlphaIn"),
    ("alpha_in_emission", "SubnetAlphaInEmission"),
    ("alpha_out", "SubnetAlphaOut"),
    ("alpha_out_emission", "SubnetAlphaOutEmission"),
    ("alpha_sigmoid_steepness", "AlphaSigmoidSteepness"),
    ("blocks_since_last_step", "BlocksSinceLastStep"),
    ("bonds_moving_avg", "BondsMovingAverage"),
    ("bonds_reset_enabled", "BondsResetOn"),
    ("burn", "Burn"),
    ("commit_reveal_period", "RevealPeriodEpochs"),
    ("commit_reveal_weights_enabled", "CommitRevealWeightsEnabled"),
    ("difficulty", "Difficulty"),
    ("immunity_period", "ImmunityPeriod"),
    ("kappa", "Kappa"),
    ("last_step", "LastMechansimStepBlock"),
    ("liquid_alpha_enabled", "LiquidAlphaOn"),
    ("max_burn", "MaxBurn"),
    ("max_difficulty", "MaxDifficulty"),
    ("max_regs_per_block", "MaxRegistrationsPerBlock"),
    ("max_uids", "MaxAllowedUids"),
    ("max_validators", "MaxAllowedValidators"),
    ("max_weights_limit", "MaxWeightsLimit"),
    ("min_allowed_weights", "MinAllowedWeights"),
    ("min_burn", "MinBurn"),
    ("min_difficulty", "MinDifficulty"),
    ("network_registered_at", "NetworkRegisteredAt"),
    ("num_uids", "SubnetworkN"),
    ("owner_hotkey", "SubnetOwnerHotkey"),
    ("pow_registration_allowed", "NetworkPowRegistrationAllowed"),
    ("registration_allowed", "NetworkRegistrationAllowed"),
    ("rho", "Rho"),
    ("serving_rate_limit", "ServingRateLimit"),
    ("target_regs_per_interval", "TargetRegistrationsPerInterval"),
    ("tempo", "Tempo"),
    ("weights_rate_limit", "WeightsSetRateLimit"),
    ("weights_version", "WeightsVersionKey"),
];

/// The answer for a subnet that exists: a struct of the type inside the method's
/// `Option<Struct>`. Of a selective struct, whose fields are optional, only the fields at the
/// `wanted` positions are filled in. What this chain does not know is zero.
pub(crate) fn answer(
    state: &State<'_>,
    output: u32,
    netuid: u16,
    mecid: u8,
    wanted: Option<&[u16]>,
) -> Result<Value, MetadataError> {
    let types = state.runtime().types();
    let what = || MetadataError::Lacks("a struct in the answer of the runtime API".into());
    let inner = some_of(types, output).and_then(|id| types.resolve(id)).ok_or_else(what)?;
    let TypeDef::Composite(composite) = &inner.type_def else { return Err(what()) };
    let size = subnet::size(state, netuid)?;
    let mut hotkeys = Vec::with_capacity(size.into());
    for uid in 0..size {
        hotkeys.push(subnet::hotkey(state, netuid, uid)?.unwrap_or_default());
    }
    let subnet = Subnet { state, netuid, index: subnet::index(netuid, mecid), hotkeys };

    let mut fields = Vec::with_capacity(composite.fields.len());
    for (position, field) in composite.fields.iter().enumerate() {
        let name = field.name.clone().unwrap_or_default();
        let selectable = wanted.is_some().then(|| some_of(types, field.ty.id)).flatten();
        let value = match (wanted, selectable) {
            (Some(wanted), Some(_)) if !wanted.iter().any(|w| usize::from(*w) == position) => {
                none()
            }
            (Some(_), Some(inner)) => some(subnet.field_or_zero(&name, inner)?),
            _ => subnet.field_or_zero(&name, field.ty.id)?,
        };
        fields.push((name, value));
    }
    Ok(Value::named_composite(fields))
}

/// The type inside an `Option`.
fn some_of(types: &PortableRegistry, id: u32) -> Option<u32> {
    let ty = types.resolve(id)?;
    let TypeDef::Variant(variants) = &ty.type_def else { return None };
    if ty.path.ident().as_deref() != Some("Option") {
        return None;
    }
    let some = variants.variants.iter().find(|v| v.name == "Some")?;
    Some(some.fields.first()?.ty.id)
}

struct Subnet<'a> {
    state: &'a State<'a>,
    netuid: u16,
    /// The number under which the mechanism keeps its own rows.
    index: u16,
    hotkeys: Vec<Account>,
}

impl Subnet<'_> {
    fn field_or_zero(&self, name: &str, type_id: u32) -> Result<Value, MetadataError> {
        Ok(self.field(name)?.unwrap_or_else(|| encode::zero(self.state.runtime().types(), type_id)))
    }

    fn field(&self, name: &str) -> Result<Option<Value>, MetadataError> {
        if let Ok(at) = ITEMS.binary_search_by_key(&name, |(field, _)| field) {
            return subnet::item(self.state, ITEMS[at].1, self.netuid);
        }
        let value = match name {
            "netuid" => number(self.netuid),
            "block" => number(self.state.block()),
            "hotkeys" => Value::unnamed_composite(self.hotkeys.iter().map(account)),
            "coldkeys" => self.each(|_, hotkey| {
                let owner: Option<Account> =
                    self.state.get(SUBTENSOR, "Owner", &[account(hotkey)])?;
                Ok(account(&owner.unwrap_or_default()))
            })?,
            "axons" => self.each(|_, hotkey| {
                let axon = subnet::axon(self.state, self.netuid, hotkey)?;
                Ok(axon.unwrap_or_default().value())
            })?,
            "identities" => self.each(|_, _| Ok(none()))?,
            "block_at_registration" => self.each(|uid, _| {
                let keys = [number(self.netuid), number(uid)];
                let block: Option<u64> = self.state.get(SUBTENSOR, "BlockAtRegistration", &keys)?;
                Ok(number(block.unwrap_or(0)))
            })?,
            "alpha_stake" | "total_stake" => {
                self.each(|_, hotkey| Ok(number(subnet::stake(self.state, self.netuid, hotkey)?)))?
            }
            "tao_stake" => self.each(|_, _| Ok(number(0u8)))?,
            "active" => self.bools("Active")?,
            "validator_permit" => self.bools("ValidatorPermit")?,
            "last_update" => self.numbers::<u64>("LastUpdate", self.index)?,
            "incentives" => self.numbers::<u16>("Incentive", self.index)?,
            "emission" => self.numbers::<u64>("Emission", self.netuid)?,
            "dividends" => self.numbers::<u16>("Dividends", self.netuid)?,
            "consensus" => self.numbers::<u16>("Consensus", self.netuid)?,
            "trust" => self.numbers::<u16>("Trust", self.netuid)?,
            "rank" => self.numbers::<u16>("Rank", self.netuid)?,
            "pruning_score" => self.numbers::<u16>("PruningScores", self.netuid)?,
            _ => return Ok(None),
        };
        Ok(Some(value))
    }

    fn size(&self) -> u16 {
        u16::try_from(self.hotkeys.len()).unwrap_or(u16::MAX)
    }

    fn each(
        &self,
        of: impl Fn(u16, &Account) -> Result<Value, MetadataError>,
    ) -> Result<Value, MetadataError> {
        let values: Result<Vec<Value>, _> =
            (0..self.size()).zip(&self.hotkeys).map(|(uid, hotkey)| of(uid, hotkey)).collect();
        Ok(Value::unnamed_composite(values?))
    }

    fn bools(&self, entry: &str) -> Result<Value, MetadataError> {
        let row = subnet::row::<bool>(self.state, entry, self.netuid, self.size())?;
        Ok(Value::unnamed_composite(row.into_iter().map(Value::bool)))
    }

    fn numbers<T>(&self, entry: &str, index: u16) -> Result<Value, MetadataError>
    where
        T: DecodeAsType + Default + Clone + Into<u128>,
    {
        let row = subnet::row::<T>(self.state, entry, index, self.size())?;
        Ok(Value::unnamed_composite(row.into_iter().map(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_items_is_sorted_and_names_storage_of_the_embedded_metadata() {
        assert!(ITEMS.is_sorted());
        for (_, entry) in ITEMS {
            assert!(crate::testing::runtime().entry(SUBTENSOR, entry).is_some(), "{entry}");
        }
    }
}
