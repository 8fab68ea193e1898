//! What the hub says, if it behaves, and what of it is spoilt.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::{HubRequest, Mischief, Told, wire::Answer};

/// Entries of a page.
const PAGE: usize = 3;
/// Files from this length on are told with their SHA-256.
const LARGE: usize = 1024;

/// The id that a commit of these files gets.
pub(super) fn commit_id(repo: &str, files: &[(&str, Vec<u8>)]) -> String {
    let mut digest = Sha1::new_with_prefix(repo);
    for (path, bytes) in files {
        digest.update(path);
        digest.update(Sha256::digest(bytes));
    }
    hex::encode(digest.finalize())
}

pub(super) fn answer(told: &Told, request: &HubRequest, mischief: &Mischief) -> Answer {
    match mischief {
        Mischief::Status(status, headers) => {
            return headers
                .iter()
                .fold(Answer::new(*status, Vec::new()), |answer, (name, value)| {
                    answer.with(name, value.as_str())
                });
        }
        Mischief::NeedsToken(token)
            if request.authorization.as_deref() != Some(&format!("Bearer {token}")) =>
        {
            return Answer::new(401, b"Invalid username or password.".to_vec());
        }
        Mischief::Redirect(to) => return Answer::new(302, Vec::new()).with("Location", to),
        Mischief::Circle => return Answer::new(302, Vec::new()).with("Location", &request.path),
        Mischief::Says(text) => return Answer::new(200, text.clone().into_bytes()),
        _ => {}
    }
    let parts: Vec<_> = request.path.trim_start_matches('/').split('/').collect();
    match (request.elsewhere, parts.as_slice()) {
        (true, ["files", owner, name, commit, path @ ..]) => {
            file(told, request, mischief, (&format!("{owner}/{name}"), commit, &path.join("/")))
        }
        (false, ["api", "models", owner, name, kind, rest]) => {
            let repo = format!("{owner}/{name}");
            if !knows(told, &repo) {
                // As the well-known one says of what is not there, and of what is not for everyone.
                return Answer::new(401, b"Invalid username or password.".to_vec());
            }
            match *kind {
                "revision" => revision(told, &repo, rest),
                "commits" => paged(request, mischief, commits(told, &repo)),
                "tree" => match tree(&told.commit(&repo, rest)) {
                    Some(entries) => paged(request, mischief, entries),
                    None => refused(404, "RevisionNotFound"),
                },
                _ => refused(404, ""),
            }
        }
        (false, [owner, name, "resolve", commit, path @ ..]) => {
            resolve(told, &format!("{owner}/{name}"), commit, &path.join("/"))
        }
        _ => refused(404, ""),
    }
}

fn refused(status: u16, code: &str) -> Answer {
    Answer::new(status, Vec::new()).with("X-Error-Code", code)
}

fn knows(told: &Told, repo: &str) -> bool {
    of(told, repo).next().is_some()
}

/// Commits of a repository, the newest first.
fn of(told: &Told, repo: &str) -> std::vec::IntoIter<String> {
    let commits = told.commits.lock().unwrap_or_else(PoisonError::into_inner);
    let ids = commits.iter().rev().filter(|(known, _)| known == repo).map(|(_, id)| id.clone());
    ids.collect::<Vec<_>>().into_iter()
}

fn revision(told: &Told, repo: &str, digits: &str) -> Answer {
    let mut found = of(told, repo).filter(|id| id.starts_with(digits));
    match (found.next(), found.next()) {
        (Some(id), None) => {
            let info = json!({ "id": repo, "sha": id, "private": false, "siblings": [] });
            Answer::new(200, info.to_string().into_bytes())
        }
        _ => refused(404, "RevisionNotFound"),
    }
}

fn commits(told: &Told, repo: &str) -> Vec<Value> {
    of(told, repo).map(|id| json!({ "id": id, "title": "a commit", "authors": [] })).collect()
}

