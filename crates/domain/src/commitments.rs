//! The compact JSON that hotkeys commit on chain (protocol, section 4).
//!
//! What is read here was written by strangers: any bytes give a value or a typed error. What the
//! values mean together is the business of [`crate::join`].

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{BlockNumber, ExpertGroup, GlobalVersion, ModelHash};

/// Most bytes of a commitment.
pub const MAX_COMMITMENT_BYTES: usize = 128;

/// Most characters of a hub repository's name.
const MAX_REPO_CHARS: usize = 32;

/// Hex digits of a hub revision.
const REVISION_DIGITS: usize = 7;

/// Why bytes are not a commitment, or a commitment cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitmentError {
    /// More than the chain takes.
    #[error("{bytes} bytes: at most {MAX_COMMITMENT_BYTES} are taken")]
    TooLong {
        /// How many there are.
        bytes: usize,
    },
    /// Text in another encoding, or none at all.
    #[error("not UTF-8")]
    NotUtf8,
    /// Not an object of JSON.
    #[error("not a JSON object")]
    NotAnObject,
    /// An object that has none of the kind's keys: somebody else's.
    #[error("a JSON object with none of the known keys")]
    Foreign,
    /// A key with a value that it cannot have.
    #[error("`{key}` is not {expected}")]
    Field {
        /// The key.
        key: &'static str,
        /// What it should have been.
        expected: &'static str,
    },
}

impl CommitmentError {
    /// A stable snake_case word, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too_long",
            Self::NotUtf8 => "not_utf8",
            Self::NotAnObject => "not_an_object",
            Self::Foreign => "foreign",
            Self::Field { .. } => "bad_field",
        }
    }
}

/// What bytes are by the keys that they have. What they count for is also a matter of who committed
/// them, and when: the join of the two commits decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommitmentKind {
    /// A [`SignedHashCommitment`]: nothing but a signature.
    SignedHash,
    /// A [`ValidatorCommitment`]: none of the keys that only a miner writes.
    Validator,
    /// A [`MinerCommitment`]: with a block, inner steps, or a signature beside other keys.
    Miner,
}

impl CommitmentKind {
    /// Reads bytes as what their keys say.
    ///
    /// # Errors
    /// When they are nothing of the protocol's, or a key has a value that it cannot have.
    pub fn of(bytes: &[u8]) -> Result<Self, CommitmentError> {
        let fields = Fields::parse(bytes, &["b", "e", "m", "h", "v", "i", "s", "r", "rv"])?;
        let has = |keys: &[&str]| keys.iter().any(|key| fields.get(key).is_some());
        if has(&["b", "i"]) {
            return MinerCommitment::parse(bytes).map(|_| Self::Miner);
        }
        match (has(&["m"]), has(&["e", "h", "v", "s", "r", "rv"])) {
            (true, false) => SignedHashCommitment::parse(bytes).map(|_| Self::SignedHash),
            (true, true) => MinerCommitment::parse(bytes).map(|_| Self::Miner),
            (false, _) => ValidatorCommitment::parse(bytes).map(|_| Self::Validator),
        }
    }

    /// A stable snake_case word, for metrics and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SignedHash => "signed_hash",
            Self::Validator => "validator",
            Self::Miner => "miner",
        }
    }
}

/// First commit phase of both roles: the signature of the model hash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct SignedHashCommitment {
    /// Signature of the model hash, URL-safe base64 without padding; not verified yet.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// A validator's commitment, in MinerCommit1 (its seed) and ValidatorCommit2 (the new model).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ValidatorCommitment {
    /// Model hash of the validator's global model.
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    pub model_hash: Option<ModelHash>,
    /// Its global version.
    #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
    pub version: Option<GlobalVersion>,
    /// The expert group that it evaluates.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub group: Option<ExpertGroup>,
    /// Its part of the combined seed.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Hub repository, at most 32 characters.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// First 7 hex digits of the hub commit.
    #[serde(rename = "rv", default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// A miner's commitment in MinerCommit2: the model hash is revealed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct MinerCommitment {
    /// Block at which the miner wrote it.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    pub block: Option<BlockNumber>,
    /// The expert group that it trained.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub group: Option<ExpertGroup>,
    /// Signature of the model hash, where it fits once more.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// Model hash of its checkpoint.
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    pub model_hash: Option<ModelHash>,
    /// Global version of the model that it trained on.
    #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
    pub version: Option<GlobalVersion>,
    /// Optimizer steps that it made.
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    pub inner_step: Option<u64>,
    /// Hub repository, at most 32 characters.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// First 7 hex digits of the hub commit.
    #[serde(rename = "rv", default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

impl SignedHashCommitment {
    /// Reads a commitment of the first commit phase.
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, CommitmentError> {
        let fields = Fields::parse(bytes, &["m"])?;
        Ok(Self { signature: fields.text("m")? })
    }

    /// Writes it as compact JSON.
    ///
    /// # Errors
    /// When it is longer than the chain takes, or a field is not what it may be.
    pub fn to_json(&self) -> Result<String, CommitmentError> {
        write(self)
    }
}

