//! A hub on a free port of this machine, which can be told how to lie.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, task::JoinHandle};

pub(crate) const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    Honest,
    /// Breaks every file off after so many bytes.
    Cuts(usize),
    /// Breaks the first file off, and sends whole files whatever range is asked for.
    IgnoresRanges(usize),
    /// Announces another range than it sends.
    WrongRange(usize),
    /// Sends other bytes than are listed.
    WrongContent,
    /// Sends more bytes than are listed, without a length.
    TooLong,
    /// Answers 429 so many times.
    Busy(usize),
    /// Answers 503 for ever.
    Down,
    /// Knows no files.
    Missing,
    /// Every page of the listing has a next one.
    Endless,
    /// The next page is on another host.
    PageElsewhere,
    /// The listing's text is this.
    Lists(&'static str),
    /// Nothing without the token.
    Private,
    /// Files are on another server, at this port.
    Redirects(u16),
    /// Files are at themselves.
    Circles,
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
}

#[derive(Debug)]
struct Told {
    lie: Mutex<Lie>,
    files: BTreeMap<String, Bytes>,
    requests: Mutex<Vec<Request>>,
}

#[derive(Debug)]
pub(crate) struct Hub {
    told: Arc<Told>,
    pub(crate) port: u16,
    serving: JoinHandle<()>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Hub {
    pub(crate) async fn start(lie: Lie, files: &[(&str, Vec<u8>)]) -> Self {
        // Whoever comes second finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.clone().into()));
        let told = Arc::new(Told {
            lie: Mutex::new(lie),
            files: files.collect(),
            requests: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().fallback(answer).with_state(told.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { told, port, serving }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn lie(&self, lie: Lie) {
        *self.told.lie.lock().unwrap() = lie;
    }

    /// Requests for files, in their order.
    pub(crate) fn file_requests(&self) -> Vec<Request> {
        let all = self.told.requests.lock().unwrap();
        all.iter().filter(|request| request.path.contains("/resolve/")).cloned().collect()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.told.requests.lock().unwrap().clone()
    }
}

async fn answer(State(told): State<Arc<Told>>, uri: Uri, headers: HeaderMap) -> Response {
    let header = |name| {
        headers.get(name).map(|value: &axum::http::HeaderValue| value.to_str().unwrap().to_owned())
    };
    let (range, token) = (header(header::RANGE), header(header::AUTHORIZATION));
    let path = uri.path().to_owned();
    let request = Request { path: path.clone(), range: range.clone(), token: token.clone() };
    told.requests.lock().unwrap().push(request);
    let lie = *told.lie.lock().unwrap();
    match lie {
        Lie::Busy(0) => *told.lie.lock().unwrap() = Lie::Honest,
        Lie::Busy(left) => {
            *told.lie.lock().unwrap() = Lie::Busy(left - 1);
            return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "0")]).into_response();
        }
        Lie::Down => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Lie::Private if token.as_deref() != Some("Bearer hf_secret") => {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        _ => {}
    }
    if let Some(rest) = path.strip_prefix("/api/datasets/some/texts/tree/") {
        return list(&told, lie, rest, uri.query().unwrap_or_default());
    }
    let files = format!("/datasets/some/texts/resolve/{REVISION}/");
    match path.strip_prefix(&files).or(path.strip_prefix("/elsewhere/")) {
        Some(file) => send(&told, lie, &path, file, range.as_deref()),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Two files a page.
fn list(told: &Told, lie: Lie, revision: &str, query: &str) -> Response {
    if revision != REVISION || !query.contains("recursive=true") || lie == Lie::Missing {
        return StatusCode::NOT_FOUND.into_response();
    }
    if let Lie::Lists(text) = lie {
        return text.into_response();
    }
    let from = query.split("cursor=").nth(1).map_or(0, |cursor| cursor.parse().unwrap());
    let mut entries = r#"[{"type":"directory","path":"data","oid":"x","size":0}"#.to_owned();
    for (path, bytes) in told.files.iter().skip(from).take(2) {
        let size = bytes.len();
        let small = hex::encode(
            sha1::Sha1::new().chain_update(format!("blob {size}\0")).chain_update(bytes).finalize(),
        );
        let large = hex::encode(Sha256::digest(bytes));
        let lfs = format!(r#","lfs":{{"oid":"{large}","size":{size},"pointerSize":130}}"#);
        let lfs =
            if path.ends_with(".gz") || path.ends_with(".parquet") { lfs } else { String::new() };
        write!(entries, r#",{{"type":"file","path":"{path}","oid":"{small}","size":{size}{lfs}}}"#)
            .unwrap();
    }
    entries.push(']');
    let cursor = if lie == Lie::Endless { told.files.len() } else { from + 2 };
    let host = if lie == Lie::PageElsewhere { "http://127.0.0.1:1" } else { "" };
    let next = format!(
        "<{host}/api/datasets/some/texts/tree/{revision}?recursive=true&cursor={cursor}>; rel=\"next\""
    );
    if cursor < told.files.len() || lie == Lie::Endless {
        ([(header::LINK, next)], entries).into_response()
    } else {
        entries.into_response()
    }
}

fn send(told: &Told, lie: Lie, path: &str, file: &str, range: Option<&str>) -> Response {
    let Some(bytes) = told.files.get(file).filter(|_| lie != Lie::Missing) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let from = range.map_or(0, |range| {
        range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap()
    });
    let partial = |from: usize, bytes: Bytes, sent: usize| {
        let (end, size) = (bytes.len() - 1, bytes.len());
        let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        let body = bytes.slice(from..);
        let headers = [
            (header::CONTENT_RANGE, format!("bytes {from}-{end}/{size}")),
            (header::CONTENT_LENGTH, body.len().to_string()),
        ];
        (status, headers, cut(body, sent)).into_response()
    };
    let first = told.requests.lock().unwrap().iter().filter(|seen| seen.path == path).count() == 1;
    match lie {
        Lie::Cuts(after) => partial(from, bytes.clone(), after),
        Lie::IgnoresRanges(after) => {
            let body = cut(bytes.clone(), if first { after } else { usize::MAX });
            ([(header::CONTENT_LENGTH, bytes.len().to_string())], body).into_response()
        }
        Lie::WrongRange(after) => partial(from.saturating_sub(1), bytes.clone(), after),
        Lie::WrongContent => {
            let mut other = bytes.to_vec();
            let middle = other.len() / 2;
            other[middle] ^= 1;
            other.into_response()
        }
        Lie::TooLong => {
            let chunks = [bytes.clone(), Bytes::from_static(b"more")].map(Ok::<_, std::io::Error>);
            Body::from_stream(futures::stream::iter(chunks)).into_response()
        }
        Lie::Redirects(port) if path.contains("/resolve/") => {
            let to = format!("http://127.0.0.1:{port}/elsewhere/{file}?signature=abc");
            (StatusCode::FOUND, [(header::LOCATION, to)]).into_response()
        }
        Lie::Circles => (StatusCode::FOUND, [(header::LOCATION, path.to_owned())]).into_response(),
        _ => partial(from, bytes.clone(), usize::MAX),
    }
}

/// A body that breaks off after `after` bytes.
fn cut(bytes: Bytes, after: usize) -> Body {
    if bytes.len() <= after {
        return Body::from(bytes);
    }
    let chunks = [Ok(bytes.slice(..after)), Err(std::io::Error::other("cut"))];
    let chunks = futures::stream::iter(chunks).then(async |chunk| {
        if chunk.is_err() {
            // What was sent before has to leave first.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        chunk
    });
    Body::from_stream(chunks)
}
