//! Which bytes of a file a download wants, and whether it has them already (RFC 9110, sections 13 and 14).
//!
//! Pure: headers and facts about the file in, a decision out. What the RFC leaves open is decided so:
//! a range that is not understood is ignored, several ranges are refused with 416 (the whole file would be
//! gigabytes that nobody asked for), and a date is a strong validator, as a published file never changes.

use std::time::SystemTime;

use axum::http::{HeaderMap, HeaderName, Method, header};

/// A file as HTTP sees it.
#[derive(Debug, Clone)]
pub(crate) struct Representation {
    /// Length in bytes.
    pub(crate) len: u64,
    /// Strong entity tag, with its quotes.
    pub(crate) etag: String,
    /// When it was published, where the store knows it.
    pub(crate) modified: Option<SystemTime>,
}

/// What to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 200: the whole file.
    Whole,
    /// 206: `len` bytes from `start`.
    Part { start: u64, len: u64 },
    /// 304: the client has it.
    NotModified,
    /// 412: the client wants another file than this one.
    PreconditionFailed,
    /// 416: the range lies behind the end.
    Unsatisfiable,
    /// 416: more than one range.
    Several,
}

/// Decides what of `file` a GET or HEAD with these `headers` gets, in the order of RFC 9110, 13.2.2.
pub(crate) fn answer(method: &Method, headers: &HeaderMap, file: &Representation) -> Answer {
    if !precondition_holds(headers, file) {
        return Answer::PreconditionFailed;
    }
    if not_modified(headers, file) {
        return Answer::NotModified;
    }
    // Ranges are defined for GET alone (RFC 9110, 14.2).
    if method != Method::GET || !if_range_holds(headers, file) {
        return Answer::Whole;
    }
    let mut ranges = headers.get_all(header::RANGE).iter();
    match (ranges.next(), ranges.next()) {
        (Some(range), None) => range.to_str().ok().and_then(|text| range_of(text, file.len)),
        _ => None,
    }
    .unwrap_or(Answer::Whole)
}

/// One range of a `Range` field, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spec {
    /// From the first byte to the last one, or to the end.
    From(u64, Option<u64>),
    /// The last bytes.
    Last(u64),
}

/// What the ranges of `text` get; `None` when it is no range of bytes.
fn range_of(text: &str, len: u64) -> Option<Answer> {
    let (unit, set) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    // Empty elements of a list count for nothing (RFC 9110, 5.6.1.2).
    let mut specs = set.split(',').map(str::trim).filter(|spec| !spec.is_empty()).map(spec);
    let first = specs.next()??;
    match specs.next() {
        None => Some(first.of(len)),
        // Of a set with a flaw nothing is understood.
        Some(second) => {
            second?;
            specs.all(|spec| spec.is_some()).then_some(Answer::Several)
        }
    }
}

fn spec(text: &str) -> Option<Spec> {
    let (first, last) = text.split_once('-')?;
    // A number that no file is as long as: the largest there is.
    let number = |digits: &str| -> Option<u64> {
        let digital = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        digital.then(|| digits.parse().unwrap_or(u64::MAX))
    };
    if first.is_empty() {
        return number(last).map(Spec::Last);
    }
    let first = number(first)?;
    if last.is_empty() {
        return Some(Spec::From(first, None));
    }
    let last = number(last)?;
    (first <= last).then_some(Spec::From(first, Some(last)))
}

impl Spec {
    fn of(self, len: u64) -> Answer {
        let (start, end) = match self {
            Self::From(first, last) => {
                (first, last.map_or(len, |last| last.saturating_add(1).min(len)))
            }
            Self::Last(bytes) => (len.saturating_sub(bytes), len),
        };
        if start >= end { Answer::Unsatisfiable } else { Answer::Part { start, len: end - start } }
    }
}

/// Whether the client's word on which file it means, `If-Match` or else `If-Unmodified-Since`, holds.
fn precondition_holds(headers: &HeaderMap, file: &Representation) -> bool {
    if headers.contains_key(header::IF_MATCH) {
        return tags(headers, &header::IF_MATCH)
            .any(|tag| tag == b"*" || tag == file.etag.as_bytes());
    }
    match (date(headers, &header::IF_UNMODIFIED_SINCE), file.modified) {
        (Some(since), Some(modified)) => truncated(modified) <= since,
        _ => true,
    }
}

/// Whether the client has the file, by `If-None-Match` or else `If-Modified-Since`.
fn not_modified(headers: &HeaderMap, file: &Representation) -> bool {
    if headers.contains_key(header::IF_NONE_MATCH) {
        return tags(headers, &header::IF_NONE_MATCH).any(|tag| {
            tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == file.etag.as_bytes()
        });
    }
    match (date(headers, &header::IF_MODIFIED_SINCE), file.modified) {
        (Some(since), Some(modified)) => truncated(modified) <= since,
        _ => false,
    }
}

/// A range is only for the file that the client has the beginning of.
fn if_range_holds(headers: &HeaderMap, file: &Representation) -> bool {
    let Some(condition) = headers.get(header::IF_RANGE) else { return true };
    if condition.as_bytes() == file.etag.as_bytes() {
        return true;
    }
    match (date(headers, &header::IF_RANGE), file.modified) {
        (Some(wanted), Some(modified)) => wanted == truncated(modified),
        _ => false,
    }
}

/// The entity tags of a list, with their quotes and marks of weakness.
fn tags<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().flat_map(|value| elements(value.as_bytes()))
}

/// The elements of a list. Commas in quotes do not end them.
pub(crate) fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let end = move |&byte: &u8| {
        quoted ^= byte == b'"';
        byte == b',' && !quoted
    };
    list.split(end).map(<[u8]>::trim_ascii)
}

/// A date, where there is one and it is one.
fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

/// HTTP dates have whole seconds.
fn truncated(time: SystemTime) -> SystemTime {
    httpdate::parse_http_date(&httpdate::fmt_http_date(time)).unwrap_or(time)
}

#[cfg(test)]
mod tests;
