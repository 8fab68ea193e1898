//! What validators say to each other about models: which files they have, and which chunks they
//! want. Signed and opened as the messages of a merge are.

use bytes::Bytes;
use domain::{ExpertGroup, GlobalVersion, ModelHash};
use prost::Message as _;
use proto::{InvalidField, convert, peer::v2 as wire};

use crate::message::{self, Body, Envelope, Kind};

/// Bytes of a chunk: the same for everybody, or the lists of honest validators would differ.
pub const CHUNK: u32 = 1 << 20;
/// Chunks may be as small as this, so that no list is longer than its file is worth.
const MIN_CHUNK: u32 = 1 << 16;
/// Files of a model; those of a merge have three.
const MAX_FILES: usize = 128;
/// Longest name of a file.
const MAX_NAME: usize = 64;

/// Asks what a validator has of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldingsRequest {
    /// Who asks whom.
    pub envelope: Envelope,
    /// Expert group whose slice has the hash.
    pub group: ExpertGroup,
    /// The model that is wanted.
    pub model: ModelHash,
}

/// The files of a model: whoever signs this answers for every byte of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// Who says it to whom.
    pub envelope: Envelope,
    /// Version of the model.
    pub version: GlobalVersion,
    /// Its hash.
    pub model: ModelHash,
    /// Its files, ascending by name; none where the model is not there.
    pub files: Vec<ModelFile>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelFile {
    /// Name in the model's folder.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
    /// Bytes of a chunk; the last may be shorter.
    pub chunk: u32,
    /// Of its [`checkpoint::ChunkDigests`].
    pub root: [u8; 32],
}

impl ModelFile {
    /// How many chunks the file has.
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.len.div_ceil(u64::from(self.chunk.max(1)))).unwrap_or(u32::MAX)
    }
}

/// Asks for consecutive chunks of a file, or for the list of its digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRequest {
    /// Who asks whom.
    pub envelope: Envelope,
    /// The model.
    pub model: ModelHash,
    /// Name of the file.
    pub name: String,
    /// First chunk that is wanted.
    pub first: u32,
    /// How many from there; zero for the list.
    pub count: u32,
}

fn model(bytes: &[u8]) -> Result<ModelHash, InvalidField> {
    convert::bytes("model_hash", bytes).map(ModelHash)
}

/// A name that is no path, whatever is done with it.
fn name(text: String) -> Result<String, InvalidField> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.".contains(&b);
    let plain = text.bytes().all(allowed) && !text.starts_with('.');
    if text.is_empty() || text.len() > MAX_NAME || !plain {
        return Err(InvalidField::new("name", "not the name of a model's file"));
    }
    Ok(text)
}

fn file(file: wire::ModelFile) -> Result<ModelFile, InvalidField> {
    let wire::ModelFile { name: text, len, chunk, root } = file;
    if !(MIN_CHUNK..=CHUNK).contains(&chunk) {
        return Err(InvalidField::new("chunk", "must be 64 KiB to 1 MiB"));
    }
    if len.div_ceil(u64::from(chunk)) > u64::from(u32::MAX) {
        return Err(InvalidField::new("len", "too long"));
    }
    Ok(ModelFile { name: name(text)?, len, chunk, root: convert::bytes("root", &root)? })
}

impl Body for HoldingsRequest {
    const KIND: Kind = Kind::HoldingsRequest;

    fn encode(&self) -> Bytes {
        let message = wire::HoldingsRequest {
            envelope: Some(self.envelope.to_wire()),
            expert_group: self.group.0,
            model_hash: Bytes::copy_from_slice(&self.model.0),
        };
        message.encode_to_vec().into()
    }

    fn decode(body: &[u8]) -> Result<Self, InvalidField> {
        let m: wire::HoldingsRequest = message::read(body)?;
        Ok(Self {
            envelope: Envelope::from_wire(m.envelope)?,
            group: ExpertGroup(m.expert_group),
            model: model(&m.model_hash)?,
        })
    }

    fn envelope(&self) -> &Envelope {
        &self.envelope
    }
}

impl Body for Holdings {
    const KIND: Kind = Kind::Holdings;

    fn encode(&self) -> Bytes {
        let files = self.files.iter().map(|file| wire::ModelFile {
            name: file.name.clone(),
            len: file.len,
            chunk: file.chunk,
            root: Bytes::copy_from_slice(&file.root),
        });
        let message = wire::Holdings {
            envelope: Some(self.envelope.to_wire()),
            global_version: self.version.0,
            model_hash: Bytes::copy_from_slice(&self.model.0),
            files: files.collect(),
        };
        message.encode_to_vec().into()
    }

