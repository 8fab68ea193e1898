use std::{collections::BTreeSet, path::Path};

use reqwest::{Response, Url, header::LINK};
use serde::{Deserialize, Serialize};

use super::{
    client::{Client, Failed, shown, told},
    files::Files,
};
use crate::{
    DataError, Repo, Revision,
    format::Format,
    shard::{Content, Shard, is_plain},
    work::blocking,
};

/// Pages of a listing.
const MOST_PAGES: usize = 2_000;
/// Bytes of a page.
const LONGEST_PAGE: usize = 16 << 20;
/// Files of a known format.
const MOST_FILES: usize = 500_000;

/// A file as the hub lists it.
#[derive(Deserialize)]
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
#[derive(Deserialize)]
struct Large {
    oid: String,
    size: u64,
}

/// A shard as it is remembered: path, size, kind and hash.
#[derive(Serialize, Deserialize)]
struct Line(String, u64, Kind, String);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Sha256,
    Git,
}

/// Every shard of a data set, in ascending order of path: from disk, as a revision never changes,
/// or else from the hub.
pub(super) async fn list(
    client: &Client,
    files: &Files,
    repo: &Repo,
    revision: &Revision,
) -> Result<Vec<Shard>, DataError> {
    let kept = files.listing(repo, revision);
    let reading = kept.clone();
    if let Some(shards) = blocking(move || Ok(read(&reading))).await? {
        return Ok(shards);
    }
    let mut url = client.url(["api", "datasets", repo.as_str(), "tree", revision.as_str()], "")?;
    url.set_query(Some("recursive=true"));
    let shards = ask(client, url).await?;
    let written = shards.clone();
    blocking(move || write(&kept, &written)).await?;
    Ok(shards)
}

async fn ask(client: &Client, first: Url) -> Result<Vec<Shard>, DataError> {
    let mut shards = Vec::new();
    let mut paths = BTreeSet::new();
    let mut next = Some(first.clone());
    let bad = |why: String| DataError::HubAnswer { url: shown(&first), why };
    for _ in 0..MOST_PAGES {
        let Some(url) = next.take() else {
            shards.sort_by(|one: &Shard, other| one.path.cmp(&other.path));
            return Ok(shards);
        };
        let (entries, link) = client.retry(&url, async |_| page(client, &url).await).await?;
        for entry in entries {
            let Some(shard) = shard(entry).map_err(bad)? else { continue };
            if !paths.insert(shard.path.clone()) {
                return Err(bad(format!("{} is listed twice", shard.path)));
            }
            shards.push(shard);
        }
        if shards.len() > MOST_FILES {
            return Err(bad(format!("more than {MOST_FILES} files")));
        }
        if let Some(link) = link {
            let url = url.join(&link).map_err(|error| bad(format!("the next page: {error}")))?;
            if !client.is_own(&url) {
                return Err(bad("its next page is on another host".to_owned()));
            }
            next = Some(url);
        }
    }
    Err(bad(format!("it has no end within {MOST_PAGES} pages")))
}

/// One page, and where the next one is.
async fn page(client: &Client, url: &Url) -> Result<(Vec<Entry>, Option<String>), Failed> {
    let mut response = client.get(url, 0).await?;
    let link = next_link(&response);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Failed::again(told(&error)))? {
        if body.len() + chunk.len() > LONGEST_PAGE {
            let why = format!("a page of more than {LONGEST_PAGE} bytes");
            return Err(DataError::HubAnswer { url: shown(url), why }.into());
        }
        body.extend_from_slice(&chunk);
    }
    let entries = serde_json::from_slice(&body)
        .map_err(|error| DataError::HubAnswer { url: shown(url), why: error.to_string() })?;
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

/// The entry as a shard; none where it is no file of texts.
fn shard(entry: Entry) -> Result<Option<Shard>, String> {
    let Some(format) = Format::of(&entry.path).filter(|_| entry.kind == "file") else {
        return Ok(None);
    };
    let (size, content) = match entry.lfs {
        Some(Large { oid, size }) => (size, Content::Sha256(oid)),
        None => (entry.size, Content::GitBlob(entry.oid)),
    };
    let shard = Shard { path: entry.path, size, content, format };
    if is_sound(&shard) { Ok(Some(shard)) } else { Err(format!("{shard:.200?}")) }
}

fn is_sound(shard: &Shard) -> bool {
    let hex = |hash: &str, digits| {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        hash.len() == digits && hash.bytes().all(digit)
    };
    let content = match &shard.content {
        Content::Sha256(hash) | Content::Blake2b(hash) => hex(hash, 64),
        Content::GitBlob(hash) => hex(hash, 40),
    };
    content && is_plain(&shard.path)
}

/// What was remembered, where it can be read.
fn read(path: &Path) -> Option<Vec<Shard>> {
    let lines: Vec<Line> = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let shard = |Line(path, size, kind, hash): Line| {
        let content = match kind {
            Kind::Sha256 => Content::Sha256(hash),
            Kind::Git => Content::GitBlob(hash),
        };
        let format = Format::of(&path)?;
        Some(Shard { path, size, content, format }).filter(is_sound)
    };
    lines.into_iter().map(shard).collect()
}

fn write(path: &Path, shards: &[Shard]) -> Result<(), DataError> {
    let line = |Shard { path, size, content, .. }: &Shard| {
        let (kind, hash) = match content {
            Content::Sha256(hash) | Content::Blake2b(hash) => (Kind::Sha256, hash),
            Content::GitBlob(hash) => (Kind::Git, hash),
        };
        Line(path.clone(), *size, kind, hash.clone())
    };
    let lines: Vec<_> = shards.iter().map(line).collect();
    let failed = |error| DataError::file(path, error);
    let json = serde_json::to_vec(&lines).map_err(|error| failed(error.into()))?;
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    std::io::Write::write_all(&mut file, &json).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}