impl ValidatorCommitment {
    /// Reads a validator's commitment.
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, CommitmentError> {
        let fields = Fields::parse(bytes, &["h", "v", "e", "s", "r", "rv"])?;
        Ok(Self {
            model_hash: fields.hash("h")?,
            version: fields.number("v")?.map(GlobalVersion),
            group: fields.group("e")?,
            seed: fields.number("s")?,
            repo: fields.repo("r")?,
            revision: fields.revision("rv")?,
        })
    }

    /// Writes it as compact JSON.
    ///
    /// # Errors
    /// When it is longer than the chain takes, or a field is not what it may be.
    pub fn to_json(&self) -> Result<String, CommitmentError> {
        check_repo("r", self.repo.as_deref())?;
        check_revision("rv", self.revision.as_deref())?;
        write(self)
    }
}

impl MinerCommitment {
    /// Reads a miner's commitment of the second commit phase.
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, CommitmentError> {
        let fields = Fields::parse(bytes, &["b", "e", "m", "h", "v", "i", "r", "rv"])?;
        Ok(Self {
            block: fields.number("b")?.map(BlockNumber),
            group: fields.group("e")?,
            signature: fields.text("m")?,
            model_hash: fields.hash("h")?,
            version: fields.number("v")?.map(GlobalVersion),
            inner_step: fields.number("i")?,
            repo: fields.repo("r")?,
            revision: fields.revision("rv")?,
        })
    }

    /// Writes it as compact JSON.
    ///
    /// # Errors
    /// When it is longer than the chain takes, or a field is not what it may be.
    pub fn to_json(&self) -> Result<String, CommitmentError> {
        check_repo("r", self.repo.as_deref())?;
        check_revision("rv", self.revision.as_deref())?;
        write(self)
    }
}

fn write(commitment: &impl Serialize) -> Result<String, CommitmentError> {
    let json = serde_json::to_string(commitment).map_err(|_| CommitmentError::NotAnObject)?;
    if json.len() > MAX_COMMITMENT_BYTES {
        return Err(CommitmentError::TooLong { bytes: json.len() });
    }
    Ok(json)
}

fn check_repo(key: &'static str, repo: Option<&str>) -> Result<(), CommitmentError> {
    if repo.is_some_and(|repo| repo.chars().count() > MAX_REPO_CHARS) {
        return Err(CommitmentError::Field { key, expected: "text of at most 32 characters" });
    }
    Ok(())
}

fn check_revision(key: &'static str, revision: Option<&str>) -> Result<(), CommitmentError> {
    let good = |text: &str| {
        text.len() == REVISION_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    if revision.is_some_and(|revision| !good(revision)) {
        return Err(CommitmentError::Field { key, expected: "7 hex digits" });
    }
    Ok(())
}

/// The fields of an object that has at least one of the known keys. Other keys are ignored, and
/// `null` is the same as absent.
struct Fields(Map<String, Value>);

impl Fields {
    fn parse(bytes: &[u8], keys: &[&str]) -> Result<Self, CommitmentError> {
        if bytes.len() > MAX_COMMITMENT_BYTES {
            return Err(CommitmentError::TooLong { bytes: bytes.len() });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| CommitmentError::NotUtf8)?;
        let object: Map<String, Value> =
            serde_json::from_str(text).map_err(|_| CommitmentError::NotAnObject)?;
        let fields = Self(object);
        if !keys.iter().any(|key| fields.get(key).is_some()) {
            return Err(CommitmentError::Foreign);
        }
        Ok(fields)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &'static str) -> Result<Option<String>, CommitmentError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let bad = CommitmentError::Field { key, expected: "text" };
        value.as_str().map(|text| Some(text.to_owned())).ok_or(bad)
    }

    fn number(&self, key: &'static str) -> Result<Option<u64>, CommitmentError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let bad = CommitmentError::Field { key, expected: "a whole number" };
        value.as_u64().map(Some).ok_or(bad)
    }

    fn group(&self, key: &'static str) -> Result<Option<ExpertGroup>, CommitmentError> {
        let Some(number) = self.number(key)? else { return Ok(None) };
        let bad = CommitmentError::Field { key, expected: "an expert group" };
        u32::try_from(number).map(|group| Some(ExpertGroup(group))).map_err(|_| bad)
    }

    fn hash(&self, key: &'static str) -> Result<Option<ModelHash>, CommitmentError> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let bad = CommitmentError::Field { key, expected: "48 lower-case hex digits" };
        text.parse().map(Some).map_err(|_| bad)
    }

    fn repo(&self, key: &'static str) -> Result<Option<String>, CommitmentError> {
        let repo = self.text(key)?;
        check_repo(key, repo.as_deref())?;
        Ok(repo)
    }

    fn revision(&self, key: &'static str) -> Result<Option<String>, CommitmentError> {
        let revision = self.text(key)?;
        check_revision(key, revision.as_deref())?;
        Ok(revision)
    }
}

#[cfg(test)]
mod tests;
