//! `GET /get-checkpoint`: a slice of the current global model, to whoever signs for it.
//!
//! What is served is the model of one view of the round: its manifest has the hash that is revealed on
//! chain, and a file on this disk has the digest that is in the manifest, or there is none. A download that has begun stays with the file that it began with, whatever
//! model comes after it; whoever goes on with a part of another model gets the new file from its beginning.

use axum::{
    body::Body,
    extract::{Path, RawQuery, Request, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use checkpoint::Manifest;
use tracing::{info, instrument};

use crate::{
    app::{App, Slot},
    error::Error,
    metrics,
    range::{self, Answer, Representation},
    routes::client_address,
    signed,
    source::{Content, Source},
    view::Base,
    wanted::Wanted,
};

/// `GET /get-checkpoint`, with its form in the body, as today's miners send it, or in the query.
pub(crate) async fn by_form(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Error> {
    get_checkpoint(&app, None, query.unwrap_or_default(), request).await
}

/// `GET /get-checkpoint/model_shared.pt`: the same, and the path names the file.
pub(crate) async fn by_name(
    State(app): State<App>,
    name: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Error> {
    let Path(name) = name.map_err(|_| Error::NoRoute)?;
    get_checkpoint(&app, Some(&name), query.unwrap_or_default(), request).await
}

#[instrument(name = "download", skip_all)]
async fn get_checkpoint(
    app: &App,
    name: Option<&str>,
    query: String,
    request: Request,
) -> Result<Response, Error> {
    let seen = app.latest.any()?;
    let (parts, body) = request.into_parts();
    let fields = signed::fields(app, &query, body).await?;
    let hotkey = signed::hotkey(&fields, &seen.view, app)?;
    app.limits.hotkey(&hotkey)?;
    let (base, manifest) = seen.model()?;
    let wanted = Wanted::find(name, &fields, &parts.headers, manifest)?;
    let Wanted { slice, format, .. } = wanted;

    let source = Source::find(app, base, wanted.file).await?;
    let file = Representation {
        len: wanted.file.bytes,
        etag: format!("\"{}-{slice}-{}\"", wanted.of.model_hash, format.extension()),
        modified: source.modified(),
    };
    let answer = range::answer(&parts.method, &parts.headers, &file);
    let (named, status, start, len) = match answer {
        Answer::Whole => ("whole", StatusCode::OK, 0, file.len),
        Answer::Part { start, len } => ("part", StatusCode::PARTIAL_CONTENT, start, len),
        Answer::NotModified => ("not_modified", StatusCode::NOT_MODIFIED, 0, 0),
        Answer::PreconditionFailed => return Err(Error::PreconditionFailed),
        Answer::Unsatisfiable => return Err(Error::RangeUnsatisfiable { len: file.len }),
        Answer::Several => return Err(Error::SeveralRanges { len: file.len }),
    };
    let head = parts.method == Method::HEAD;
    let content = if head || answer == Answer::NotModified {
        None
    } else {
        let under_way =
            app.limits.download(client_address(app, &parts.extensions, &parts.headers))?;
        let slot = Slot::of(app.downloads.take()?, parts.extensions.get()).counted(under_way);
        // Of our tags the bucket knows nothing.
        let conditional = parts.headers.contains_key(header::IF_RANGE);
        let may_redirect = !conditional && fields.get("redirect") != Some("no");
        Some(source.content(app, start, len, slot, may_redirect).await?)
    };
    let (named, status) = match content {
        Some(Content::Elsewhere(_)) => ("redirect", StatusCode::TEMPORARY_REDIRECT),
        _ => (named, status),
    };
    metrics::download(slice.to_string(), format.extension(), named);
    info!(%hotkey, %slice, %format, answer = named, "slice asked for");

    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    describe(response.headers_mut(), base, manifest, &wanted, &file);
    match content {
        Some(Content::Elsewhere(url)) => put(response.headers_mut(), header::LOCATION, &url),
        Some(Content::File(part)) => {
            describe_body(response.headers_mut(), &wanted, &file, answer);
            response.extensions_mut().insert(part);
        }
        Some(Content::Stream(body)) => {
            describe_body(response.headers_mut(), &wanted, &file, answer);
            *response.body_mut() = body;
        }
        None if head && answer != Answer::NotModified => {
            describe_body(response.headers_mut(), &wanted, &file, answer);
        }
        None => {}
    }
    Ok(response)
}

/// Headers that every answer about a file carries, 304 and a redirect among them.
fn describe(
    headers: &mut HeaderMap,
    base: &Base,
    manifest: &Manifest,
    wanted: &Wanted<'_>,
    file: &Representation,
) {
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if wanted.negotiated {
        headers.insert(header::VARY, HeaderValue::from_static("accept"));
    }
    put(headers, header::ETAG, &file.etag);
    if let Some(modified) = file.modified {
        put(headers, header::LAST_MODIFIED, &httpdate::fmt_http_date(modified));
    }
    put(headers, "x-global-version", &base.version.to_string());
    put(headers, "x-model-hash", &manifest.model_hash.to_hex());
    put(headers, "x-content-sha256", &wanted.file.sha256);
}

/// Headers of an answer that has a body, or would have one if it were not to HEAD.
fn describe_body(
    headers: &mut HeaderMap,
    wanted: &Wanted<'_>,
    file: &Representation,
    answer: Answer,
) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let disposition = format!("attachment; filename=\"{}\"", wanted.file.name);
    put(headers, header::CONTENT_DISPOSITION, &disposition);
    let mut len = file.len;
    if let Answer::Part { start, len: part } = answer {
        len = part;
        let last = start.saturating_add(len).saturating_sub(1);
        put(headers, header::CONTENT_RANGE, &format!("bytes {start}-{last}/{}", file.len));
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
}

fn put(headers: &mut HeaderMap, name: impl header::IntoHeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
