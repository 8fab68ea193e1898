//! What encoding has lost, from round to round: which file the next gradient makes up for.
//!
//! What was lost of a gradient counts once that gradient was merged; before that, what was lost earlier does. A
//! process may end between the two, so each round's file has the round in its name and is kept from when the
//! gradient is offered. How a round has ended is told by [`Residuals::settle`], as often as one likes.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use domain::RoundId;

/// The files of one expert group, in a folder of their own that outlives rounds.
#[derive(Debug)]
pub(crate) struct Residuals {
    folder: PathBuf,
}

/// Ends the name of a file that does not count yet.
const OFFERED: &str = ".offered";

impl Residuals {
    /// Opens the folder, which is made where it is missing.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// What the gradient of `round` makes up for: what was lost in the last round before it that merged this
    /// validator's gradient; `None` when nothing was. The same however often a round is started.
    pub(crate) fn before(&self, round: RoundId) -> io::Result<Option<PathBuf>> {
        let Some(last) = self.rounds("")?.into_iter().rfind(|kept| *kept < round.0) else {
            return Ok(None);
        };
        let path = self.path(last, "");
        Ok((fs::metadata(&path)?.len() > 0).then_some(path))
    }

    /// Moves what encoding the gradient of `round` has lost here, before the gradient is offered. It does not
    /// count yet. `None`: nothing was lost.
    pub(crate) fn offer(&self, round: RoundId, lost: Option<&Path>) -> io::Result<()> {
        let path = self.path(round.0, OFFERED);
        match lost {
            Some(lost) => fs::rename(lost, path),
            None => fs::write(path, []),
        }
    }

    /// Rounds that offered a gradient and are not settled, ascending: after a restart, their reports tell how
    /// they ended.
    pub(crate) fn unsettled(&self) -> io::Result<Vec<RoundId>> {
        Ok(self.rounds(OFFERED)?.into_iter().map(RoundId).collect())
    }

    /// A round is over: with `merged`, this validator's gradient is in its result. Nothing changes where
    /// nothing was offered in it, or where this was told before.
    pub(crate) fn settle(&self, round: RoundId, merged: bool) -> io::Result<()> {
        let offered = self.path(round.0, OFFERED);
        if !merged {
            return remove(&offered);
        }
        match fs::rename(&offered, self.path(round.0, "")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            done => done?,
        }
        // The one before stays, for a round that is started again.
        let older: Vec<u64> = self.rounds("")?.into_iter().filter(|kept| *kept < round.0).collect();
        older.iter().rev().skip(1).try_for_each(|kept| remove(&self.path(*kept, "")))
    }

    fn path(&self, round: u64, ending: &str) -> PathBuf {
        self.folder.join(format!("{round}{ending}"))
    }

    /// Rounds that have a file whose name ends so, ascending.
    fn rounds(&self, ending: &str) -> io::Result<Vec<u64>> {
        let mut rounds = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let round =
                name.to_str().and_then(|name| name.strip_suffix(ending)?.parse::<u64>().ok());
            rounds.extend(round);
        }
        rounds.sort_unstable();
        Ok(rounds)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        /// As after a restart.
        fn open(&self) -> Residuals {
            Residuals::open(self.0.path().join("residuals")).unwrap()
        }

        fn offer(&self, round: u64, content: &str) {
            let lost = self.0.path().join("lost");
            fs::write(&lost, content).unwrap();
            self.open().offer(RoundId(round), Some(&lost)).unwrap();
        }

        fn settle(&self, round: u64, merged: bool) {
            self.open().settle(RoundId(round), merged).unwrap();
        }

        fn before(&self, round: u64) -> Option<String> {
            let path = self.open().before(RoundId(round)).unwrap()?;
            Some(fs::read_to_string(path).unwrap())
        }
    }

    #[test]
    fn what_was_lost_counts_once_its_gradient_was_merged() {
        let folder = Folder(tempfile::tempdir().unwrap());
        assert_eq!(folder.before(1), None);
        folder.offer(1, "one");
        assert_eq!(folder.before(2), None, "not settled");
        folder.settle(1, true);
        assert_eq!(folder.before(2).as_deref(), Some("one"));
        folder.offer(2, "two");
        folder.settle(2, false);
        assert_eq!(folder.before(3).as_deref(), Some("one"), "the second was not merged");
        folder.offer(3, "three");
        folder.settle(3, true);
        assert_eq!(folder.before(4).as_deref(), Some("three"));
    }

    #[test]
    fn a_round_that_is_started_again_makes_up_for_the_same() {
        let folder = Folder(tempfile::tempdir().unwrap());
        folder.offer(1, "one");
        folder.settle(1, true);
        folder.offer(2, "two");
        folder.offer(2, "two");
        assert_eq!(folder.before(2).as_deref(), Some("one"));
        assert_eq!(folder.open().unsettled().unwrap(), [RoundId(2)]);
        for _ in 0..2 {
            folder.settle(2, true);
            assert_eq!(folder.before(2).as_deref(), Some("one"));
            assert_eq!(folder.before(3).as_deref(), Some("two"));
        }
        assert!(folder.open().unsettled().unwrap().is_empty());
        folder.settle(7, true);
        assert_eq!(folder.before(8).as_deref(), Some("two"), "nothing was offered in the seventh");
    }

    #[test]
    fn after_a_round_that_lost_nothing_there_is_nothing_to_make_up_for() {
        let folder = Folder(tempfile::tempdir().unwrap());
        folder.offer(9, "nine");
        folder.settle(9, true);
        folder.open().offer(RoundId(10), None).unwrap();
        assert_eq!(folder.before(11).as_deref(), Some("nine"));
        folder.settle(10, true);
        assert_eq!(folder.before(11), None);
    }

    #[test]
    fn two_settled_files_are_kept_and_no_more() {
        let folder = Folder(tempfile::tempdir().unwrap());
        for round in 8..13 {
            folder.offer(round, "x");
            folder.settle(round, true);
        }
        let names = folder.open().rounds("").unwrap();
        assert_eq!(names, [11, 12]);
    }
}
