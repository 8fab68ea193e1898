//! Values that outlive a runtime: what the old runtime wrote, as the new one reads it.
//!
//! Fields and variants are matched by name. What the new runtime has besides is the nothing of
//! its type, and what it no longer has is left out.

use std::collections::HashMap;

use bytes::Bytes;
use scale_info::{Field, PortableRegistry, TypeDef, form::PortableForm};
use scale_value::{Composite, Value, ValueDef, Variant};
use subxt::ext::frame_decode::storage::encode_storage_key_prefix;

use crate::{
    encode,
    history::{Changes, History},
    runtime::Runtime,
};

/// What the first block of a new runtime writes first: `staged`, which was written under the old
/// runtime, and every value of the state at `base` whose bytes are others under the new one.
pub(crate) fn changes(
    history: &History,
    base: u32,
    staged: Changes,
    from: &Runtime,
    to: &Runtime,
) -> Changes {
    let entries = Entries::new(from, to);
    let moved = |key: &[u8], bytes: Bytes| match entries.moved(key, &bytes) {
        Some(moved) => moved.into(),
        None => bytes,
    };
    let mut changes = Changes::new();
    for (key, value) in staged {
        let value = value.map(|bytes| moved(&key, bytes));
        changes.insert(key, value);
    }
    for key in history.keys(&[], None, usize::MAX, base) {
        if !changes.contains_key(&key)
            && let Some(bytes) = history.get(&key, base)
            && let Some(moved) = entries.moved(&key, bytes)
        {
            changes.insert(key, Some(moved.into()));
        }
    }
    changes
}

/// The items of storage that both runtimes have.
struct Entries<'a> {
    from: &'a Runtime,
    to: &'a Runtime,
    /// By the first 32 bytes of its keys, an item's types in both runtimes.
    types: HashMap<[u8; 32], (u32, u32)>,
}

impl<'a> Entries<'a> {
    fn new(from: &'a Runtime, to: &'a Runtime) -> Self {
        let mut types = HashMap::new();
        for pallet in from.metadata().pallets() {
            let Some(storage) = pallet.storage() else { continue };
            for entry in storage.entries() {
                // Events are of one block, and the next has its own.
                if (pallet.name(), entry.name()) == ("System", "Events") {
                    continue;
                }
                if let Some((new, _)) = to.entry(pallet.name(), entry.name()) {
                    let prefix = encode_storage_key_prefix(storage.prefix(), entry.name());
                    types.insert(prefix, (entry.value_ty(), new));
                }
            }
        }
        Self { from, to, types }
    }

    /// The bytes of a value under the new runtime, where they are others.
    fn moved(&self, key: &[u8], bytes: &[u8]) -> Option<Vec<u8>> {
        let (old, new) = *self.types.get(key.first_chunk::<32>()?)?;
        let moved = self.from.decode::<Value>("a stored value", bytes, old).and_then(|value| {
            let value = fitted(value, self.to.types(), new);
            self.to.encode("a stored value", &value, new)
        });
        match moved {
            Ok(moved) => (moved != bytes).then_some(moved),
            Err(error) => {
                tracing::warn!(%error, key = %hex::encode(key), "a stored value outlives its type");
                None
            }
        }
    }
}

