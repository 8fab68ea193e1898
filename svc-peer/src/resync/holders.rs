//! What a resync knows of its holders: what each has signed, who does not answer, who is to blame.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use domain::{Hotkey, ModelHash};
use serde::Serialize;
use tracing::warn;

use super::{
    lists::{List, Word, lists},
    message::ModelFile,
    status::named,
};
use crate::{metrics, report::LeftOut};

/// A validator that has revealed the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// `ip:port`, empty when it has none.
    pub(crate) axon: String,
    /// In rao.
    pub(crate) stake: u64,
}

/// All holders of a model.
#[derive(Debug)]
pub(crate) struct Holders {
    model: ModelHash,
    all: BTreeMap<Hotkey, Holder>,
    words: BTreeMap<Hotkey, Word>,
    /// Why others have said nothing yet that helps.
    silent: BTreeMap<Hotkey, &'static str>,
    blamed: BTreeMap<Hotkey, LeftOut>,
    /// How often nothing more could be had of those behind a list.
    starved: BTreeMap<Vec<ModelFile>, u32>,
    /// Folder for what was signed by those that are to blame.
    evidence: PathBuf,
}

/// What proves, to whoever has the files, that somebody has lied: `<model>/<hotkey>.json`.
#[derive(Serialize)]
struct Evidence<'a> {
    model_hash: ModelHash,
    blamed: &'a LeftOut,
    /// What each holder has signed about the model, the blamed one's among it.
    holdings: Vec<SignedHoldings>,
}

#[derive(Serialize)]
struct SignedHoldings {
    hotkey: Hotkey,
    body: String,
    signature: String,
}

impl Holders {
    /// Nobody has said anything yet.
    pub(crate) fn new(model: ModelHash, all: BTreeMap<Hotkey, Holder>, evidence: &Path) -> Self {
        let (words, silent, blamed, starved) = Default::default();
        let evidence = evidence.join(model.to_hex());
        Self { model, all, words, silent, blamed, starved, evidence }
    }

    /// Whom to ask what it has: those of whom nothing is known, and that are not to blame.
    pub(crate) fn to_ask(&self) -> Vec<Hotkey> {
        let open = |holder: &&Hotkey| {
            !self.blamed.contains_key(*holder) && !self.words.contains_key(*holder)
        };
        self.all.keys().filter(open).cloned().collect()
    }

    /// Takes in what a holder has signed. That it has nothing is no answer: it may still come to it.
    pub(crate) fn said(&mut self, holder: Hotkey, mut word: Word) {
        if word.holdings.files.is_empty() {
            return self.failed(holder, "no_model");
        }
        let Some(known) = self.all.get(&holder) else { return };
        word.stake = known.stake;
        self.silent.remove(&holder);
        self.words.insert(holder, word);
    }

    /// Nothing is to be had of a holder for now.
    pub(crate) fn failed(&mut self, holder: Hotkey, reason: &'static str) {
        self.words.remove(&holder);
        self.silent.insert(holder, reason);
    }

    /// The list to be tried next, once there is nothing to be waited for: it has more than half of
    /// the stake behind it, or all have spoken, or it is `late`.
    pub(crate) fn next(&self, late: bool) -> Option<List> {
        let mut lists = lists(&self.words);
        let stake = |(holder, known): (&Hotkey, &Holder)| {
            (!self.blamed.contains_key(holder)).then_some(u128::from(known.stake))
        };
        let total: u128 = self.all.iter().filter_map(stake).sum();
        let most = lists.first().map_or(0, |list| list.stake);
        if !late && most * 2 <= total && !self.to_ask().is_empty() {
            return None;
        }
        lists.sort_by_key(|list| self.starved.get(&list.files).copied().unwrap_or_default());
        lists.into_iter().next()
    }

    /// Puts a list behind those that were tried less often.
    pub(crate) fn starved(&mut self, list: &List) {
        *self.starved.entry(list.files.clone()).or_default() += 1;
    }

    /// Whether nobody is left to ask.
    pub(crate) fn all_lied(&self) -> bool {
        self.blamed.len() == self.all.len()
    }

    /// Whether somebody has ever had the model.
    pub(crate) fn any_had_it(&self) -> bool {
        !self.words.is_empty() || !self.starved.is_empty() || !self.blamed.is_empty()
    }

    /// Roots of files that somebody stands for.
    pub(crate) fn roots(&self) -> BTreeSet<[u8; 32]> {
        self.words.values().flat_map(|word| &word.holdings.files).map(|file| file.root).collect()
    }

    /// Who has said nothing that helps, and who is to blame, for a person.
    pub(crate) fn detail(&self) -> String {
        let silent = self.silent.iter().filter(|(holder, _)| !self.blamed.contains_key(*holder));
        let silent = silent.map(|(holder, reason)| (holder, *reason));
        let blamed = self.blamed.values().map(|one| (&one.hotkey, one.reason.as_str()));
        named(silent.chain(blamed))
    }

