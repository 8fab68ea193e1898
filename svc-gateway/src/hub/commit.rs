//! From the first digits of a commit to the one commit that they mean.

use reqwest::Url;
use serde::Deserialize;

use super::{
    Failure, Fault, Trouble,
    client::Session,
    listing::{Pages, page},
    place::{Commit, Place},
};

/// Pages of commits that are looked through.
const MOST_PAGES: usize = 20;

/// What the hub tells of a revision.
#[derive(Deserialize)]
struct Revision {
    sha: String,
}

/// A commit as the hub lists it.
#[derive(Deserialize)]
struct Listed {
    id: String,
}

/// The commit that a place means: the hub is asked for it, and where it knows no short names, or means a
/// branch of that name, its list of commits is looked through.
pub(crate) async fn resolve(session: &mut Session<'_>, place: &Place) -> Result<Commit, Trouble> {
    let url = session.client.url(&["api/models", &place.repo, "revision", &place.digits])?;
    let mut waits = session.client.waits();
    loop {
        match page::<Revision>(session, &url).await {
            Ok((revision, _)) => {
                let commit = Commit::parse(&revision.sha);
                let commit = commit.ok_or_else(|| Failure::answer("a commit without an id"))?;
                if commit.as_str().starts_with(&place.digits) {
                    return Ok(commit);
                }
                break;
            }
            Err(Trouble::Fault(Fault::NoCommit { .. })) => break,
            Err(trouble) => waits.next(trouble).await?,
        }
    }
    search(session, place).await
}

/// The only commit of the main branch that begins with the digits.
async fn search(session: &mut Session<'_>, place: &Place) -> Result<Commit, Trouble> {
    let (repo, digits) = (place.repo.clone(), place.digits.clone());
    let url: Url = session.client.url(&["api/models", &place.repo, "commits", "main"])?;
    let mut pages = Pages::new(url, MOST_PAGES);
    let mut found: Option<Commit> = None;
    loop {
        let commits = match pages.next::<Listed>(session).await {
            Ok(Some(commits)) => commits,
            Ok(None) => break,
            Err(Trouble::Fault(Fault::NoCommit { .. })) => break,
            Err(trouble) => return Err(trouble),
        };
        for listed in commits.iter().filter(|listed| listed.id.starts_with(&digits)) {
            let commit = Commit::parse(&listed.id);
            let commit = commit.ok_or_else(|| Failure::answer("a commit without an id"))?;
            if found.as_ref().is_some_and(|found| *found != commit) {
                return Err(Fault::SeveralCommits { repo, digits }.into());
            }
            found = Some(commit);
        }
    }
    found.ok_or_else(|| Fault::NoCommit { repo, digits }.into())
}
