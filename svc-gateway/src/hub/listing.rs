//! What a commit holds, and which of its files is the submission.

use checkpoint::{Format, SliceId};
use domain::ExpertGroup;
use reqwest::{Response, Url, header::LINK};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::{
    Failure, Fault, Trouble,
    client::{Part, Session, told},
    place::{Commit, Place, is_hex},
};
use crate::admit;

/// Bytes of one answer.
const LONGEST_PAGE: usize = 4 << 20;
/// Pages of a listing.
const MOST_PAGES: usize = 20;

/// A file as the hub lists it.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Large>,
}

/// What a large file's pointer says.
#[derive(Debug, Deserialize)]
struct Large {
    oid: String,
    size: u64,
}

/// The hash that the hub lists for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// SHA-256 of a large file, hex.
    Sha256(String),
    /// Id of a git blob, hex: SHA-1 over `blob <size>`, a zero byte and the content.
    GitBlob(String),
}

/// A file that may be a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Where it lies in the repository.
    pub(crate) path: String,
    /// Its length.
    pub(crate) size: u64,
    /// Its hash.
    pub(crate) content: Content,
}

impl Listed {
    /// The entry, where it is a file with a name that an upload could have.
    fn of(entry: Entry) -> Option<Self> {
        let (size, content) = match entry.lfs {
            Some(Large { oid, size }) => (size, Content::Sha256(oid)),
            None => (entry.size, Content::GitBlob(entry.oid)),
        };
        let hashed = match &content {
            Content::Sha256(hash) => is_hex(hash, 64),
            Content::GitBlob(hash) => is_hex(hash, 40),
        };
        let plain =
            |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0']);
        let listed = Self { path: entry.path, size, content };
        let sound = entry.kind == "file" && hashed && listed.path.split('/').all(plain);
        (sound && admit::safe_file_name(Some(listed.name())).is_ok()).then_some(listed)
    }

    /// The last part of its path.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// The submission at this commit.
pub(crate) async fn find(
    session: &mut Session<'_>,
    place: &Place,
    commit: &Commit,
    group: ExpertGroup,
) -> Result<Listed, Trouble> {
    let mut url = session.client.url(&["api/models", &place.repo, "tree", commit.as_str()])?;
    url.set_query(Some("recursive=true"));
    let mut pages = Pages::new(url, MOST_PAGES);
    let mut files: Vec<Listed> = Vec::new();
    while let Some(entries) = pages.next::<Entry>(session).await? {
        files.extend(entries.into_iter().filter_map(Listed::of));
    }
    choose(files, group).map_err(|why| {
        Fault::NoFile { repo: place.repo.clone(), commit: commit.as_str().to_owned(), why }.into()
    })
}

/// Which of these files is the submission for `group`: the one that is named as its slice, safetensors
/// before `.pt`, or else the only one there is.
fn choose(files: Vec<Listed>, group: ExpertGroup) -> Result<Listed, String> {
    for format in [Format::Safetensors, Format::Pt] {
        let name = SliceId::Group(group).file_name(format);
        if let Some(file) = files.iter().find(|file| file.path == name) {
            return Ok(file.clone());
        }
        let mut named = files.iter().filter(|file| file.name() == name);
        match (named.next(), named.next()) {
            (Some(file), None) => return Ok(file.clone()),
            (Some(_), Some(_)) => return Err(format!("several files are named {name}")),
            (None, _) => {}
        }
    }
    let count = files.len();
    match <[Listed; 1]>::try_from(files) {
        Ok([file]) => Ok(file),
        Err(_) if count == 0 => Err("no file of it can be one".to_owned()),
        Err(_) => Err(format!("{count} files could be it, and none has the name of the slice")),
    }
}

/// A listing that is read page by page.
#[derive(Debug)]
pub(crate) struct Pages {
    next: Option<Url>,
    left: usize,
}

impl Pages {
    pub(crate) fn new(first: Url, most: usize) -> Self {
        Self { next: Some(first), left: most }
    }

