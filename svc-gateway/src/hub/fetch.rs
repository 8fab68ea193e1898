//! One file of the hub, into the gateway's intake: broken off and gone on with as often as it takes, and
//! what was verified is not fetched again.
//!
//! The miner answers for the content that its commit lists, and for no other: a content that is refused is
//! still read to its end, and only counts against the miner when it has the listed hash.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{
    Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue},
};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout};

use super::{
    Failure, Trouble,
    bucket::Pace,
    client::{Answer, Part, Session, told},
    listing::{Content, Listed},
    place::Commit,
};
use crate::{error::Error, intake::Intake, metrics};

/// Bytes that a try has to bring to count as something new; less where the file is small.
const PROGRESS: u64 = 64 << 10;
/// How long a connection is watched before it is called slow.
const WATCHED: Duration = Duration::from_secs(10);

/// A file on its way in.
pub(crate) struct Fetch<'a> {
    pub(crate) url: Url,
    pub(crate) commit: &'a Commit,
    pub(crate) file: &'a Listed,
    pub(crate) pace: Pace,
    /// Bytes per second below which a connection is given up.
    pub(crate) least: u64,
    pub(crate) got: Got,
}

/// What came so far.
pub(crate) struct Got {
    /// Where it goes; or why it is none, once that is known.
    intake: Result<Intake, Error>,
    digest: Digest,
    bytes: u64,
    /// The state of the file that it is of, as the server named it.
    of: Option<HeaderValue>,
}

impl Got {
    /// Nothing yet.
    pub(crate) fn nothing(intake: Intake, file: &Listed) -> Self {
        Self { intake: Ok(intake), digest: Digest::new(file), bytes: 0, of: None }
    }
}

