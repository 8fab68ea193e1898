//! Whether an upload is taken: everything that can be told before its file is read.
//!
//! Pure: the form's fields and the state of the validator in, a claim or a refusal out. The order of the
//! checks is that of the protocol, section 8.

use std::{collections::BTreeMap, fmt::Display, str::FromStr, sync::Arc};

use domain::{
    BlockNumber, Hotkey, ModelHash, Reason, RoundId, Uid, block_message, submission_message,
};

use crate::{
    auth::{self, Signature},
    error::Error,
    marks::Transport,
    view::{Miner, Round, View},
};

/// The endings that files may have.
pub(crate) const EXTENSIONS: [&str; 5] = [".pt", ".bin", ".ckpt", ".safetensors", ".tar"];
/// Longest file name, in bytes.
const MAX_FILE_NAME: usize = 128;

/// The text fields of a form, by name. The empty ones count as missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields(BTreeMap<String, String>);

impl Fields {
    /// Takes a field that must not have been given before.
    pub(crate) fn insert(&mut self, name: String, value: String) -> Result<(), Error> {
        if self.0.contains_key(&name) {
            return Err(Error::RepeatedField { field: name });
        }
        self.0.insert(name, value);
        Ok(())
    }

    /// Takes what `insert` has not: the first word counts.
    pub(crate) fn add(&mut self, name: &str, value: &str) {
        self.0.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }

    /// The text of a field, where it is not empty.
    pub(crate) fn get(&self, field: &str) -> Option<&str> {
        self.0.get(field).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// The text of a field that must be there.
    pub(crate) fn text(&self, field: &'static str) -> Result<&str, Error> {
        self.get(field).ok_or(Error::MissingField { field })
    }

    /// The value of a field that must be there.
    pub(crate) fn parse<T>(&self, field: &'static str) -> Result<T, Error>
    where
        T: FromStr,
        T::Err: Display,
    {
        self.text(field)?
            .parse()
            .map_err(|why: T::Err| Error::InvalidField { field, why: why.to_string() })
    }
}

/// An upload that may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The round that it is for.
    pub(crate) round: RoundId,
    /// The miner.
    pub(crate) hotkey: Hotkey,
    /// Its slot.
    pub(crate) uid: Uid,
    /// The hash that it committed.
    pub(crate) model_hash: ModelHash,
    /// Name of the file, safe to be the last part of a key.
    pub(crate) file_name: String,
    /// Digest of the request's signature, which may be used once; empty where nobody sent one.
    pub(crate) nonce: String,
    /// The road that it takes.
    pub(crate) transport: Transport,
}

/// Who an upload is from, once its signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sender {
    /// The miner.
    pub(crate) hotkey: Hotkey,
    model_hash: ModelHash,
    origin: BlockNumber,
    block_hex: String,
    nonce: String,
}

/// The round that takes uploads now.
pub(crate) fn open_round(view: &View) -> Result<&Arc<Round>, Error> {
    let phase = view.schedule.phase_of(view.block);
    if phase != domain::Phase::Submission {
        return Err(Error::NotSubmissionPhase { block: view.block, phase });
    }
    view.round.as_ref().filter(|round| round.uploads_open).ok_or(Error::UploadsClosed)
}

/// Reads the fields and verifies that the miner whom they name sent them, to this validator.
pub(crate) fn authenticate(fields: &Fields, view: &View) -> Result<Sender, Error> {
    for field in [
        "target_hotkey_ss58",
        "origin_hotkey_ss58",
        "origin_block",
        "model_hex",
        "block_hex",
        "signature",
    ] {
        fields.text(field)?;
    }
    let target = check_target(fields, view)?;
    let hotkey: Hotkey = fields.parse("origin_hotkey_ss58")?;
    let origin = BlockNumber(fields.parse("origin_block")?);
    let model_hash: ModelHash = fields.parse("model_hex")?;
    let signature: Signature = fields.parse("signature")?;
    if !signature.is_of(&hotkey, &submission_message(&model_hash, &target, origin)) {
        return Err(Error::RequestSignature { hotkey, message: "submission message" });
    }
    let block_hex = fields.text("block_hex")?.to_owned();
    Ok(Sender { hotkey, model_hash, origin, block_hex, nonce: signature.digest() })
}

/// The target that the fields name, which must be this validator.
pub(crate) fn check_target(fields: &Fields, view: &View) -> Result<Hotkey, Error> {
    let target: Hotkey = fields.parse("target_hotkey_ss58")?;
    if target == view.hotkey {
        Ok(target)
    } else {
        Err(Error::WrongTarget { target, hotkey: view.hotkey.clone() })
    }
}

/// Whether this sender's file is wanted in this round.
pub(crate) fn admit(
    sender: Sender,
    file_name: Option<&str>,
    view: &View,
    round: &Round,
) -> Result<Claim, Error> {
    let Sender { hotkey, model_hash, origin, block_hex, nonce } = sender;
    if !block_hex.eq_ignore_ascii_case(&hex::encode(block_message(&view.hotkey, origin))) {
        return Err(Error::BlockHex { origin });
    }
    let cycle = view.schedule.cycle_of_round(round.id);
    let (first, last) = view.schedule.phase_range(cycle, domain::Phase::Submission);
    if !(first..=last).contains(&origin) {
        return Err(Error::OriginBlock { origin, first, last });
    }
    let miner = on_roster(&hotkey, round)?;
    let committed = usable_commitment(&hotkey, miner, round.id)?;
    if committed != model_hash {
        return Err(Error::NotCommittedHash { given: model_hash, committed });
    }
    let transport = Transport::Upload;
    claim((hotkey, miner), committed, file_name, round.id, (nonce, transport))
}

