//! What holders have signed, brought together: who says the same stands for the same list.

use std::collections::BTreeMap;

use bytes::Bytes;
use checkpoint::{Format, Manifest, SliceId};
use domain::{ExpertGroup, GlobalVersion, Hotkey};

use super::message::{Holdings, ModelFile};

/// A holder's signed word on which files a model has.
#[derive(Debug, Clone)]
pub(crate) struct Word {
    /// Its stake.
    pub(crate) stake: u64,
    /// What it said.
    pub(crate) holdings: Holdings,
    /// The same, encoded, and its signature.
    pub(crate) signed: (Bytes, Bytes),
}

/// A list of files, and who has signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List {
    /// Version of the model.
    pub(crate) version: GlobalVersion,
    /// The files, ascending by name.
    pub(crate) files: Vec<ModelFile>,
    /// Those that answer for it, ascending.
    pub(crate) signers: Vec<Hotkey>,
    /// Stake of them all.
    pub(crate) stake: u128,
}

/// The lists that were signed, the one with most stake behind it first. An empty list says that the
/// model is not there, and is left out.
pub(crate) fn lists(words: &BTreeMap<Hotkey, Word>) -> Vec<List> {
    let mut lists: Vec<List> = Vec::new();
    for (signer, Word { stake, holdings, .. }) in words {
        let Holdings { version, files, .. } = holdings;
        if files.is_empty() {
            continue;
        }
        let same = lists.iter_mut().find(|list| list.version == *version && list.files == *files);
        match same {
            Some(list) => {
                list.signers.push(signer.clone());
                list.stake += u128::from(*stake);
            }
            None => lists.push(List {
                version: *version,
                files: files.clone(),
                signers: vec![signer.clone()],
                stake: u128::from(*stake),
            }),
        }
    }
    lists.sort_by(|a, b| (b.stake, &a.signers).cmp(&(a.stake, &b.signers)));
    lists
}

/// Name of the file with the optimizer's state of a group.
pub(crate) fn optimizer_file(group: ExpertGroup) -> String {
    format!("optimizer_{group}.safetensors")
}

/// Names of the files that make a whole model, of which those that `is_there` says are there:
/// everything else is made of them again. None where they do not suffice.
pub(crate) fn enough(manifest: &Manifest, is_there: impl Fn(&str) -> bool) -> Option<Vec<String>> {
    let file = |id: &SliceId| id.file_name(Format::Safetensors);
    let full = file(&SliceId::Full);
    let mut names = if is_there(&full) {
        vec![full]
    } else {
        manifest.slices.keys().filter(|id| **id != SliceId::Full).map(file).collect()
    };
    names.push(Manifest::FILE_NAME.to_owned());
    if !names.iter().all(|name| is_there(name)) {
        return None;
    }
    names.extend(Some(optimizer_file(manifest.expert_group)).filter(|name| is_there(name)));
    names.sort();
    Some(names)
}

#[cfg(test)]
mod tests {
    use domain::{ModelHash, RoundId};

    use super::*;
    use crate::message::Envelope;

    fn word(seed: u8, stake: u64, roots: &[u8]) -> (Hotkey, Word) {
        let sender = Hotkey::from_public_key([seed; 32]);
        let envelope = Envelope {
            round: RoundId(1),
            sender: sender.clone(),
            receiver: sender.clone(),
            nonce: [0; 16],
            in_reply_to: None,
        };
        let file =
            |root: &u8| ModelFile { name: "f".to_owned(), len: 1, chunk: 1, root: [*root; 32] };
        let files = roots.iter().map(file).collect();
        let (version, model) = (GlobalVersion(1), ModelHash([0; 24]));
        let holdings = Holdings { envelope, version, model, files };
        (sender, Word { stake, holdings, signed: Default::default() })
    }

    #[test]
    fn the_list_with_most_stake_is_first_however_many_signed_another() {
        let words = [word(1, 10, &[1]), word(2, 10, &[1]), word(3, 21, &[2]), word(4, 99, &[])];
        let lists = lists(&words.into());
        assert_eq!(lists.iter().map(|list| list.stake).collect::<Vec<_>>(), [21, 20]);
        assert_eq!(lists[1].signers.len(), 2);
    }

    #[test]
    fn more_stake_than_a_u64_holds_is_counted() {
        let words = [word(1, u64::MAX, &[1]), word(2, u64::MAX, &[1])];
        assert_eq!(lists(&words.into())[0].stake, 2 * u128::from(u64::MAX));
    }
}
