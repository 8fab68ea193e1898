//! Answers, held against the gateway's OpenAPI document.

use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use svc_gateway::openapi;

/// The methods that a path of a document can have.
pub(crate) const METHODS: [&str; 8] =
    ["get", "head", "post", "put", "patch", "delete", "options", "trace"];

/// The path of the document that a request's path is an instance of.
fn template(path: &str) -> Option<&'static str> {
    let paths = openapi()["paths"].as_object().unwrap();
    // A path without parameters is meant before one with them.
    let matching = |with: bool| {
        paths.keys().map(String::as_str).find(|template| {
            let same = |(written, found): (&str, &str)| {
                written == found || (with && written.starts_with('{') && !found.is_empty())
            };
            template.split('/').count() == path.split('/').count()
                && template.split('/').zip(path.split('/')).all(same)
        })
    };
    matching(false).or_else(|| matching(true))
}

/// The responses of the document for a status of a path, by any method or by one.
fn responses(method: Option<&str>, path: &str, status: u16) -> Vec<&'static Value> {
    let Some(template) = template(path) else { return Vec::new() };
    let item = &openapi()["paths"][template];
    let methods = METHODS.iter().filter(|name| method.is_none_or(|only| only == **name));
    methods.filter_map(|name| item[*name]["responses"].get(status.to_string())).collect()
}

fn validator(schema: &Value) -> jsonschema::Validator {
    let mut schema = schema.clone();
    schema["components"] = openapi()["components"].clone();
    jsonschema::validator_for(&schema).unwrap()
}

/// Asserts that a refusal is one that the document has for the route.
pub(crate) fn has_refusal(path: &str, status: u16, headers: &HeaderMap, body: &Value) {
    let reason = body["reason"].as_str().unwrap();
    let refusal = json!({ "$ref": "#/components/schemas/Refusal" });
    assert!(validator(&refusal).is_valid(body), "{body}");
    assert_eq!(openapi()["x-reasons"][reason]["status"], status, "{reason}");
    let said = headers.get("x-reason").map(|said| said.to_str().unwrap());
    assert!(said.is_none_or(|said| said == reason), "{said:?} is not {reason}");
    let waits = headers.contains_key("retry-after");
    assert_eq!(
        waits,
        matches!(status, 423 | 429 | 503) || reason == "upload_in_progress",
        "{status} {reason}: Retry-After"
    );
    assert_eq!(headers.contains_key("www-authenticate"), status == 401);
    if template(path).is_none() || reason == "no_method" {
        // Of no route at all.
        let before = ["token_missing", "token_wrong", "rate_limited", "no_route", "no_method"];
        assert!(before.contains(&reason), "{path} is not in the document: {body}");
        return;
    }
    let written = responses(None, path, status);
    let fits = |response: &&Value| {
        let schema = &response["content"]["application/json"]["schema"];
        validator(schema).is_valid(body)
            && (!waits || response["headers"]["Retry-After"].is_object())
    };
    assert!(written.iter().any(fits), "{path} may not answer {status} {reason}");
}

/// Asserts that an answer of JSON is what the document says of it.
pub(crate) fn has_json(method: &str, path: &str, status: u16, body: &Value) {
    let written = responses(Some(method), path, status);
    let [response] = written[..] else { panic!("{method} {path} has no {status}") };
    let validator = validator(&response["content"]["application/json"]["schema"]);
    let flaws: Vec<String> = validator.iter_errors(body).map(|flaw| flaw.to_string()).collect();
    assert!(flaws.is_empty(), "{method} {path} {status}: {flaws:?} in {body:#}");
}

/// Asserts that an answer has no header of ours that the document does not have, nor lacks one that it has to
/// have.
pub(crate) fn has_headers(
    method: &str,
    path: &str,
    status: u16,
    headers: &HeaderMap,
    must: &[&str],
) {
    // What HTTP itself needs.
    const ALWAYS: [&str; 5] =
        ["content-length", "content-type", "date", "connection", "transfer-encoding"];
    let written = responses(Some(method), path, status);
    let [response] = written[..] else { panic!("{method} {path} has no {status}") };
    let named: Vec<String> = response["headers"]
        .as_object()
        .into_iter()
        .flat_map(|all| all.keys().map(|name| name.to_lowercase()))
        .collect();
    for name in headers.keys().map(reqwest::header::HeaderName::as_str) {
        let known = ALWAYS.contains(&name) || named.iter().any(|known| known == name);
        assert!(known, "{method} {path} {status}: {name} is not in the document");
    }
    for name in must {
        assert!(headers.contains_key(*name), "{method} {path} {status}: no {name}");
        assert!(named.iter().any(|known| known == name), "{name} is not in the document");
    }
}
