//! Ranges and conditions, by the RFC's word.

use std::time::{Duration, UNIX_EPOCH};

use axum::http::HeaderName;
use proptest::prelude::*;

use super::*;

const BEFORE: &str = "Tue, 14 Nov 2023 22:13:19 GMT";
const PUBLISHED: &str = "Tue, 14 Nov 2023 22:13:20 GMT";
const AFTER: &str = "Tue, 14 Nov 2023 22:13:21 GMT";

fn file() -> Representation {
    let modified = UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
    Representation { len: 100, etag: "\"tag\"".into(), modified: Some(modified) }
}

fn ask_by(method: &Method, pairs: &[(HeaderName, &str)]) -> Answer {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name, value.parse().unwrap());
    }
    answer(method, &headers, &file())
}

fn ask(pairs: &[(HeaderName, &str)]) -> Answer {
    ask_by(&Method::GET, pairs)
}

#[test]
fn the_three_forms_of_a_range_are_understood() {
    assert_eq!(ask(&[(header::RANGE, "bytes=10-19")]), Answer::Part { start: 10, len: 10 });
    assert_eq!(ask(&[(header::RANGE, "bytes=90-")]), Answer::Part { start: 90, len: 10 });
    assert_eq!(ask(&[(header::RANGE, "bytes=-5")]), Answer::Part { start: 95, len: 5 });
    assert_eq!(ask(&[(header::RANGE, "bytes=-500")]), Answer::Part { start: 0, len: 100 });
    assert_eq!(ask(&[(header::RANGE, "bytes=50-9999")]), Answer::Part { start: 50, len: 50 });
    assert_eq!(ask(&[(header::RANGE, "Bytes=,10-19, ")]), Answer::Part { start: 10, len: 10 });
}

#[test]
fn a_range_behind_the_end_is_unsatisfiable() {
    assert_eq!(ask(&[(header::RANGE, "bytes=100-")]), Answer::Unsatisfiable);
    assert_eq!(ask(&[(header::RANGE, "bytes=-0")]), Answer::Unsatisfiable);
    assert_eq!(ask(&[(header::RANGE, "bytes=99999999999999999999-")]), Answer::Unsatisfiable);
}

#[test]
fn several_ranges_are_refused_and_not_answered_with_all_there_is() {
    for text in ["bytes=0-1,5-6", "bytes=0-0, 0-0", "bytes=-1,0-", "bytes=0-1,,900-"] {
        assert_eq!(ask(&[(header::RANGE, text)]), Answer::Several, "{text}");
    }
    let other = (header::IF_RANGE, "\"other\"");
    assert_eq!(ask(&[(header::RANGE, "bytes=0-1,5-6"), other]), Answer::Whole);
}

#[test]
fn what_is_no_range_is_ignored() {
    for text in ["lines=1-2", "bytes=5-1", "bytes=a-b", "bytes", "bytes=-", "bytes=0-1,x", "bytes="]
    {
        assert_eq!(ask(&[(header::RANGE, text)]), Answer::Whole, "{text}");
    }
    let twice = [(header::RANGE, "bytes=0-1"), (header::RANGE, "bytes=5-6")];
    assert_eq!(ask(&twice), Answer::Whole);
}

#[test]
fn head_has_no_ranges() {
    let range = (header::RANGE, "bytes=10-19");
    assert_eq!(ask_by(&Method::HEAD, &[range]), Answer::Whole);
    let tag = (header::IF_NONE_MATCH, "\"tag\"");
    assert_eq!(ask_by(&Method::HEAD, &[tag]), Answer::NotModified);
}

#[test]
fn if_range_lets_a_range_through_only_for_the_same_file() {
    let range = (header::RANGE, "bytes=10-");
    let part = Answer::Part { start: 10, len: 90 };
    let by = |condition| ask(&[range.clone(), (header::IF_RANGE, condition)]);
    assert_eq!(by("\"tag\""), part);
    assert_eq!(by(PUBLISHED), part);
    for condition in ["\"old\"", "W/\"tag\"", "tag", "*", BEFORE, AFTER] {
        assert_eq!(by(condition), Answer::Whole, "{condition}");
    }
}

