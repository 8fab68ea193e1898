use proptest::prelude::*;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn one(entry: &str) -> Result<Source, DataError> {
    let yaml = format!("lr: 1\ndata_sources:\n  - {entry}\nsequence_length: 8\n");
    parse_sources(&yaml).map(|mut sources| sources.remove(0))
}

#[test]
fn a_source_is_read_as_it_is_written() {
    assert_eq!(one("facts").unwrap(), "facts".into());
    let hub = one(&format!(
        "{{hub: a-b/c.d, revision: {COMMIT}, files: 'en/*.json.gz', text_field: body, weight: 0.3}}"
    ))
    .unwrap();
    let place = Place::Hub { repo: "a-b/c.d".parse().unwrap(), revision: COMMIT.parse().unwrap() };
    assert_eq!(hub.place, place);
    assert_eq!(hub.files, Some("en/*.json.gz".parse().unwrap()));
    assert_eq!((hub.text_field.as_str(), hub.weight.millionths()), ("body", 300_000));
    let folder = one("{folder: ../texts}").unwrap();
    assert_eq!(folder.place, Place::Folder("../texts".into()));
    assert_eq!((folder.text_field.as_str(), folder.weight), ("text", Weight::ONE));
    for source in [hub, folder, "facts".into()] {
        let yaml = serde_norway::to_string(&[&source]).unwrap();
        assert_eq!(serde_norway::from_str::<Vec<Source>>(&yaml).unwrap(), [source]);
    }
}

#[test]
fn what_can_move_or_is_not_known_is_refused_with_a_reason() {
    let short = &COMMIT[..39];
    let upper = COMMIT.to_uppercase();
    for (entry, why) in [
        ("{hub: a/b, revision: main}".to_owned(), "can move"),
        (format!("{{hub: a/b, revision: '{short}'}}"), "can move"),
        (format!("{{hub: a/b, revision: {upper}}}"), "can move"),
        ("{hub: a/b}".to_owned(), "no revision"),
        (format!("{{hub: ../b, revision: {COMMIT}}}"), "owner/name"),
        (format!("{{hub: a/b/c, revision: {COMMIT}}}"), "owner/name"),
        (format!("{{hub: a/b, revision: {COMMIT}, split: train}}"), "split"),
        (format!("{{hub: a/b, folder: x, revision: {COMMIT}}}"), "either"),
        ("{weight: 1}".to_owned(), "needs"),
        ("{folder: x, weight: 0}".to_owned(), "weight"),
        ("{folder: x, weight: -1}".to_owned(), "weight"),
        ("{folder: x, weight: .inf}".to_owned(), "weight"),
        ("{folder: x, weight: 0.0000001}".to_owned(), "weight"),
        ("{folder: x, weight: 1000001}".to_owned(), "weight"),
        ("{folder: x, text_field: ''}".to_owned(), "text_field"),
        ("''".to_owned(), "empty"),
        ("7".to_owned(), "a name, or a mapping"),
    ] {
        let error = one(&entry).unwrap_err();
        assert_eq!(error.reason(), "data_config", "{entry}");
        assert!(error.to_string().contains(why), "{entry}: {error}");
    }
    assert!(parse_sources("data_sources: []").is_err());
    assert!(parse_sources("lr: 1").is_err());
}

proptest! {
    #[test]
    fn a_weight_is_written_as_it_is_read(millionths in 1..=MOST) {
        let weight = Weight(millionths);
        prop_assert_eq!(weight.to_string().parse::<Weight>().unwrap(), weight);
    }

    #[test]
    fn any_text_is_sources_or_a_named_refusal(yaml: String) {
        if let Err(error) = parse_sources(&yaml) {
            prop_assert_eq!(error.reason(), "data_config");
        }
    }
}