    /// The entries of the next page, if there is one. A page that is not to be had is asked for again.
    pub(crate) async fn next<T: DeserializeOwned>(
        &mut self,
        session: &mut Session<'_>,
    ) -> Result<Option<Vec<T>>, Trouble> {
        let Some(url) = self.next.take() else { return Ok(None) };
        self.left =
            self.left.checked_sub(1).ok_or_else(|| Failure::answer("a listing without end"))?;
        let mut waits = session.client.waits();
        let (entries, link) = loop {
            match page(session, &url).await {
                Ok(page) => break page,
                Err(trouble) => waits.next(trouble).await?,
            }
        };
        if let Some(link) = link {
            let next =
                url.join(&link).map_err(|_| Failure::answer("a next page that is nowhere"))?;
            if !session.client.is_own(&next) {
                return Err(Failure::answer("a next page on another host").into());
            }
            self.next = Some(next);
        }
        Ok(Some(entries))
    }
}

/// One answer in JSON, and where the next one is.
pub(crate) async fn page<T: DeserializeOwned>(
    session: &mut Session<'_>,
    url: &Url,
) -> Result<(T, Option<String>), Trouble> {
    let idle = session.client.timeout();
    let mut response = session.get(url, &Part::default()).await?.response;
    let link = next_link(&response);
    let mut body = Vec::new();
    loop {
        let chunk = timeout(idle, response.chunk()).await;
        let chunk = chunk.map_err(|_| Failure::passing("the answer stands still"))?;
        let Some(chunk) = chunk.map_err(|error| Failure::passing(told(&error)))? else { break };
        if body.len() + chunk.len() > LONGEST_PAGE {
            let why = format!("a page of more than {LONGEST_PAGE} bytes");
            return Err(Failure::answer(why).into());
        }
        body.extend_from_slice(&chunk);
    }
    let entries = serde_json::from_slice(&body).map_err(Failure::answer)?;
    Ok((entries, link))
}

fn next_link(response: &Response) -> Option<String> {
    let links = response.headers().get(LINK)?.to_str().ok()?;
    links.split(',').find_map(|link| {
        let (address, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = rest.split(';').any(|part| part.trim() == "rel=\"next\"");
        next.then(|| address.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(path: &str) -> Listed {
        Listed { path: path.into(), size: 7, content: Content::Sha256("0".repeat(64)) }
    }

    fn chosen(paths: &[&str]) -> Result<String, String> {
        let files = paths.iter().map(|path| listed(path)).collect();
        choose(files, ExpertGroup(3)).map(|file| file.path)
    }

    #[test]
    fn the_slice_s_name_is_preferred_safetensors_first_and_the_top_first() {
        let (pt, safe) = ("model_expgroup_3.pt", "model_expgroup_3.safetensors");
        let deep = "ckpt/model_expgroup_3.safetensors";
        assert_eq!(chosen(&[pt, "a.pt", safe]).unwrap(), safe);
        assert_eq!(chosen(&[pt, "optimizer.pt"]).unwrap(), pt);
        assert_eq!(chosen(&[deep, safe]).unwrap(), safe);
        assert_eq!(chosen(&[deep, "a.pt", pt]).unwrap(), deep);
        assert!(chosen(&["a/model_expgroup_3.pt", "b/model_expgroup_3.pt"]).is_err());
    }

    #[test]
    fn another_name_is_taken_only_where_nothing_else_could_be_meant() {
        assert_eq!(chosen(&["anything.bin"]).unwrap(), "anything.bin");
        assert!(chosen(&[]).is_err());
        assert!(chosen(&["model_expgroup_4.pt", "shared.pt"]).is_err());
    }

    #[test]
    fn what_is_no_file_or_has_a_name_that_leads_elsewhere_is_not_looked_at() {
        let entry = |kind: &str, path: &str, oid: &str| {
            let (kind, path, oid) = (kind.to_owned(), path.to_owned(), oid.to_owned());
            Listed::of(Entry { kind, path, size: 1, oid, lfs: None })
        };
        let oid = "0".repeat(40);
        assert!(entry("file", "a/b.pt", &oid).is_some());
        assert!(entry("directory", "a.pt", &oid).is_none());
        assert!(entry("file", "a.pt", "0123").is_none());
        for path in
            ["../a.pt", "a/../b.pt", "/a.pt", "a//b.pt", ".git/a.pt", "a.txt", "a b.pt", "a\\b.pt"]
        {
            assert!(entry("file", path, &oid).is_none(), "{path}");
        }
    }
}