fn tree(folder: &Path) -> Option<Vec<Value>> {
    let mut paths = Vec::new();
    walk(folder, &mut paths)?;
    paths.sort();
    let entry = |path: &PathBuf| {
        let name = path.strip_prefix(folder).ok()?.to_str()?.to_owned();
        let Ok(bytes) = fs::read(path) else {
            return Some(json!({ "type": "directory", "path": name, "oid": "", "size": 0 }));
        };
        let size = bytes.len();
        let blob = Sha1::new_with_prefix(format!("blob {size}\0")).chain_update(&bytes);
        let mut entry = json!({
            "type": "file", "path": name, "oid": hex::encode(blob.finalize()), "size": size,
        });
        if size >= LARGE {
            let sha256 = hex::encode(Sha256::digest(&bytes));
            entry["lfs"] = json!({ "oid": sha256, "size": size, "pointerSize": 130 });
        }
        Some(entry)
    };
    paths.iter().map(entry).collect()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Option<()> {
    for entry in fs::read_dir(folder).ok()? {
        let path = entry.ok()?.path();
        if path.is_dir() {
            walk(&path, found)?;
        }
        found.push(path);
    }
    Some(())
}

/// Some entries of a listing, and where the next ones are.
fn paged(request: &HubRequest, mischief: &Mischief, entries: Vec<Value>) -> Answer {
    let cursor = request.query.split("cursor=").nth(1).and_then(|cursor| cursor.parse().ok());
    let from: usize = cursor.unwrap_or(0);
    let page: Vec<_> = entries.iter().skip(from).take(PAGE).cloned().collect();
    let answer = Answer::new(200, Value::Array(page).to_string().into_bytes());
    let endless = *mischief == Mischief::Endless;
    let host = if *mischief == Mischief::PageElsewhere { "http://127.0.0.1:1" } else { "" };
    if from + PAGE < entries.len() || endless || !host.is_empty() {
        let next = format!("{host}{}?recursive=true&cursor={}", request.path, from + PAGE);
        answer.with("Link", format!("<{next}>; rel=\"next\""))
    } else {
        answer
    }
}

fn resolve(told: &Told, repo: &str, commit: &str, path: &str) -> Answer {
    let Ok(bytes) = fs::read(told.commit(repo, commit).join(path)) else {
        return refused(404, "EntryNotFound");
    };
    let to = format!("http://{}/files/{repo}/{commit}/{path}?signature=abc", told.files);
    let answer = Answer::new(302, Vec::new()).with("Location", to).with("X-Repo-Commit", commit);
    match bytes.len() {
        0..LARGE => answer,
        size => answer
            .with("X-Linked-Size", size.to_string())
            .with("X-Linked-Etag", format!("\"{}\"", hex::encode(Sha256::digest(&bytes)))),
    }
}

fn file(
    told: &Told,
    request: &HubRequest,
    mischief: &Mischief,
    (repo, commit, path): (&str, &str, &str),
) -> Answer {
    let Ok(mut bytes) = fs::read(told.commit(repo, commit).join(path)) else {
        return refused(404, "");
    };
    let size = bytes.len();
    let tag = match mischief {
        Mischief::Etag(tag) => (*tag).to_owned(),
        _ => format!("\"{}\"", hex::encode(Sha256::digest(&bytes))),
    };
    if *mischief == Mischief::OtherBytes
        && let Some(byte) = bytes.get_mut(size / 2)
    {
        *byte ^= 1;
    }
    let same = request.if_range.as_ref().is_none_or(|wanted| *wanted == tag);
    let from = request.from.and_then(|from| usize::try_from(from).ok());
    let from = from.filter(|_| same && *mischief != Mischief::IgnoreRange).unwrap_or(0);
    let mut answer = if from > 0 {
        let told = from + usize::from(*mischief == Mischief::WrongRange);
        let range = format!("bytes {told}-{}/{size}", size.saturating_sub(1));
        Answer::new(206, bytes.split_off(from.min(size))).with("Content-Range", range)
    } else {
        Answer::new(200, bytes)
    };
    match mischief {
        Mischief::WrongLength(more) => answer.length = answer.length.map(|length| length + more),
        Mischief::TooMuch(more) => {
            answer.body.extend(std::iter::repeat_n(7, *more));
            answer.length = None;
        }
        _ => {}
    }
    if tag.is_empty() { answer } else { answer.with("ETag", tag) }
}