    /// Those that are to blame, ascending.
    pub(crate) fn blamed(&self) -> Vec<LeftOut> {
        self.blamed.values().cloned().collect()
    }

    /// Never asks this one again, and keeps what it has signed.
    pub(crate) async fn blame(&mut self, holder: &Hotkey, reason: &'static str, detail: &str) {
        warn!(%holder, reason, detail, model_hash = %self.model, "a holder of the model is to blame");
        metrics::resync_blamed(reason);
        let blamed = LeftOut {
            hotkey: holder.clone(),
            reason: reason.to_owned(),
            detail: detail.to_owned(),
        };
        self.keep(&blamed).await;
        self.words.remove(holder);
        self.blamed.insert(holder.clone(), blamed);
    }

    async fn keep(&self, blamed: &LeftOut) {
        let signed = |(hotkey, word): (&Hotkey, &Word)| SignedHoldings {
            hotkey: hotkey.clone(),
            body: hex::encode(&word.signed.0),
            signature: hex::encode(&word.signed.1),
        };
        let holdings = self.words.iter().map(signed).collect();
        let evidence = Evidence { model_hash: self.model, blamed, holdings };
        let write = async {
            tokio::fs::create_dir_all(&self.evidence).await?;
            let path = self.evidence.join(format!("{}.json", blamed.hotkey));
            tokio::fs::write(path, serde_json::to_vec_pretty(&evidence)?).await
        };
        if let Err(error) = write.await {
            warn!(%error, folder = %self.evidence.display(), "evidence cannot be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::{GlobalVersion, RoundId};

    use super::*;
    use crate::{message::Envelope, resync::message::Holdings};

    fn hotkey(seed: u8) -> Hotkey {
        Hotkey::from_public_key([seed; 32])
    }

    fn word(seed: u8, root: u8) -> (Hotkey, Word) {
        let sender = hotkey(seed);
        let envelope = Envelope {
            round: RoundId(1),
            sender: sender.clone(),
            receiver: hotkey(0),
            nonce: [0; 16],
            in_reply_to: None,
        };
        let file = ModelFile { name: "f".to_owned(), len: 1, chunk: 1, root: [root; 32] };
        let (version, model) = (GlobalVersion(1), ModelHash([0; 24]));
        let holdings = Holdings { envelope, version, model, files: vec![file] };
        (sender, Word { stake: 0, holdings, signed: Default::default() })
    }

    fn holders(stakes: &[u64], evidence: &Path) -> Holders {
        let holder = |(n, stake): (usize, &u64)| {
            (hotkey(n as u8), Holder { axon: String::new(), stake: *stake })
        };
        Holders::new(ModelHash([0; 24]), stakes.iter().enumerate().map(holder).collect(), evidence)
    }

    fn say(holders: &mut Holders, seed: u8, root: u8) {
        let (holder, word) = word(seed, root);
        holders.said(holder, word);
    }

    #[tokio::test]
    async fn less_than_half_of_the_stake_is_waited_for_until_it_is_late() {
        let dir = tempfile::tempdir().unwrap();
        let mut holders = holders(&[3, 3, 4], dir.path());
        say(&mut holders, 0, 1);
        assert_eq!(holders.next(false), None);
        assert_eq!(holders.next(true).unwrap().stake, 3);
        say(&mut holders, 1, 1);
        assert_eq!(holders.next(false).unwrap().stake, 6);
        holders.blame(&hotkey(0), "wrong_chunk", "").await;
        assert_eq!(holders.next(false), None, "one of the two that are left is waited for");
        say(&mut holders, 2, 9);
        assert_eq!(holders.next(false).unwrap().files[0].root, [9; 32]);
    }

    #[tokio::test]
    async fn a_list_of_which_nothing_could_be_had_is_tried_after_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut holders = holders(&[3, 2], dir.path());
        say(&mut holders, 0, 1);
        say(&mut holders, 1, 2);
        let first = holders.next(false).unwrap();
        assert_eq!(first.stake, 3);
        holders.starved(&first);
        assert_eq!(holders.next(false).unwrap().stake, 2);
    }

    #[tokio::test]
    async fn who_is_to_blame_is_not_asked_again_and_its_word_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut holders = holders(&[3, 2], dir.path());
        say(&mut holders, 0, 1);
        say(&mut holders, 1, 2);
        holders.blame(&hotkey(0), "wrong_model_hash", "why").await;
        assert!(!holders.to_ask().contains(&hotkey(0)) && !holders.all_lied());
        assert_eq!(holders.roots(), [[2; 32]].into());
        let path = dir.path().join(ModelHash([0; 24]).to_hex()).join(format!("{}.json", hotkey(0)));
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(json["blamed"]["reason"], "wrong_model_hash");
        assert_eq!(json["holdings"].as_array().unwrap().len(), 2);
    }
}
