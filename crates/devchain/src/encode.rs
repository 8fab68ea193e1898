//! Values that follow the metadata's types: events, errors, the timestamp's extrinsic, and the
//! nothing of a type.

use codec::{Compact, Encode as _};
use scale_info::{PortableRegistry, TypeDef, TypeDefPrimitive};
use scale_value::Value;

use crate::runtime::{MetadataError, Runtime};

/// Why a call came to nothing after it was included in a block.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// An error of the pallet's own, by name.
    #[error("{pallet}::{error}")]
    Module { pallet: &'static str, error: &'static str },
    /// The metadata in use does not fit what this chain wanted to write.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

impl Failure {
    /// An error of the pallet that most calls go to.
    pub(crate) const fn subtensor(error: &'static str) -> Self {
        Self::Module { pallet: "SubtensorModule", error }
    }

    /// The chain's `DispatchError`. A name that this metadata lacks becomes `Other`.
    fn value(&self, runtime: &Runtime) -> Value {
        let other = || Value::unnamed_variant("Other", []);
        let Self::Module { pallet, error } = self else { return other() };
        let metadata = runtime.metadata().pallet_by_name(pallet);
        let index = metadata.as_ref().and_then(|pallet| {
            let variant = pallet.error_variants()?.iter().find(|v| v.name == *error)?;
            Some((pallet.error_index(), variant.index))
        });
        match index {
            None => other(),
            Some((pallet, error)) => {
                let fields = [
                    ("index", Value::u128(pallet.into())),
                    ("error", Value::from_bytes([error, 0, 0, 0])),
                ];
                Value::unnamed_variant("Module", [Value::named_composite(fields)])
            }
        }
    }
}

/// An event without its phase and topics. Fields are in the order of the metadata.
pub(crate) fn event(
    runtime: &Runtime,
    pallet: &str,
    name: &str,
    fields: &[Value],
) -> Result<Vec<u8>, MetadataError> {
    let what = format!("the event {pallet}.{name}");
    let metadata = runtime.metadata().pallet_by_name(pallet);
    let variant = metadata
        .as_ref()
        .and_then(|p| p.event_variants()?.iter().find(|v| v.name == name))
        .ok_or_else(|| MetadataError::Lacks(what.clone()))?;
    if variant.fields.len() != fields.len() {
        let why = format!("it has {} fields, not {}", variant.fields.len(), fields.len());
        return Err(MetadataError::Mismatch { what, why });
    }
    let mut bytes = vec![metadata.map(|p| p.event_index()).unwrap_or_default(), variant.index];
    for (field, value) in variant.fields.iter().zip(fields) {
        bytes.extend(runtime.encode(&what, value, field.ty.id)?);
    }
    Ok(bytes)
}

/// The fields of `System.ExtrinsicSuccess`: calls here are free.
pub(crate) fn success() -> Vec<Value> {
    let weight = [("ref_time", Value::u128(1_000_000)), ("proof_size", Value::u128(0))];
    vec![Value::named_composite([
        ("weight", Value::named_composite(weight)),
        ("class", Value::unnamed_variant("Normal", [])),
        ("pays_fee", Value::unnamed_variant("No", [])),
    ])]
}

/// The fields of `System.ExtrinsicFailed`.
pub(crate) fn failed(runtime: &Runtime, failure: &Failure) -> Vec<Value> {
    [vec![failure.value(runtime)], success()].concat()
}

/// The unsigned extrinsic with which every block begins: `Timestamp.set`.
pub(crate) fn timestamp(runtime: &Runtime, now_ms: u64) -> Result<Vec<u8>, MetadataError> {
    let pallet = runtime.metadata().pallet_by_name("Timestamp");
    let (pallet, call) = pallet
        .as_ref()
        .and_then(|p| Some((p.call_index(), p.call_variant_by_name("set")?.index)))
        .ok_or_else(|| MetadataError::Lacks("the call Timestamp.set".into()))?;
    let version =
        if runtime.metadata().extrinsic().supported_versions().contains(&5) { 5 } else { 4 };
    let mut body = vec![version, pallet, call];
    Compact(now_ms).encode_to(&mut body);
    Ok(body.encode())
}

/// How deep [`zero`] follows types that contain types.
const MAX_DEPTH: u32 = 16;

/// The nothing of a type: zero, empty, `None`, the first variant.
pub(crate) fn zero(types: &PortableRegistry, type_id: u32) -> Value {
    zero_at(types, type_id, MAX_DEPTH)
}

fn zero_at(types: &PortableRegistry, type_id: u32, depth: u32) -> Value {
    let nothing = || Value::unnamed_composite([]);
    let (Some(ty), Some(depth)) = (types.resolve(type_id), depth.checked_sub(1)) else {
        return nothing();
    };
    let zero = |id| zero_at(types, id, depth);
    match &ty.type_def {
        TypeDef::Composite(composite) if composite.fields.iter().all(|f| f.name.is_some()) => {
            let fields = composite.fields.iter();
            Value::named_composite(fields.filter_map(|f| Some((f.name.clone()?, zero(f.ty.id)))))
        }
        TypeDef::Composite(composite) => {
            Value::unnamed_composite(composite.fields.iter().map(|f| zero(f.ty.id)))
        }
        TypeDef::Variant(variants) => match variants.variants.first() {
            Some(first) => {
                let fields = first.fields.iter().map(|f| zero(f.ty.id));
                Value::unnamed_variant(first.name.clone(), fields)
            }
            None => nothing(),
        },
        TypeDef::Sequence(_) => nothing(),
        TypeDef::Array(array) => {
            Value::unnamed_composite((0..array.len).map(|_| zero(array.type_param.id)))
        }
        TypeDef::Tuple(tuple) => Value::unnamed_composite(tuple.fields.iter().map(|f| zero(f.id))),
        TypeDef::Primitive(TypeDefPrimitive::Bool) => Value::bool(false),
        TypeDef::Primitive(TypeDefPrimitive::Str) => Value::string(""),
        TypeDef::Primitive(TypeDefPrimitive::Char) => Value::char('\0'),
        TypeDef::Primitive(_) => Value::u128(0),
        TypeDef::Compact(compact) => zero(compact.type_param.id),
        TypeDef::BitSequence(_) => Value::bit_sequence(scale_value::BitSequence::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> Runtime {
        Runtime::new(crate::METADATA.to_vec()).unwrap()
    }

    #[test]
    fn the_nothing_of_every_runtime_apis_answer_encodes() {
        let runtime = runtime();
        for api in runtime.metadata().runtime_api_traits() {
            for method in api.methods() {
                let zero = zero(runtime.types(), method.output_ty());
                let name = format!("{}_{}", api.name(), method.name());
                runtime.encode(&name, &zero, method.output_ty()).unwrap();
            }
        }
    }

    #[test]
    fn an_event_with_too_few_fields_is_refused_and_not_cut_short() {
        let err = event(&runtime(), "SubtensorModule", "WeightsSet", &[Value::u128(1)]);
        assert!(matches!(err.unwrap_err(), MetadataError::Mismatch { .. }));
    }

    #[test]
    fn an_error_that_the_metadata_lacks_is_sent_as_other() {
        let failure = Failure::Module { pallet: "SubtensorModule", error: "NoSuchError" };
        let fields = failed(&runtime(), &failure);
        assert_eq!(fields[0], Value::unnamed_variant("Other", []));
        event(&runtime(), "System", "ExtrinsicFailed", &fields).unwrap();
    }
}
