//! What the metadata says: names to bytes and back. Nothing here knows a block or a state.
//!
//! Every pallet, call, event, error and type is found by name, so that the chain runs on the
//! metadata of any spec version that still has the names it uses.

use blake2::{Blake2b, Digest as _, digest::consts::U32};
use codec::Decode;
use scale_decode::DecodeAsType;
use scale_info::{PortableRegistry, Variant, form::PortableForm};
use scale_value::Value;
use subxt::{
    Metadata,
    ext::{frame_decode::storage::encode_storage_key, scale_encode::EncodeAsType},
};

/// BLAKE2b with a 32-byte digest: the chain's hash of headers, extrinsics and long payloads.
pub(crate) fn blake2_256(bytes: &[u8]) -> [u8; 32] {
    Blake2b::<U32>::digest(bytes).into()
}

/// The metadata is not what this chain can run on.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("the metadata does not decode: {0}")]
    Decode(String),
    #[error("the metadata lacks {0}")]
    Lacks(String),
    #[error("{what} does not fit the metadata's type: {why}")]
    Mismatch { what: String, why: String },
}

/// One runtime: its metadata, raw and decoded, and its version.
pub(crate) struct Runtime {
    raw: Vec<u8>,
    metadata: Metadata,
    version: Vec<u8>,
    pub(crate) spec_version: u32,
    pub(crate) transaction_version: u32,
}

/// The head of `sp_version::RuntimeVersion`, which is also what `Core_version` answers.
#[derive(Decode)]
struct VersionHead {
    _spec_name: String,
    _impl_name: String,
    _authoring_version: u32,
    spec_version: u32,
    _impl_version: u32,
    _apis: Vec<([u8; 8], u32)>,
    transaction_version: u32,
}

impl Runtime {
    pub(crate) fn new(raw: Vec<u8>) -> Result<Self, MetadataError> {
        let metadata =
            Metadata::decode_from(&raw).map_err(|e| MetadataError::Decode(e.to_string()))?;
        let version = metadata
            .pallet_by_name("System")
            .and_then(|p| p.constant_by_name("Version"))
            .ok_or_else(|| MetadataError::Lacks("the constant System.Version".into()))?
            .value()
            .to_vec();
        let head = VersionHead::decode(&mut &version[..])
            .map_err(|e| MetadataError::Decode(format!("System.Version: {e}")))?;
        let runtime = Self {
            raw,
            metadata,
            version,
            spec_version: head.spec_version,
            transaction_version: head.transaction_version,
        };
        for (pallet, entry) in REQUIRED {
            if runtime.entry(pallet, entry).is_none() {
                return Err(MetadataError::Lacks(format!("the storage {pallet}.{entry}")));
            }
        }
        Ok(runtime)
    }

    pub(crate) fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The format of the metadata: 14, 15 or 16. The byte after the four of the magic number.
    pub(crate) fn format(&self) -> u32 {
        self.raw.get(4).copied().unwrap_or_default().into()
    }

