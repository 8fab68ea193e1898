//! The operator's page of this service, `docs/chain-service.md`, held to the code: its tables have
//! every reason and every kind, with what the code does about it, and no others.

use std::collections::{BTreeMap, BTreeSet};

use tonic::Status;

use crate::{
    config::Config,
    error::Error,
    failure::{Advice, Failure},
    networks::Network,
};

const PAGE: &str = include_str!("../../docs/chain-service.md");

/// The rows of the first table under a heading that begins with the column `first`: the names of
/// the first column, each with the other cells.
fn table(heading: &str, first: &str) -> BTreeMap<String, Vec<String>> {
    let (_, section) = PAGE.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let (_, table) = section.split_once(&format!("\n| {first} |")).unwrap();
    let mut rows = BTreeMap::new();
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<String> =
            row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        let (names, rest) = cells.split_first().unwrap();
        for name in names.split('`').skip(1).step_by(2) {
            assert!(
                rows.insert(name.to_owned(), rest.to_vec()).is_none(),
                "`{name}` is there twice"
            );
        }
    }
    rows
}

fn names(table: &BTreeMap<String, Vec<String>>) -> BTreeSet<&str> {
    table.keys().map(String::as_str).collect()
}

/// The texts that a function gives to the variants of its enum. The compiler sees to it that the
/// function knows all of them.
fn given_by<'a>(source: &'a str, function: &str) -> BTreeSet<&'a str> {
    let (_, body) = source.split_once(&format!("fn {function}(")).unwrap();
    let (body, _) = body.split_once("\n    }\n").unwrap();
    body.split('"').skip(1).step_by(2).collect()
}

/// A failure by its reason, which is how the store knows it.
fn failure(reason: &str) -> Failure {
    let text = String::new;
    let json =
        serde_json::json!({"failure": reason, "name": text(), "detail": text(), "by": text()});
    serde_json::from_value(json).unwrap()
}

#[test]
fn the_page_has_every_reason_of_a_failed_write_with_what_is_done_about_it() {
    let rows = table("Why a write failed or waits", "reason");
    assert_eq!(names(&rows), given_by(include_str!("failure.rs"), "reason"));
    for (reason, cells) in &rows {
        let failure = failure(reason);
        assert_eq!(failure.reason(), reason);
        let advice = match failure.advice() {
            Advice::Resign { after: 0 } => "`again`, at once".to_owned(),
            Advice::Resign { after: 1 } => "`again`, next block".to_owned(),
            Advice::Resign { after } => format!("`again`, {after} blocks later"),
            other @ (Advice::Never | Advice::WhenAllowed | Advice::Follow) => {
                format!("`{}`", other.as_str())
            }
        };
        // A colon says when.
        assert_eq!(cells[1].split(':').next().unwrap(), advice, "{reason}");
    }
}

#[test]
fn the_page_has_every_advice() {
    let rows = table("Why a write failed or waits", "advice");
    let advice = [Advice::Never, Advice::Resign { after: 0 }, Advice::WhenAllowed, Advice::Follow];
    assert_eq!(names(&rows), advice.map(Advice::as_str).into());
}

#[test]
fn the_page_has_every_reason_of_a_failed_call_with_its_code() {
    let rows = table("Why a call failed", "reason");
    assert_eq!(names(&rows), given_by(include_str!("error.rs"), "reason"));
    let (what, text) = ("it", String::new);
    for error in [
        Error::Unreachable(text()),
        Error::WrongChain(text()),
        Error::NoSuchBlock(text()),
        Error::StateDiscarded(text()),
        Error::NoQuorum { what, wanted: 2, got: 1, why: text() },
        Error::Disagreement { what, wanted: 2, told: text() },
        Error::Lie(text()),
        Error::Unreadable { what, why: text() },
        Error::NoSuchSubnet(1),
        Error::Runtime { spec: 1, missing: vec![] },
        Error::Store(text()),
        Error::Fenced(text()),
        Error::OtherPayload { key: text() },
        Error::Superseded { key: text(), by: text() },
        Error::Guarded { key: text(), own: text() },
        Error::Forgotten(text()),
        Error::SignLimit { purpose: what },
        Error::NoSuchIntent(text()),
        Error::StoredIntent { key: text(), why: text() },
        Error::Field(proto::InvalidField::new(what, text())),
    ] {
        let reason = error.reason();
        let told = rows[reason][0].replace(['`', '_'], "").to_lowercase();
        let code = format!("{:?}", Status::from(error).code()).to_lowercase();
        assert_eq!(told, code, "{reason}");
    }
}

#[test]
fn the_page_has_every_kind_of_degradation() {
    let rows = table("Degradations", "kind");
    assert_eq!(names(&rows), given_by(include_str!("degradations.rs"), "as_str"));
}

#[test]
fn the_page_has_every_state_of_an_endpoint() {
    let rows = table("How to see it", "state");
    assert_eq!(names(&rows), crate::nodes::State::ALL.map(crate::nodes::State::as_str).into());
}

#[test]
fn the_configuration_on_the_page_is_one() {
    let (_, example) = PAGE.split_once("```toml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let folder = testkit::tempdir().unwrap();
    let file = folder.path().join("connito.toml");
    std::fs::write(&file, example).unwrap();
    let config: Config = kit::config::load_with(Some(&file), "chain", |_| None).unwrap();
    config.check().unwrap();
    assert_eq!((config.urls().unwrap().len(), config.quorum()), (3, Ok(2)));
    assert_eq!(
        config.genesis().unwrap(),
        Config { network: Network::Finney, ..Config::defaults() }.genesis().unwrap()
    );
}