#[test]
fn what_the_client_has_is_not_sent_again() {
    let since = |date| ask(&[(header::IF_MODIFIED_SINCE, date)]);
    assert_eq!(ask(&[(header::IF_NONE_MATCH, "\"x\", W/\"tag\"")]), Answer::NotModified);
    assert_eq!(ask(&[(header::IF_NONE_MATCH, "*")]), Answer::NotModified);
    assert_eq!(ask(&[(header::IF_NONE_MATCH, "\"x\"")]), Answer::Whole);
    assert_eq!(since(AFTER), Answer::NotModified);
    assert_eq!(since(PUBLISHED), Answer::NotModified);
    assert_eq!(since(BEFORE), Answer::Whole);
    assert_eq!(since("yesterday"), Answer::Whole);
    let lines = [(header::IF_NONE_MATCH, "\"x\""), (header::IF_NONE_MATCH, "\"tag\"")];
    assert_eq!(ask(&lines), Answer::NotModified);
    // A comma in a tag does not end it, and a tag in a tag is none.
    assert_eq!(ask(&[(header::IF_NONE_MATCH, "\"a,b\", \"tag\"")]), Answer::NotModified);
    assert_eq!(ask(&[(header::IF_NONE_MATCH, "\"a,\"tag\",b\"")]), Answer::Whole);
}

#[test]
fn of_a_tag_and_a_date_the_tag_counts() {
    let not = [(header::IF_NONE_MATCH, "\"x\""), (header::IF_MODIFIED_SINCE, AFTER)];
    assert_eq!(ask(&not), Answer::Whole);
    let matching = [(header::IF_MATCH, "\"tag\""), (header::IF_UNMODIFIED_SINCE, BEFORE)];
    assert_eq!(ask(&matching), Answer::Whole);
}

#[test]
fn a_client_that_means_another_file_gets_none() {
    assert_eq!(ask(&[(header::IF_MATCH, "\"x\", \"tag\"")]), Answer::Whole);
    assert_eq!(ask(&[(header::IF_MATCH, "*")]), Answer::Whole);
    for tag in ["\"x\"", "W/\"tag\"", ""] {
        assert_eq!(ask(&[(header::IF_MATCH, tag)]), Answer::PreconditionFailed, "{tag}");
    }
    let since = |date| ask(&[(header::IF_UNMODIFIED_SINCE, date)]);
    assert_eq!(since(BEFORE), Answer::PreconditionFailed);
    assert_eq!(since(PUBLISHED), Answer::Whole);
    assert_eq!(since("yesterday"), Answer::Whole);
    // It comes before everything else.
    let both = [(header::IF_MATCH, "\"x\""), (header::IF_NONE_MATCH, "\"tag\"")];
    assert_eq!(ask(&both), Answer::PreconditionFailed);
}

proptest! {
    #[test]
    fn no_range_leaves_the_file(text in "bytes=[0-9]{0,20}-[0-9]{0,20}", len in 0u64..1000) {
        if let Some(Answer::Part { start, len: part }) = range_of(&text, len) {
            prop_assert!(part > 0 && start + part <= len);
        }
    }

    #[test]
    fn every_part_and_its_rest_are_the_file(len in 1u64..1000, cut in 0u64..1000) {
        let cut = cut % len;
        let rest = range_of(&format!("bytes={cut}-"), len);
        prop_assert_eq!(rest, Some(Answer::Part { start: cut, len: len - cut }));
        if cut > 0 {
            let first = range_of(&format!("bytes=0-{}", cut - 1), len);
            prop_assert_eq!(first, Some(Answer::Part { start: 0, len: cut }));
        }
    }
}