/// Whether a file that nobody sent, but this miner left on the hub, is wanted in this round.
pub(crate) fn admit_pull(hotkey: &Hotkey, file_name: &str, round: &Round) -> Result<Claim, Error> {
    let miner = on_roster(hotkey, round)?;
    let committed = usable_commitment(hotkey, miner, round.id)?;
    let of = (String::new(), Transport::Hub);
    claim((hotkey.clone(), miner), committed, Some(file_name), round.id, of)
}

fn on_roster<'a>(hotkey: &Hotkey, round: &'a Round) -> Result<&'a Miner, Error> {
    let unknown = || Error::NotOnRoster { hotkey: hotkey.clone(), round: round.id };
    round.miners.get(hotkey).ok_or_else(unknown)
}

/// What both roads ask for in the end.
fn claim(
    (hotkey, miner): (Hotkey, &Miner),
    model_hash: ModelHash,
    file_name: Option<&str>,
    round: RoundId,
    (nonce, transport): (String, Transport),
) -> Result<Claim, Error> {
    if !auth::commits_to(&hotkey, &miner.signature, &model_hash) {
        return Err(Error::CommittedSignature { hotkey });
    }
    let file_name = safe_file_name(file_name)?;
    Ok(Claim { round, uid: miner.uid, hotkey, model_hash, file_name, nonce, transport })
}

/// The hash that a miner of the roster committed, if it may upload.
fn usable_commitment(hotkey: &Hotkey, miner: &Miner, round: RoundId) -> Result<ModelHash, Error> {
    let hotkey = hotkey.clone();
    let Some(committed) = miner.model_hash else {
        return Err(Error::NothingCommitted { hotkey, round });
    };
    if miner.may_upload {
        return Ok(committed);
    }
    let (reason, detail) = (miner.reason.clone(), miner.detail.clone());
    match reason.parse::<Reason>() {
        Ok(Reason::NothingCommitted) => Err(Error::NothingCommitted { hotkey, round }),
        Ok(known) if known.is_miners_fault() => {
            Err(Error::UnusableCommitment { hotkey, reason, detail })
        }
        _ => Err(Error::NotAssigned { hotkey, detail }),
    }
}

/// The stable text of a commitment's reason.
pub(crate) fn commitment_reason(reason: &str) -> &'static str {
    reason.parse::<Reason>().map_or("commitment_incomplete", Reason::as_str)
}

/// The name, if nobody can mean harm by it: no folders, nothing hidden, printable, not long, and with one
/// of the [`EXTENSIONS`].
pub(crate) fn safe_file_name(name: Option<&str>) -> Result<String, Error> {
    let unsafe_name = |why| Err(Error::UnsafeFileName { why });
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return unsafe_name("it is missing");
    };
    if name.len() > MAX_FILE_NAME {
        return unsafe_name("it is too long");
    }
    if name.starts_with('.') || name.contains("..") {
        return unsafe_name("it begins with a dot or has two in a row");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.=+@".contains(&b)) {
        return unsafe_name("only ASCII letters, digits and -_.=+@ are taken");
    }
    if name == "meta.json" || !EXTENSIONS.iter().any(|extension| name.ends_with(extension)) {
        return Err(Error::Extension);
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_with_folders_hidden_names_and_control_characters_are_unsafe() {
        for name in [
            "",
            "../a.pt",
            "a/b.pt",
            "/etc/a.pt",
            "C:\\a.pt",
            ".pt",
            ".a.pt",
            "a\0.pt",
            "a\n.pt",
            "a..pt",
            "ä.pt",
            &format!("{}.pt", "a".repeat(200)),
        ] {
            let error = safe_file_name(Some(name)).unwrap_err();
            assert_eq!(error.reason(), "unsafe_file_name", "{name:?}");
        }
        assert_eq!(safe_file_name(None).unwrap_err().reason(), "unsafe_file_name");
    }

    #[test]
    fn only_the_extensions_of_the_protocol_are_taken() {
        for name in ["model", "model.exe", "model.pt.exe", "pt", "model.PT"] {
            assert_eq!(safe_file_name(Some(name)).unwrap_err().reason(), "unknown_extension");
        }
        for extension in EXTENSIONS {
            assert!(safe_file_name(Some(&format!("model{extension}"))).is_ok());
        }
    }

    proptest! {
        #[test]
        fn a_safe_name_is_one_plain_path_component(name: String) {
            if let Ok(safe) = safe_file_name(Some(&name)) {
                let path = std::path::Path::new(&safe);
                prop_assert_eq!(path.components().count(), 1);
                prop_assert_eq!(path.file_name().and_then(|n| n.to_str()), Some(safe.as_str()));
            }
        }
    }
}