    fn decode(body: &[u8]) -> Result<Self, InvalidField> {
        let m: wire::Holdings = message::read(body)?;
        if m.files.len() > MAX_FILES {
            return Err(InvalidField::new("files", "too many"));
        }
        let files = m.files.into_iter().map(file).collect::<Result<Vec<_>, _>>()?;
        if files.windows(2).any(|pair| pair[0].name >= pair[1].name) {
            return Err(InvalidField::new("files", "not ascending"));
        }
        Ok(Self {
            envelope: Envelope::from_wire(m.envelope)?,
            version: GlobalVersion(m.global_version),
            model: model(&m.model_hash)?,
            files,
        })
    }

    fn envelope(&self) -> &Envelope {
        &self.envelope
    }
}

impl Body for ShardRequest {
    const KIND: Kind = Kind::Shard;

    fn encode(&self) -> Bytes {
        let message = wire::ShardRequest {
            envelope: Some(self.envelope.to_wire()),
            model_hash: Bytes::copy_from_slice(&self.model.0),
            name: self.name.clone(),
            first: self.first,
            count: self.count,
        };
        message.encode_to_vec().into()
    }

    fn decode(body: &[u8]) -> Result<Self, InvalidField> {
        let m: wire::ShardRequest = message::read(body)?;
        Ok(Self {
            envelope: Envelope::from_wire(m.envelope)?,
            model: model(&m.model_hash)?,
            name: name(m.name)?,
            first: m.first,
            count: m.count,
        })
    }

    fn envelope(&self) -> &Envelope {
        &self.envelope
    }
}

#[cfg(test)]
mod tests {
    use domain::{Hotkey, RoundId};
    use proptest::prelude::*;

    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            round: RoundId(7),
            sender: Hotkey::from_public_key([1; 32]),
            receiver: Hotkey::from_public_key([2; 32]),
            nonce: [3; 16],
            in_reply_to: Some([4; 16]),
        }
    }

    fn holdings(names: &[&str]) -> Holdings {
        let file = |name: &&str| ModelFile {
            name: (*name).to_owned(),
            len: 1,
            chunk: CHUNK,
            root: [5; 32],
        };
        let files = names.iter().map(file).collect();
        let (version, model) = (GlobalVersion(8), ModelHash([9; 24]));
        Holdings { envelope: envelope(), version, model, files }
    }

    #[test]
    fn every_message_is_read_as_it_was_written() {
        let holdings = holdings(&["manifest.json", "model_full.safetensors"]);
        assert_eq!(Holdings::decode(&holdings.encode()).unwrap(), holdings);
        let (group, model) = (ExpertGroup(3), ModelHash([9; 24]));
        let request = HoldingsRequest { envelope: envelope(), group, model };
        assert_eq!(HoldingsRequest::decode(&request.encode()).unwrap(), request);
        let name = "manifest.json".to_owned();
        let shard = ShardRequest { envelope: envelope(), model, name, first: 2, count: 5 };
        assert_eq!(ShardRequest::decode(&shard.encode()).unwrap(), shard);
    }

    #[test]
    fn names_that_are_paths_and_lists_out_of_order_are_refused() {
        for name in ["", ".", "..", "../a", "a/b", "A", "a\\b", ".a", "a b", &"a".repeat(65)] {
            assert_eq!(Holdings::decode(&holdings(&[name]).encode()).unwrap_err().field, "name");
        }
        for names in [["b", "a"], ["a", "a"]] {
            let refused = Holdings::decode(&holdings(&names).encode());
            assert_eq!(refused.unwrap_err().field, "files");
        }
    }

    #[test]
    fn chunks_of_other_sizes_than_a_list_is_worth_are_refused() {
        for (chunk, len, field) in
            [(0, 1, "chunk"), (CHUNK + 1, 1, "chunk"), (CHUNK, u64::MAX, "len")]
        {
            let mut holdings = holdings(&["a"]);
            holdings.files[0].chunk = chunk;
            holdings.files[0].len = len;
            assert_eq!(Holdings::decode(&holdings.encode()).unwrap_err().field, field);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_understood(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Holdings::decode(&bytes);
            let _ = HoldingsRequest::decode(&bytes);
            let _ = ShardRequest::decode(&bytes);
        }
    }
}
