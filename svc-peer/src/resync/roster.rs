//! Who may ask for models: the validators that the scheduler has named last.
//!
//! It is kept on the disk, so that a validator answers right after a restart too.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use domain::{Hotkey, RoundId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

use crate::error::Refused;

/// Which call of the scheduler names validators. What the one says does not replace what the other
/// has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The validators of a round that is merged.
    Merge,
    /// The holders of a model that is fetched.
    Resync,
}

/// What the scheduler has said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Roster {
    /// This validator.
    pub(crate) hotkey: Hotkey,
    /// The newest round that was named.
    pub(crate) round: RoundId,
    /// The one before: others may be in it still.
    before: RoundId,
    merge: BTreeSet<Hotkey>,
    resync: BTreeSet<Hotkey>,
}

impl Roster {
    /// Whether a message of this round and sender, for this receiver, is one to look at.
    pub(crate) fn admits(
        &self,
        round: RoundId,
        sender: &Hotkey,
        receiver: &Hotkey,
    ) -> Result<(), Refused> {
        if *receiver != self.hotkey {
            return Err(Refused::WrongReceiver);
        }
        if round < self.before {
            return Err(Refused::OldRound { newer: self.round.0 });
        }
        if *sender == self.hotkey || !(self.merge.contains(sender) || self.resync.contains(sender))
        {
            return Err(Refused::NotAValidator);
        }
        Ok(())
    }
}

/// The present roster.
#[derive(Debug)]
pub(crate) struct Rosters {
    path: PathBuf,
    now: watch::Sender<Option<Roster>>,
}

impl Rosters {
    /// As it was kept in `folder`; none where there is nothing, or nothing that is understood.
    pub(crate) fn open(folder: &Path) -> Self {
        let path = folder.join("roster.json");
        let kept = std::fs::read(&path).ok().and_then(|json| {
            let read = serde_json::from_slice(&json);
            read.inspect_err(|error| warn!(%error, path = %path.display(), "not understood")).ok()
        });
        Self { path, now: watch::Sender::new(kept) }
    }

    /// The present one; `not_started` before the scheduler has named anybody.
    pub(crate) fn now(&self) -> Result<Roster, Refused> {
        self.now.borrow().clone().ok_or(Refused::NotStarted)
    }

    /// Takes in what the scheduler says, unless it is about an older round.
    pub(crate) fn learn(
        &self,
        source: Source,
        round: RoundId,
        hotkey: &Hotkey,
        validators: BTreeSet<Hotkey>,
    ) {
        let mut kept = None;
        self.now.send_if_modified(|now| {
            let next = after(now.as_ref(), source, round, hotkey, validators);
            let changed = next.as_ref().is_some_and(|next| now.as_ref() != Some(next));
            if changed {
                kept.clone_from(&next);
                *now = next;
            }
            changed
        });
        if let Some(roster) = kept {
            self.keep(&roster);
        }
    }

    fn keep(&self, roster: &Roster) {
        let draft = self.path.with_extension("draft");
        let write = || {
            std::fs::create_dir_all(self.path.parent().unwrap_or(Path::new(".")))?;
            std::fs::write(&draft, serde_json::to_vec(roster)?)?;
            std::fs::rename(&draft, &self.path)
        };
        if let Err(error) = write() {
            warn!(%error, path = %self.path.display(), "cannot be kept");
        }
    }
}

/// What is known once `source` has said this; none where it is old.
fn after(
    now: Option<&Roster>,
    source: Source,
    round: RoundId,
    hotkey: &Hotkey,
    validators: BTreeSet<Hotkey>,
) -> Option<Roster> {
    let mut next = match now.filter(|now| now.hotkey == *hotkey) {
        Some(now) if round < now.round => return None,
        Some(now) if round > now.round => Roster { round, before: now.round, ..now.clone() },
        Some(now) => now.clone(),
        None => Roster {
            hotkey: hotkey.clone(),
            round,
            before: round,
            merge: BTreeSet::new(),
            resync: BTreeSet::new(),
        },
    };
    match source {
        Source::Merge => next.merge = validators,
        Source::Resync => next.resync = validators,
    }
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hotkey(seed: u8) -> Hotkey {
        Hotkey::from_public_key([seed; 32])
    }

    #[test]
    fn those_that_were_named_last_may_ask_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let rosters = Rosters::open(dir.path());
        assert!(matches!(rosters.now(), Err(Refused::NotStarted)));
        let (me, round) = (hotkey(1), RoundId(100));
        rosters.learn(Source::Merge, round, &me, [hotkey(2), hotkey(3)].into());
        rosters.learn(Source::Resync, RoundId(200), &me, [hotkey(4)].into());
        rosters.learn(Source::Merge, RoundId(50), &me, [hotkey(9)].into());

        let roster = Rosters::open(dir.path()).now().unwrap();
        let ask = |round, seed| roster.admits(RoundId(round), &hotkey(seed), &me);
        assert!((2..=4).all(|seed| ask(100, seed).is_ok() && ask(300, seed).is_ok()));
        assert!(matches!(ask(100, 9), Err(Refused::NotAValidator)));
        assert!(matches!(ask(99, 2), Err(Refused::OldRound { newer: 200 })));
        let other = roster.admits(round, &hotkey(2), &hotkey(3));
        assert!(matches!(other, Err(Refused::WrongReceiver)));

        rosters.learn(Source::Merge, RoundId(300), &me, [hotkey(3)].into());
        let refused = rosters.now().unwrap().admits(RoundId(300), &hotkey(2), &me);
        assert!(matches!(refused, Err(Refused::NotAValidator)));
    }

    #[test]
    fn another_hotkey_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let rosters = Rosters::open(dir.path());
        rosters.learn(Source::Merge, RoundId(100), &hotkey(1), [hotkey(2)].into());
        rosters.learn(Source::Merge, RoundId(50), &hotkey(3), [hotkey(4)].into());
        assert_eq!(rosters.now().unwrap().hotkey, hotkey(3));
    }
}