    /// SCALE of the runtime's version, as `Core_version` answers it.
    pub(crate) fn version(&self) -> &[u8] {
        &self.version
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    pub(crate) fn types(&self) -> &PortableRegistry {
        self.metadata.types()
    }

    /// The type and the default of a storage item; `None` where this runtime has no such item.
    pub(crate) fn entry(&self, pallet: &str, entry: &str) -> Option<(u32, Option<&[u8]>)> {
        let entry = self.metadata.pallet_by_name(pallet)?.storage()?.entry_by_name(entry)?;
        Some((entry.value_ty(), entry.default_value()))
    }

    /// How many fields an event has; `None` where this runtime has no such event.
    pub(crate) fn event_fields(&self, pallet: &str, event: &str) -> Option<usize> {
        let pallet = self.metadata.pallet_by_name(pallet)?;
        let variant = pallet.event_variants()?.iter().find(|variant| variant.name == event)?;
        Some(variant.fields.len())
    }

    /// The storage key of an item, as every client computes it.
    pub(crate) fn key(
        &self,
        pallet: &str,
        entry: &str,
        keys: &[Value],
    ) -> Result<Vec<u8>, MetadataError> {
        encode_storage_key(pallet, entry, keys.to_vec(), &self.metadata, self.types()).map_err(
            |e| MetadataError::Mismatch { what: format!("{pallet}.{entry}"), why: e.to_string() },
        )
    }

    /// A value as the bytes of a type.
    pub(crate) fn encode(
        &self,
        what: &str,
        value: &impl EncodeAsType,
        type_id: u32,
    ) -> Result<Vec<u8>, MetadataError> {
        value
            .encode_as_type(type_id, self.types())
            .map_err(|e| MetadataError::Mismatch { what: what.to_owned(), why: e.to_string() })
    }

    /// The bytes of a type as a value.
    pub(crate) fn decode<T: DecodeAsType>(
        &self,
        what: &str,
        bytes: &[u8],
        type_id: u32,
    ) -> Result<T, MetadataError> {
        T::decode_as_type(&mut &*bytes, type_id, self.types())
            .map_err(|e| MetadataError::Mismatch { what: what.to_owned(), why: e.to_string() })
    }

    /// The pallet's name and the call's description behind two indices of an extrinsic.
    pub(crate) fn call(&self, pallet: u8, call: u8) -> Option<(&str, &Variant<PortableForm>)> {
        let pallet = self.metadata.pallet_by_call_index(pallet)?;
        Some((pallet.name(), pallet.call_variant_by_index(call)?))
    }
}

/// Metadata that differs from this only in the spec version of its constant `System.Version`: an
/// upgrade that changes nothing else.
pub fn with_spec_version(metadata: &[u8], spec: u32) -> Result<Vec<u8>, MetadataError> {
    let lacks = || MetadataError::Lacks("one constant System.Version".into());
    let runtime = Runtime::new(metadata.to_vec())?;
    let constant = &runtime.version;
    let mut places = memchr::memmem::find_iter(metadata, constant);
    let (Some(place), None) = (places.next(), places.next()) else { return Err(lacks()) };
    let mut rest = &constant[..];
    // Two names and the version of authoring stand before it.
    <(String, String, u32)>::decode(&mut rest).map_err(|_| lacks())?;
    let at = place + constant.len() - rest.len();
    let mut patched = metadata.to_vec();
    patched.get_mut(at..at + 4).ok_or_else(lacks)?.copy_from_slice(&spec.to_le_bytes());
    Ok(patched)
}

/// Metadata in which one name is another of the same length, wherever it stands alone: a runtime
/// that calls something otherwise, or no longer has it.
pub fn with_renamed(metadata: &[u8], from: &str, to: &str) -> Result<Vec<u8>, MetadataError> {
    if from.len() != to.len() {
        let why = format!("`{to}` has another length");
        return Err(MetadataError::Mismatch { what: format!("the name `{from}`"), why });
    }
    // A name is preceded by its length: no part of a longer name is touched.
    let alone = |at: &usize| {
        at.checked_sub(1).is_some_and(|before| usize::from(metadata[before]) == from.len() << 2)
    };
    let places: Vec<usize> = memchr::memmem::find_iter(metadata, from).filter(alone).collect();
    if places.is_empty() {
        return Err(MetadataError::Lacks(format!("the name `{from}`")));
    }
    let mut renamed = metadata.to_vec();
    for at in places {
        renamed[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    Ok(renamed)
}

/// Storage without which the chain would not be worth talking to.
const REQUIRED: [(&str, &str); 12] = [
    ("System", "Account"),
    ("System", "Events"),
    ("System", "Number"),
    ("Timestamp", "Now"),
    ("Commitments", "CommitmentOf"),
    ("SubtensorModule", "Uids"),
    ("SubtensorModule", "Keys"),
    ("SubtensorModule", "LastUpdate"),
    ("SubtensorModule", "Weights"),
    ("SubtensorModule", "Axons"),
    ("SubtensorModule", "ValidatorPermit"),
    ("SubtensorModule", "SubnetworkN"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_metadata_is_of_spec_365_and_has_all_that_is_required() {
        let runtime = Runtime::new(crate::METADATA.to_vec()).unwrap();
        assert_eq!(runtime.spec_version, 365);
        assert_eq!(runtime.format(), 16);
    }

    #[test]
    fn another_spec_version_is_the_only_thing_that_changes() {
        let patched = with_spec_version(crate::METADATA, 366).unwrap();
        let runtime = Runtime::new(patched.clone()).unwrap();
        assert_eq!(runtime.spec_version, 366);
        let changed = patched.iter().zip(crate::METADATA).filter(|(a, b)| a != b).count();
        assert_eq!((patched.len(), changed), (crate::METADATA.len(), 1));
        assert!(with_spec_version(b"metadata", 366).is_err());
    }

    #[test]
    fn bytes_that_are_no_metadata_are_refused_by_name() {
        let err = Runtime::new(b"metadata".to_vec()).err().unwrap();
        assert!(matches!(err, MetadataError::Decode(_)), "{err}");
    }

    #[test]
    fn a_name_is_changed_for_one_of_its_length_and_only_where_it_is_there() {
        let renamed = with_renamed(crate::METADATA, "SubnetworkN", "SubnetworkX").unwrap();
        let err = Runtime::new(renamed).err().unwrap();
        assert!(err.to_string().contains("SubtensorModule.SubnetworkN"), "{err}");
        assert!(with_renamed(crate::METADATA, "Tempo", "Tempos").is_err());
        assert!(with_renamed(crate::METADATA, "NoSuchName", "NoSuchNamf").is_err());
    }

    #[test]
    fn a_storage_key_with_the_wrong_number_of_parts_is_an_error() {
        let runtime = Runtime::new(crate::METADATA.to_vec()).unwrap();
        let many = vec![Value::u128(1); 5];
        assert!(runtime.key("SubtensorModule", "Tempo", &many).is_err());
        assert!(runtime.key("SubtensorModule", "NoSuchThing", &many[..1]).is_err());
    }
}