impl Fetch<'_> {
    /// Fetches all of it. Refused for its content only when it is the content that is listed.
    pub(crate) async fn run(mut self, session: &mut Session<'_>) -> Result<Intake, Trouble> {
        let mut waits = session.client.waits();
        let enough = PROGRESS.min(self.file.size / 1000).max(1);
        loop {
            let before = self.got.bytes;
            let Err(trouble) = self.go_on(session).await else { break };
            metrics::hub_break();
            if self.got.bytes - before >= enough {
                waits.begin_anew();
            }
            waits.next(trouble).await?;
        }
        let Got { intake, digest, .. } = self.got;
        if !digest.tells(self.file) {
            return Err(Failure::changed("its bytes are not those that are listed").into());
        }
        Ok(intake?)
    }

    /// One request for what is missing.
    async fn go_on(&mut self, session: &mut Session<'_>) -> Result<(), Trouble> {
        if self.got.bytes == self.file.size {
            return Ok(());
        }
        let part = Part { from: self.got.bytes, of: self.got.of.clone() };
        let Answer { mut response, hub } = session.get(&self.url, &part).await?;
        for headers in &hub {
            same_as_listed(headers, self.commit, self.file)?;
        }
        let mut again = begin(&response, &self.got, self.file.size)?;
        if self.got.of.is_none() {
            self.got.of = strong(response.headers());
        }
        let idle = session.client.timeout();
        let mut watch = Watch::new(self.least);
        loop {
            let asked = Instant::now();
            let chunk = timeout(idle, response.chunk()).await;
            let chunk = chunk.map_err(|_| Failure::passing("the file stands still"))?;
            let Some(chunk) = chunk.map_err(|error| Failure::passing(told(&error)))? else { break };
            metrics::hub_bytes(chunk.len() as u64);
            watch.came(asked.elapsed(), chunk.len() as u64)?;
            self.pace.pay(chunk.len() as u64).await;
            let chunk = match &mut again {
                Some(repeated) => repeated.skip(chunk, &self.got)?,
                None => chunk,
            };
            self.take(chunk).await?;
        }
        if self.got.bytes < self.file.size {
            let why = format!("{} of {} bytes", self.got.bytes, self.file.size);
            return Err(Failure::passing(why).into());
        }
        Ok(())
    }

    async fn take(&mut self, chunk: Bytes) -> Result<(), Trouble> {
        let bytes = self.got.bytes + chunk.len() as u64;
        if bytes > self.file.size {
            let why = format!("more than the {} bytes that are listed", self.file.size);
            return Err(Failure::answer(why).into());
        }
        self.got.digest.update(&chunk);
        self.got.bytes = bytes;
        if let Ok(intake) = &mut self.got.intake {
            match intake.push(&chunk).await {
                Ok(()) => {}
                // What is gone on with has to be of the same content: the rest decides whose fault it is.
                Err(error @ Error::Content(_)) => self.got.intake = Err(error),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The first part of a file that the server sends once more, though only the rest was asked for.
#[derive(Debug)]
struct Repeated {
    digest: Digest,
    left: u64,
}

impl Repeated {
    /// What of `chunk` is new. The old part has to be what came before.
    fn skip(&mut self, mut chunk: Bytes, got: &Got) -> Result<Bytes, Failure> {
        let old = self.left.min(chunk.len() as u64);
        self.digest.update(&chunk.split_to(usize::try_from(old).unwrap_or(usize::MAX)));
        self.left -= old;
        if old > 0 && self.left == 0 && self.digest.clone().finish() != got.digest.clone().finish()
        {
            return Err(Failure::changed("its first part is not what it was"));
        }
        Ok(chunk)
    }
}

/// Looks at an answer's head: nothing to skip when it is the part that was asked for.
fn begin(response: &Response, got: &Got, size: u64) -> Result<Option<Repeated>, Failure> {
    let headers = response.headers();
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let (Some(then), Some(now)) = (&got.of, headers.get(ETAG))
        && then != now
    {
        return Err(Failure::changed("its ETag is another"));
    }
    let announced = header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    let expected = match response.status() {
        StatusCode::PARTIAL_CONTENT if got.bytes > 0 => {
            let range = header(CONTENT_RANGE).unwrap_or_default();
            let total = range.strip_prefix(&format!("bytes {}-{}/", got.bytes, size - 1));
            if !total.is_some_and(|total| total == "*" || total == size.to_string()) {
                let from = got.bytes;
                let why = format!("the range `{range:.80}`, asked for from {from} on");
                return Err(Failure::answer(why));
            }
            size - got.bytes
        }
        StatusCode::OK => size,
        status => return Err(Failure::answer(format!("status {}", status.as_u16()))),
    };
    if announced.is_some_and(|length| length != expected) {
        let why = format!("{} bytes where {expected} are listed", announced.unwrap_or_default());
        return Err(Failure::answer(why));
    }
    let whole = response.status() == StatusCode::OK && got.bytes > 0;
    Ok(whole.then(|| Repeated { digest: got.digest.begin_anew(size), left: got.bytes }))
}

/// What the hub itself says of the file must be what it listed.
fn same_as_listed(headers: &HeaderMap, commit: &Commit, file: &Listed) -> Result<(), Failure> {
    let header = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if header("x-repo-commit").is_some_and(|found| found != commit.as_str()) {
        return Err(Failure::changed("it is of another commit"));
    }
    if header("x-linked-size").is_some_and(|size| size != file.size.to_string()) {
        return Err(Failure::changed("its size is not the one that is listed"));
    }
    if let (Content::Sha256(hash), Some(tag)) = (&file.content, header("x-linked-etag"))
        && tag.trim_start_matches("W/").trim_matches('"') != hash
    {
        return Err(Failure::changed("its hash is not the one that is listed"));
    }
    Ok(())
}

/// The tag of a file's state, where it stands for every byte of it.
fn strong(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")).cloned()
}

/// Gives up a connection that is slower than it may be. Pure: the waits are told.
#[derive(Debug)]
struct Watch {
    least: u64,
    waited: Duration,
    bytes: u64,
}

impl Watch {
    fn new(least: u64) -> Self {
        Self { least, waited: Duration::ZERO, bytes: 0 }
    }

    /// So many bytes came after such a wait.
    fn came(&mut self, wait: Duration, bytes: u64) -> Result<(), Failure> {
        self.waited += wait;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.waited < WATCHED {
            return Ok(());
        }
        let rate = (self.bytes as f64 / self.waited.as_secs_f64()) as u64;
        if rate < self.least {
            return Err(Failure::passing(format!(
                "{rate} bytes a second, less than {}",
                self.least
            )));
        }
        *self = Self::new(self.least);
        Ok(())
    }
}

/// The hash that the hub lists, as bytes come.
#[derive(Debug, Clone)]
enum Digest {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Digest {
    fn new(file: &Listed) -> Self {
        match file.content {
            Content::Sha256(_) => Self::Sha256(Sha256::new()),
            Content::GitBlob(_) => Self::GitBlob(blob(file.size)),
        }
    }

    /// Another of the same kind that has seen nothing.
    fn begin_anew(&self, size: u64) -> Self {
        match self {
            Self::Sha256(_) => Self::Sha256(Sha256::new()),
            Self::GitBlob(_) => Self::GitBlob(blob(size)),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(digest) => digest.update(bytes),
            Self::GitBlob(digest) => digest.update(bytes),
        }
    }

    fn finish(self) -> String {
        match self {
            Self::Sha256(digest) => hex::encode(digest.finalize()),
            Self::GitBlob(digest) => hex::encode(digest.finalize()),
        }
    }

    fn tells(self, file: &Listed) -> bool {
        let (Content::Sha256(listed) | Content::GitBlob(listed)) = &file.content;
        self.finish() == *listed
    }
}

fn blob(size: u64) -> Sha1 {
    Sha1::new_with_prefix(format!("blob {size}\0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_trickles_is_given_up_and_one_that_pauses_is_not() {
        let mut trickle = Watch::new(1000);
        let second = Duration::from_secs(1);
        assert!((0..9).all(|_| trickle.came(second, 10).is_ok()));
        assert!(trickle.came(second, 10).is_err());
        // Fast enough on the whole, though nothing came for a while.
        let mut pausing = Watch::new(1000);
        for _ in 0..5 {
            assert!(pausing.came(second, 20_000).is_ok());
            assert!(pausing.came(WATCHED - second, 0).is_ok());
        }
    }

    #[test]
    fn a_file_is_told_by_its_sha256_or_by_its_id_in_git() {
        let told = |content: Content, bytes: &[u8]| {
            let file = Listed { path: "m.pt".into(), size: 6, content };
            let mut digest = Digest::new(&file);
            bytes.chunks(4).for_each(|piece| digest.update(piece));
            digest.tells(&file)
        };
        // What `git hash-object` and `sha256sum` say.
        let blob = || Content::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".into());
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let sha256 = || Content::Sha256(sha256.into());
        assert!(told(blob(), b"hello\n") && told(sha256(), b"hello\n"));
        assert!(!told(blob(), b"hellO\n") && !told(sha256(), b"hellO\n"));
    }

    #[test]
    fn what_the_hub_says_on_the_way_must_be_what_it_listed() {
        let commit = Commit::parse(&"a".repeat(40)).unwrap();
        let content = Content::Sha256("b".repeat(64));
        let file = Listed { path: "m.pt".into(), size: 10, content };
        let says = |name: &'static str, value: String| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            same_as_listed(&headers, &commit, &file).is_ok()
        };
        assert!(says("x-repo-commit", "a".repeat(40)) && !says("x-repo-commit", "c".repeat(40)));
        assert!(says("x-linked-size", "10".into()) && !says("x-linked-size", "11".into()));
        assert!(says("x-linked-etag", format!("\"{}\"", "b".repeat(64))));
        assert!(!says("x-linked-etag", format!("\"{}\"", "c".repeat(64))));
    }
}
