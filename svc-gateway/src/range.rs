//! Which bytes of a file a download wants, and whether it has them already (RFC 9110, sections 13 and 14).
//!
//! Pure: headers and facts about the file in, a decision out.

use std::time::SystemTime;

use axum::http::{HeaderMap, HeaderValue, header};

/// A file as HTTP sees it.
#[derive(Debug, Clone)]
pub(crate) struct Representation {
    /// Length in bytes.
    pub(crate) len: u64,
    /// Strong entity tag, with its quotes.
    pub(crate) etag: String,
    /// Last modification, where the file system knows it.
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
    /// 416: the range lies behind the end.
    Unsatisfiable,
}

/// Decides what of `file` the request with these `headers` gets. More than one range is answered with
/// the whole file, and so is a range that is not understood.
pub(crate) fn answer(headers: &HeaderMap, file: &Representation) -> Answer {
    if not_modified(headers, file) {
        return Answer::NotModified;
    }
    let Some(range) = headers.get(header::RANGE) else { return Answer::Whole };
    if !if_range_holds(headers.get(header::IF_RANGE), file) {
        return Answer::Whole;
    }
    range.to_str().ok().and_then(|range| single_range(range, file.len)).unwrap_or(Answer::Whole)
}

/// The only range of `text`; `None` when there are several or the text is no range.
fn single_range(text: &str, len: u64) -> Option<Answer> {
    let (unit, range) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let number = |digits: &str| -> Option<u64> {
        let digital = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        digital.then(|| digits.parse().unwrap_or(u64::MAX))
    };
    let (start, end) = if first.is_empty() {
        let suffix = number(last)?;
        if suffix == 0 {
            return Some(Answer::Unsatisfiable);
        }
        (len.saturating_sub(suffix), len)
    } else {
        let start = number(first)?;
        let end = if last.is_empty() {
            len
        } else {
            let last = number(last)?;
            if last < start {
                return None;
            }
            last.saturating_add(1).min(len)
        };
        (start, end)
    };
    Some(if start >= len {
        Answer::Unsatisfiable
    } else {
        Answer::Part { start, len: end - start }
    })
}

fn not_modified(headers: &HeaderMap, file: &Representation) -> bool {
    if let Some(tags) = headers.get(header::IF_NONE_MATCH) {
        let Ok(tags) = tags.to_str() else { return false };
        return tags.split(',').any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == file.etag
        });
    }
    match (headers.get(header::IF_MODIFIED_SINCE), file.modified) {
        (Some(since), Some(modified)) => {
            date(since).is_some_and(|since| since >= truncated(modified))
        }
        _ => false,
    }
}

/// A range is only for the file that the client has the beginning of.
fn if_range_holds(condition: Option<&HeaderValue>, file: &Representation) -> bool {
    let Some(condition) = condition else { return true };
    if condition.as_bytes() == file.etag.as_bytes() {
        return true;
    }
    match (date(condition), file.modified) {
        (Some(wanted), Some(modified)) => wanted == truncated(modified),
        _ => false,
    }
}

fn date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

/// HTTP dates have whole seconds.
fn truncated(time: SystemTime) -> SystemTime {
    httpdate::parse_http_date(&httpdate::fmt_http_date(time)).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use axum::http::HeaderName;
    use proptest::prelude::*;

    use super::*;

    fn file() -> Representation {
        let modified = UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
        Representation { len: 100, etag: "\"tag\"".into(), modified: Some(modified) }
    }

    fn ask(pairs: &[(HeaderName, &str)]) -> Answer {
        let headers =
            pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        answer(&headers, &file())
    }

    #[test]
    fn the_three_forms_of_a_range_are_understood() {
        assert_eq!(ask(&[(header::RANGE, "bytes=10-19")]), Answer::Part { start: 10, len: 10 });
        assert_eq!(ask(&[(header::RANGE, "bytes=90-")]), Answer::Part { start: 90, len: 10 });
        assert_eq!(ask(&[(header::RANGE, "bytes=-5")]), Answer::Part { start: 95, len: 5 });
        assert_eq!(ask(&[(header::RANGE, "bytes=-500")]), Answer::Part { start: 0, len: 100 });
        assert_eq!(ask(&[(header::RANGE, "bytes=50-9999")]), Answer::Part { start: 50, len: 50 });
    }

    #[test]
    fn a_range_behind_the_end_is_unsatisfiable() {
        assert_eq!(ask(&[(header::RANGE, "bytes=100-")]), Answer::Unsatisfiable);
        assert_eq!(ask(&[(header::RANGE, "bytes=-0")]), Answer::Unsatisfiable);
        assert_eq!(ask(&[(header::RANGE, "bytes=99999999999999999999-")]), Answer::Unsatisfiable);
    }

    #[test]
    fn several_ranges_and_what_is_no_range_get_the_whole_file() {
        for text in ["bytes=0-1,5-6", "lines=1-2", "bytes=5-1", "bytes=a-b", "bytes", "bytes=-"] {
            assert_eq!(ask(&[(header::RANGE, text)]), Answer::Whole, "{text}");
        }
    }

    #[test]
    fn if_range_lets_a_range_through_only_for_the_same_file() {
        let range = (header::RANGE, "bytes=10-");
        let part = Answer::Part { start: 10, len: 90 };
        let date = "Tue, 14 Nov 2023 22:13:20 GMT";
        assert_eq!(ask(&[range.clone(), (header::IF_RANGE, "\"tag\"")]), part);
        assert_eq!(ask(&[range.clone(), (header::IF_RANGE, "\"old\"")]), Answer::Whole);
        assert_eq!(ask(&[range.clone(), (header::IF_RANGE, "W/\"tag\"")]), Answer::Whole);
        assert_eq!(ask(&[range.clone(), (header::IF_RANGE, date)]), part);
        assert_eq!(
            ask(&[range, (header::IF_RANGE, "Tue, 14 Nov 2023 22:13:21 GMT")]),
            Answer::Whole
        );
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let since = |date| ask(&[(header::IF_MODIFIED_SINCE, date)]);
        assert_eq!(ask(&[(header::IF_NONE_MATCH, "\"x\", W/\"tag\"")]), Answer::NotModified);
        assert_eq!(ask(&[(header::IF_NONE_MATCH, "*")]), Answer::NotModified);
        assert_eq!(ask(&[(header::IF_NONE_MATCH, "\"x\"")]), Answer::Whole);
        assert_eq!(since("Tue, 14 Nov 2023 22:13:20 GMT"), Answer::NotModified);
        assert_eq!(since("Tue, 14 Nov 2023 22:13:19 GMT"), Answer::Whole);
    }

    proptest! {
        #[test]
        fn no_range_leaves_the_file(text in "bytes=[0-9]{0,20}-[0-9]{0,20}", len in 0u64..1000) {
            if let Some(Answer::Part { start, len: part }) = single_range(&text, len) {
                prop_assert!(part > 0 && start + part <= len);
            }
        }
    }
}