/// A value as another type has it.
fn fitted(value: Value, types: &PortableRegistry, type_id: u32) -> Value {
    let Some(ty) = types.resolve(type_id) else { return value };
    let value = match (&ty.type_def, value.value) {
        (TypeDef::Composite(ty), ValueDef::Composite(values)) => {
            ValueDef::Composite(fields(values, types, &ty.fields))
        }
        (TypeDef::Variant(ty), ValueDef::Variant(Variant { name, values })) => {
            match ty.variants.iter().find(|variant| variant.name == name) {
                Some(variant) => {
                    let values = fields(values, types, &variant.fields);
                    ValueDef::Variant(Variant { name, values })
                }
                None => return encode::zero(types, type_id),
            }
        }
        (TypeDef::Sequence(ty), ValueDef::Composite(values)) => {
            ValueDef::Composite(elements(values, types, ty.type_param.id))
        }
        (TypeDef::Array(ty), ValueDef::Composite(values)) => {
            ValueDef::Composite(elements(values, types, ty.type_param.id))
        }
        (TypeDef::Tuple(ty), ValueDef::Composite(values)) => {
            let values = values.into_values().zip(&ty.fields);
            let values = values.map(|(value, id)| fitted(value, types, id.id));
            ValueDef::Composite(Composite::Unnamed(values.collect()))
        }
        (TypeDef::Compact(ty), value) => {
            return fitted(Value { value, context: () }, types, ty.type_param.id);
        }
        (
            TypeDef::Composite(_)
            | TypeDef::Variant(_)
            | TypeDef::Sequence(_)
            | TypeDef::Array(_)
            | TypeDef::Tuple(_)
            | TypeDef::Primitive(_)
            | TypeDef::BitSequence(_),
            value,
        ) => value,
    };
    Value { value, context: () }
}

fn elements(values: Composite<()>, types: &PortableRegistry, type_id: u32) -> Composite<()> {
    Composite::Unnamed(values.into_values().map(|value| fitted(value, types, type_id)).collect())
}

/// The fields of a struct or a variant: by name where both sides have names, by place otherwise.
fn fields(
    values: Composite<()>,
    types: &PortableRegistry,
    wanted: &[Field<PortableForm>],
) -> Composite<()> {
    let fit = |value: Option<Value>, id: u32| match value {
        Some(value) => fitted(value, types, id),
        None => encode::zero(types, id),
    };
    match values {
        Composite::Named(values) if wanted.iter().all(|field| field.name.is_some()) => {
            let mut values: HashMap<String, Value> = values.into_iter().collect();
            let named = wanted.iter().filter_map(|field| {
                let name = field.name.clone()?;
                let value = values.remove(&name);
                Some((name, fit(value, field.ty.id)))
            });
            Composite::Named(named.collect())
        }
        Composite::Named(_) | Composite::Unnamed(_) => {
            let mut values = values.into_values();
            let placed = wanted.iter().map(|field| fit(values.next(), field.ty.id));
            Composite::Unnamed(placed.collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use scale_info::{MetaType, Registry, TypeInfo};
    use subxt::ext::scale_encode::EncodeAsType as _;

    use super::*;

    fn registry<T: TypeInfo + 'static>() -> (PortableRegistry, u32) {
        let mut registry = Registry::new();
        let id = registry.register_type(&MetaType::new::<T>()).id;
        (registry.into(), id)
    }

    #[derive(TypeInfo)]
    #[expect(dead_code, reason = "only its description is used")]
    struct Wider {
        added: Vec<u8>,
        kind: Kind,
        number: u64,
    }

    #[derive(TypeInfo)]
    #[expect(dead_code, reason = "only its description is used")]
    enum Kind {
        New,
        Old { part: u32 },
    }

    #[test]
    fn fields_keep_their_names_and_new_ones_are_nothing() {
        let (types, id) = registry::<Wider>();
        let part = [("part", Value::u128(7)), ("gone", Value::u128(8))];
        let old = Value::named_composite([
            ("number", Value::u128(3)),
            ("kind", Value::named_variant("Old", part)),
        ]);
        let fitted = fitted(old, &types, id);
        let out = fitted.encode_as_type(id, &types).unwrap();
        // No bytes, variant 1 with 7, and 3.
        assert_eq!(out, [&[0, 1][..], &7u32.to_le_bytes(), &3u64.to_le_bytes()].concat());
    }

    #[test]
    fn a_variant_that_is_gone_becomes_the_first() {
        let (types, id) = registry::<Kind>();
        let fitted = fitted(Value::unnamed_variant("Gone", [Value::u128(1)]), &types, id);
        assert_eq!(fitted, Value::unnamed_variant("New", []));
    }
}
