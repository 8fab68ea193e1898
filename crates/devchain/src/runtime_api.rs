//! Runtime APIs: what `state_call` answers.

use codec::{Decode as _, Encode as _};
use scale_value::Value;

use crate::{
    epoch, metagraph,
    runtime::{MetadataError, Runtime},
    state::{Account, State, number},
    subnet,
};

/// A runtime API has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("Exported method {0} is not found")]
    NoSuchFunction(String),
    #[error("the arguments of {0} do not decode")]
    Arguments(&'static str),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

const SUBNET_INFO: &str = "SubnetInfoRuntimeApi";

/// Answers a runtime API by its exported name, `Trait_method`, as of the state's block.
pub(crate) fn call(
    state: &State<'_>,
    nonce: impl FnOnce(&Account) -> Result<u32, MetadataError>,
    function: &str,
    mut arguments: &[u8],
) -> Result<Vec<u8>, CallError> {
    let runtime = state.runtime();
    let input = &mut arguments;
    Ok(match function {
        "Core_version" => runtime.version().to_vec(),
        "Metadata_metadata" => runtime.raw().encode(),
        "Metadata_metadata_versions" => vec![runtime.format()].encode(),
        "Metadata_metadata_at_version" => {
            let version = u32::decode(input).map_err(|_| CallError::Arguments("version"))?;
            (version == runtime.format()).then(|| runtime.raw()).encode()
        }
        "AccountNonceApi_account_nonce" => {
            let who = Account::decode(input).map_err(|_| CallError::Arguments("account"))?;
            nonce(&who)?.encode()
        }
        "SubnetInfoRuntimeApi_get_selective_metagraph" => {
            let (netuid, wanted) = <(u16, Vec<u16>)>::decode(input)
                .map_err(|_| CallError::Arguments("get_selective_metagraph"))?;
            let subnet = Subnet { netuid, mecid: 0, wanted: Some(&wanted) };
            subnet.answer(state, runtime, "get_selective_metagraph")?
        }
        "SubnetInfoRuntimeApi_get_selective_mechagraph" => {
            let (netuid, mecid, wanted) = <(u16, u8, Vec<u16>)>::decode(input)
                .map_err(|_| CallError::Arguments("get_selective_mechagraph"))?;
            let subnet = Subnet { netuid, mecid, wanted: Some(&wanted) };
            subnet.answer(state, runtime, "get_selective_mechagraph")?
        }
        "SubnetInfoRuntimeApi_get_metagraph" => plain(state, input, "get_metagraph")?,
        "SubnetInfoRuntimeApi_get_subnet_hyperparams" => {
            plain(state, input, "get_subnet_hyperparams")?
        }
        "SubnetInfoRuntimeApi_get_subnet_hyperparams_v2" => {
            plain(state, input, "get_subnet_hyperparams_v2")?
        }
        "SubnetInfoRuntimeApi_get_next_epoch_start_block" => {
            let netuid = u16::decode(input).map_err(|_| CallError::Arguments("netuid"))?;
            let next = match subnet::has_mechanism(state, netuid, 0)? {
                true => epoch::next(state, netuid)?.map_or(none(), |next| some(number(next))),
                false => none(),
            };
            let output = output(runtime, "get_next_epoch_start_block")?;
            runtime.encode("get_next_epoch_start_block", &next, output)?
        }
        other => return Err(CallError::NoSuchFunction(other.chars().take(100).collect())),
    })
}

/// Answers a question that has the subnet as its only argument, with a struct of plain fields.
fn plain(state: &State<'_>, input: &mut &[u8], method: &'static str) -> Result<Vec<u8>, CallError> {
    let netuid = u16::decode(input).map_err(|_| CallError::Arguments(method))?;
    let subnet = Subnet { netuid, mecid: 0, wanted: None };
    subnet.answer(state, state.runtime(), method)
}

/// A question about one subnet.
struct Subnet<'a> {
    netuid: u16,
    mecid: u8,
    wanted: Option<&'a [u16]>,
}

impl Subnet<'_> {
    fn answer(
        &self,
        state: &State<'_>,
        runtime: &Runtime,
        method: &'static str,
    ) -> Result<Vec<u8>, CallError> {
        let output = output(runtime, method)?;
        let value = match subnet::has_mechanism(state, self.netuid, self.mecid)? {
            true => some(metagraph::answer(state, output, self.netuid, self.mecid, self.wanted)?),
            false => none(),
        };
        Ok(runtime.encode(method, &value, output)?)
    }
}

fn output(runtime: &Runtime, method: &'static str) -> Result<u32, CallError> {
    let api = runtime.metadata().runtime_api_trait_by_name(SUBNET_INFO);
    let method_metadata = api.as_ref().and_then(|api| api.method_by_name(method));
    method_metadata
        .map(|m| m.output_ty())
        .ok_or_else(|| CallError::NoSuchFunction(format!("{SUBNET_INFO}_{method}")))
}

/// `Some(value)` as the metadata spells it.
pub(crate) fn some(value: Value) -> Value {
    Value::unnamed_variant("Some", [value])
}

/// `None` as the metadata spells it.
pub(crate) fn none() -> Value {
    Value::unnamed_variant("None", [])
}
