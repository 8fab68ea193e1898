//! The place that a commitment names, looked at before anything is asked: strangers wrote it.

use domain::HubPlace;

use super::Fault;

/// Longest part of a repository's name.
const LONGEST: usize = 96;

/// A repository and the first digits of a commit, safe to be parts of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// `owner/name`.
    pub(crate) repo: String,
    /// 7 to 40 lower-case hex digits.
    pub(crate) digits: String,
}

impl TryFrom<&HubPlace> for Place {
    type Error = Fault;

    fn try_from(place: &HubPlace) -> Result<Self, Fault> {
        let bad = |why| Err(Fault::Place { why });
        let plain = |part: &str| {
            let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            (1..=LONGEST).contains(&part.len()) && part.bytes().all(known) && !part.starts_with('.')
        };
        match place.repo.split_once('/') {
            Some((owner, name)) if plain(owner) && plain(name) => {}
            Some(_) | None => return bad("the repository is not owner/name"),
        }
        let digits = place.revision.to_ascii_lowercase();
        if !(7..=40).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return bad("the revision is not 7 hex digits of a commit");
        }
        Ok(Self { repo: place.repo.clone(), digits })
    }
}

/// The id of a commit: 40 lower-case hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Commit(String);

impl Commit {
    /// The id, where `text` is one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        is_hex(text, 40).then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `text` is this many digits of lower-case hex.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == digits && text.bytes().all(digit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(repo: &str, revision: &str) -> Result<Place, Fault> {
        Place::try_from(&HubPlace { repo: repo.into(), revision: revision.into() })
    }

    #[test]
    fn a_place_that_could_lead_elsewhere_is_none() {
        for repo in
            ["", "one", "a/b/c", "../api", "a/..", "a/.b", "a/", "/b", "a b/c", "a/b?x", "a/ä"]
        {
            assert!(place(repo, "0123abc").is_err(), "{repo}");
        }
        for revision in ["", "main", "012345", "0123abg", "refs/pr", &"0".repeat(41)] {
            assert!(place("a/b", revision).is_err(), "{revision}");
        }
        assert_eq!(place("some-One/model_1.2", "0123ABC").unwrap().digits, "0123abc");
    }

    proptest! {
        #[test]
        fn a_place_never_leaves_its_two_parts(repo: String, revision: String) {
            if let Ok(place) = place(&repo, &revision) {
                prop_assert_eq!(place.repo.split('/').count(), 2);
                prop_assert!(place.repo.split('/').all(|part| part != ".." && part != "."));
                prop_assert!(place.digits.bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
    }
}
