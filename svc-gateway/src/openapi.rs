//! `GET /openapi.json`: the routes, for whoever writes a client.
//!
//! `openapi.yaml` beside this crate's manifest is written by hand, so that it reads well; what would be said
//! again and again there is filled in here: for every operation its refusals, by status, with their headers
//! and an example of each reason. Tests hold it to the router, to `docs/reasons.md` and to every answer that
//! they provoke.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

const SOURCE: &str = include_str!("../openapi.yaml");

/// What every route may be refused with, as it is looked at before the route.
const COMMON: [&str; 4] = ["token_missing", "token_wrong", "rate_limited", "too_many_connections"];

/// A reason, as the document has it.
#[derive(Debug, Clone, Deserialize)]
struct Reason {
    /// HTTP status.
    status: u16,
    /// What it means.
    says: String,
    /// An example of a detail.
    detail: String,
}

type Reasons = BTreeMap<String, Reason>;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "the source is in the binary, and a test reads it")]
    written(SOURCE).expect("openapi.yaml is a document")
});

static TEXT: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(DOCUMENT.to_string()));

/// The document: OpenAPI 3.1.
#[must_use]
pub fn document() -> &'static Value {
    &DOCUMENT
}

/// `GET /openapi.json`.
pub(crate) async fn serve() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone()).into_response()
}

/// Why the source is no document: a flaw in this crate.
#[derive(Debug, thiserror::Error)]
enum Flaw {
    #[error("not YAML: {0}")]
    Yaml(#[from] serde_norway::Error),
    #[error("{place} is not what it should be")]
    Shape { place: String },
    #[error("{place}: there is no reason `{reason}`")]
    Reason { place: String, reason: String },
}

fn shape(place: &str) -> Flaw {
    Flaw::Shape { place: place.to_owned() }
}

fn written(source: &str) -> Result<Value, Flaw> {
    let mut source: serde_norway::Value = serde_norway::from_str(source)?;
    source.apply_merge()?;
    let mut document = serde_json::to_value(source).map_err(|why| shape(&why.to_string()))?;
    let reasons: Reasons = serde_json::from_value(document["x-reasons"].clone())
        .map_err(|error| shape(&format!("x-reasons: {error}")))?;
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    let all: Vec<&String> = reasons.keys().collect();
    document["components"]["schemas"]["Refusal"]["properties"]["reason"]["enum"] = json!(all);

    let mut paths = Map::new();
    let source = document["paths"].as_object().ok_or_else(|| shape("paths"))?;
    for (path, item) in source {
        let (item, alias) = match item.get("x-same-as").and_then(Value::as_str) {
            Some(other) => (source.get(other).ok_or_else(|| shape(path))?, Some(other)),
            None => (item, None),
        };
        let mut item = item.as_object().ok_or_else(|| shape(path))?.clone();
        with_head(&mut item);
        for (method, operation) in item.iter_mut().filter(|(name, _)| *name != "parameters") {
            let place = format!("{method} {path}");
            let operation = operation.as_object_mut().ok_or_else(|| shape(&place))?;
            with_refusals(operation, &reasons, &place)?;
            if let Some(other) = alias {
                same_as(operation, other, path);
            }
        }
        paths.insert(path.clone(), item.into());
    }
    document["paths"] = paths.into();
    Ok(document)
}

/// HEAD, where the source says that it is worth asking for: the headers of GET, and no body.
fn with_head(item: &mut Map<String, Value>) {
    let Some(get) = item.get_mut("get").and_then(Value::as_object_mut) else { return };
    let Some(summary) = get.remove("x-head") else { return };
    let mut head = get.clone();
    head.insert("summary".into(), summary);
    head.remove("description");
    rename(&mut head, "Head");
    if let Some(responses) = head.get_mut("responses").and_then(Value::as_object_mut) {
        // Ranges are defined for GET alone.
        responses.remove("206");
        for response in responses.values_mut().filter_map(Value::as_object_mut) {
            response.remove("content");
        }
    }
    item.insert("head".into(), head.into());
}

/// Another path to the same operation.
fn same_as(operation: &mut Map<String, Value>, other: &str, path: &str) {
    operation.insert("summary".into(), format!("The same as `{other}`").into());
    operation.remove("description");
    let words = path.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let suffix: String = words.map(|word| format!("_{word}")).collect();
    rename(operation, &suffix);
}

fn rename(operation: &mut Map<String, Value>, suffix: &str) {
    if let Some(Value::String(id)) = operation.get_mut("operationId") {
        id.push_str(suffix);
    }
}

/// Adds a response for every status that one of the operation's reasons has.
fn with_refusals(
    operation: &mut Map<String, Value>,
    reasons: &Reasons,
    place: &str,
) -> Result<(), Flaw> {
    let own = flat(operation.remove("x-reasons").as_ref()).ok_or_else(|| shape(place))?;
    let shared = operation.remove("x-refusal-headers");
    let mut by_status: BTreeMap<u16, Vec<(&str, &Reason)>> = BTreeMap::new();
    for name in COMMON.into_iter().chain(own.iter().map(String::as_str)) {
        let missing = || Flaw::Reason { place: place.to_owned(), reason: name.to_owned() };
        let (name, reason) = reasons.get_key_value(name).ok_or_else(missing)?;
        by_status.entry(reason.status).or_default().push((name, reason));
    }
    let responses = operation.entry("responses").or_insert_with(|| json!({}));
    let responses = responses.as_object_mut().ok_or_else(|| shape(place))?;
    for (status, reasons) in by_status {
        let mut response = refusal(status, &reasons);
        if let Some(Value::Object(shared)) = &shared {
            let own = response["headers"].as_object().cloned().unwrap_or_default();
            response["headers"] = shared.clone().into_iter().chain(own).collect();
        }
        responses.insert(status.to_string(), response);
    }
    Ok(())
}

/// The words of a list that may have lists in it; each once.
fn flat(list: Option<&Value>) -> Option<BTreeSet<String>> {
    match list {
        None => Some(BTreeSet::new()),
        Some(Value::String(word)) => Some([word.clone()].into()),
        Some(Value::Array(all)) => {
            let parts: Option<Vec<BTreeSet<String>>> =
                all.iter().map(|part| flat(Some(part))).collect();
            Some(parts?.into_iter().flatten().collect())
        }
        Some(_) => None,
    }
}

fn refusal(status: u16, reasons: &[(&str, &Reason)]) -> Value {
    let lines: Vec<String> =
        reasons.iter().map(|(name, reason)| format!("- `{name}`: {}", reason.says)).collect();
    let names: Vec<&str> = reasons.iter().map(|(name, _)| *name).collect();
    let example = |(name, reason): &(&str, &Reason)| {
        let value = json!({ "detail": reason.detail, "reason": name });
        ((*name).to_owned(), json!({ "value": value }))
    };
    let examples: Map<String, Value> = reasons.iter().map(example).collect();
    let mut response = json!({
        "description": lines.join("\n"),
        "content": { "application/json": {
            "schema": {
                "allOf": [{ "$ref": "#/components/schemas/Refusal" }],
                "properties": { "reason": { "enum": names } },
            },
            "examples": examples,
        } },
    });
    let header = match status {
        401 => Some("WWW-Authenticate"),
        409 | 423 | 429 | 503 => Some("Retry-After"),
        416 => Some("Content-Range"),
        _ => None,
    };
    let offset = names.contains(&"offset_mismatch").then_some("Upload-Offset");
    for name in header.into_iter().chain(offset) {
        let shared = format!("#/components/headers/{name}");
        response["headers"][name] = json!({ "$ref": shared });
    }
    response
}

#[cfg(test)]
mod tests;
