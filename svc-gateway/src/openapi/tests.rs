use std::collections::{BTreeMap, BTreeSet};

use roas::validation::Validate as _;

use super::*;
use crate::{
    error::{Error, samples},
    routes,
};

fn reasons() -> BTreeMap<String, u64> {
    let all = document()["x-reasons"].as_object().unwrap();
    all.iter().map(|(name, reason)| (name.clone(), reason["status"].as_u64().unwrap())).collect()
}

/// The names between the backticks of a row's first cell.
fn named(row: &str) -> Vec<String> {
    let cell = row.split('|').nth(1).unwrap_or_default();
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_document_is_openapi() {
    let spec: roas::v3_1::spec::Spec = serde_json::from_value(document().clone()).unwrap();
    spec.validate(Default::default(), None).unwrap();
    // Whoever looks does see flaws.
    let broken = document().to_string().replace("#/components/headers/Retry-After", "#/nowhere");
    let spec: roas::v3_1::spec::Spec = serde_json::from_str(&broken).unwrap();
    assert!(spec.validate(Default::default(), None).is_err());
}

#[test]
fn its_schemas_are_json_schema_and_every_example_is_what_it_is_an_example_of() {
    let components = document()["components"]["schemas"].as_object().unwrap();
    for (name, schema) in components {
        assert!(jsonschema::meta::is_valid(schema), "{name}");
    }
    let mut checked = 0;
    for (name, schema) in components {
        if let Some(example) = schema.get("example") {
            // Examples of answers may leave out what is said elsewhere.
            let found = validator(&json!({ "$ref": format!("#/components/schemas/{name}") }));
            assert!(found.is_valid(example), "{name}: {example}");
            checked += 1;
        }
    }
    for (path, item) in document()["paths"].as_object().unwrap() {
        for operation in item.as_object().unwrap().values().filter(|item| item.is_object()) {
            for (status, response) in operation["responses"].as_object().unwrap() {
                let content = &response["content"]["application/json"];
                let Some(schema) = content.get("schema") else { continue };
                let validator = validator(schema);
                let many = content["examples"].as_object().into_iter().flat_map(Map::values);
                let values = many.map(|example| &example["value"]).chain(content.get("example"));
                for value in values {
                    assert!(validator.is_valid(value), "{path} {status}: {value}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 200, "only {checked} examples");
}

/// A validator of a schema that may refer to the document's own.
fn validator(schema: &Value) -> jsonschema::Validator {
    let mut schema = schema.clone();
    schema["components"] = document()["components"].clone();
    jsonschema::validator_for(&schema).unwrap()
}

#[test]
fn the_document_has_the_routes_of_the_router_and_no_other() {
    let routed: BTreeSet<String> =
        routes::table().into_iter().map(|(path, _)| path.to_owned()).collect();
    let written: BTreeSet<String> =
        document()["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(routed, written);
}

#[test]
fn every_refusal_has_its_reason_and_status_in_the_document() {
    let written = reasons();
    let mut found = BTreeMap::new();
    // What is wrong with a place on a hub is in records and receipts, and the answer to no request.
    let answers = samples::all().into_iter().filter(|error| !matches!(error, Error::Hub(_)));
    for error in answers {
        let (reason, status) = (error.reason().to_owned(), u64::from(error.status().as_u16()));
        let before = found.insert(reason.clone(), status);
        assert!(before.is_none_or(|before| before == status), "{reason} has two statuses");
    }
    assert_eq!(written, found);
}

#[test]
fn every_reason_is_given_by_some_route_and_no_route_gives_another() {
    let mut given: BTreeSet<String> = BTreeSet::new();
    for item in document()["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values().filter(|item| item.is_object()) {
            for response in operation["responses"].as_object().unwrap().values() {
                let schema = &response["content"]["application/json"]["schema"];
                let reasons = schema["properties"]["reason"]["enum"].as_array();
                given.extend(reasons.into_iter().flatten().map(|r| r.as_str().unwrap().to_owned()));
            }
        }
    }
    // The answers of no route at all.
    given.extend(["no_route", "no_method"].map(str::to_owned));
    assert_eq!(given, reasons().into_keys().collect());
}

#[test]
fn the_page_of_reasons_and_the_document_have_the_same_reasons_and_statuses() {
    let page = include_str!("../../../docs/reasons.md");
    let section = |title: &str| {
        let (_, rest) = page.split_once(&format!("\n## {title}\n")).unwrap();
        rest.split("\n## ").next().unwrap().split("\n### ").next().unwrap()
    };
    let content: Vec<String> = section("Why a miner got nothing")
        .lines()
        .filter(|l| l.starts_with("| `"))
        .flat_map(named)
        .collect();
    let mut on_page = BTreeMap::new();
    for row in section("HTTP").lines().filter(|line| line.starts_with("| `")) {
        let mut names = named(row);
        if row.contains("` … `") {
            // From one reason of the table above to another.
            let at = |name: &String| content.iter().position(|other| other == name).unwrap();
            names = content[at(&names[0])..=at(&names[1])].to_vec();
        }
        let statuses: Vec<u64> =
            row.split('|').nth(2).unwrap().split(',').map(|s| s.trim().parse().unwrap()).collect();
        for (at, name) in names.into_iter().enumerate() {
            on_page.insert(name, *statuses.get(at).unwrap_or(&statuses[0]));
        }
    }
    assert_eq!(on_page, reasons());
}

#[test]
fn a_source_with_a_flaw_is_no_document() {
    let broken = SOURCE.replace("x-reasons: [not_ready]", "x-reasons: [not_redy]");
    let error = written(&broken).unwrap_err().to_string();
    assert!(error.contains("no reason `not_redy`"), "{error}");
    assert!(written("openapi: [").is_err());
    assert!(written("openapi: 3.1.1").is_err());
}
