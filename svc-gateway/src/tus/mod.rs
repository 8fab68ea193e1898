//! Uploads that can be gone on with: tus 1.0 at `/files`, beside the form.
//!
//! A creation is the signed request, with the fields of the form in `Upload-Metadata`; it is checked as a
//! form is, and answered with a URL that only its sender knows. Bytes come with any number of requests, and
//! are verified as they pass; the answer to the last of them tells what became of the file. Of the
//! protocol's extensions: creation, creation-with-upload, expiration, checksum and termination.

mod append;
mod body;
mod create;
mod headers;
mod life;
mod part;
mod table;

use axum::{
    Json,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::json;
use tracing::Instrument as _;

use self::{
    append::{Appending, Came, count},
    body::Sent,
    create::Creating,
    headers::{Checksum, Flaw},
    table::Looked,
};
pub(crate) use self::{
    headers::ALGORITHMS,
    part::{Parts, UploadId},
    table::{Keeper, Table},
};
use crate::{
    app::App,
    error::{Error, Gone, Reason},
    marks::{self, End, Submitted},
    metrics,
};

/// The version that is spoken.
pub(crate) const VERSION: &str = "1.0.0";
/// The extensions that are spoken.
const EXTENSIONS: &str = "creation,creation-with-upload,expiration,checksum,termination";
/// Type of a body that is appended.
const OFFSET_STREAM: &str = "application/offset+octet-stream";

/// Says the headers of tus with every answer of its routes, and refuses other versions.
pub(crate) async fn speak(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path != "/files" && !path.starts_with("/files/") {
        return next.run(request).await;
    }
    let asks = [Method::OPTIONS, Method::GET].contains(request.method());
    let version = request.headers().get("tus-resumable");
    let mut response = if asks || version.is_some_and(|version| version == VERSION) {
        next.run(request).await
    } else {
        Error::TusVersion.into_response()
    };
    let reason = response.extensions().get::<Reason>().map(|reason| reason.0);
    let headers = response.headers_mut();
    for (name, value) in [
        ("tus-resumable", VERSION),
        ("tus-version", VERSION),
        ("tus-extension", EXTENSIONS),
        ("tus-checksum-algorithm", ALGORITHMS),
        ("cache-control", "no-store"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    put(headers, "tus-max-size", app.config.max_upload_bytes);
    if let Some(reason) = reason {
        // The answer to HEAD has no body that could tell it.
        headers.insert("x-reason", HeaderValue::from_static(reason));
    }
    response
}

/// `OPTIONS /files`.
pub(crate) async fn options() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// `POST /files`: creates an upload, perhaps with its first bytes.
pub(crate) async fn create(State(app): State<App>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let begun =
        first(&parts.headers, body).and_then(|first| Creating::begin(&app, &parts.headers, first));
    let result = match begun {
        Ok(creating) => {
            let span = creating.span();
            let task = app.shutdown.spawn(Box::pin(creating.run()).instrument(span));
            task.await.unwrap_or_else(|error| Err(Error::unavailable("begin the upload", error)))
        }
        Err(error) => Err(error),
    };
    count(&app, result.as_ref().map(|(_, came)| came));
    match result {
        Ok((id, came)) => {
            let mut response = (StatusCode::CREATED, outcome(&app, &came)).into_response();
            let url = format!("{}/files/{}", life::home(&app), id.as_str());
            put(response.headers_mut(), "location", url);
            response
        }
        Err(error) => error.into_response(),
    }
}

/// The body of a creation, if it is meant to be taken.
fn first(headers: &HeaderMap, body: Body) -> Result<Option<Sent>, Error> {
    match headers.get(header::CONTENT_TYPE) {
        Some(kind) if kind == OFFSET_STREAM => sent(headers, body).map(Some),
        _ => Ok(None),
    }
}

fn sent(headers: &HeaderMap, body: Body) -> Result<Sent, Error> {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .map(|length| headers::bytes(length.as_bytes()).map_err(invalid("Content-Length")));
    let checksum = headers
        .get("upload-checksum")
        .map(|checksum| Checksum::parse(checksum.as_bytes()).map_err(invalid("Upload-Checksum")));
    Ok(Sent { body, length: length.transpose()?, checksum: checksum.transpose()? })
}

/// `HEAD /files/{id}`: how far an upload is, or what became of it. `GET` says the same in a body.
pub(crate) async fn look(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, Error> {
    let id: UploadId = id.parse().map_err(|_| Error::NoUpload)?;
    let found = match app.tus.look(&id).await? {
        Some(looked) => Found::Here(looked),
        None => find(&app, &id).await?,
    };
    Ok(match found {
        Found::Here(looked) => {
            let (offset, length) = (looked.offset, looked.info.length);
            let status = if offset == length { "verifying" } else { "unfinished" };
            let body = json!({ "status": status, "offset": offset, "length": length });
            let metadata = looked.info.metadata.clone();
            let mut headers = outcome(&app, &Came::Part(looked));
            put(&mut headers, "upload-metadata", metadata);
            (StatusCode::OK, headers, Json(body)).into_response()
        }
        Found::Stored(submitted) => {
            let body = json!({
                "status": "ok",
                "stored_path": submitted.key,
                "bytes": submitted.bytes,
                "sha256": submitted.sha256,
            });
            let came = Came::Whole(submitted);
            (StatusCode::OK, outcome(&app, &came), Json(body)).into_response()
        }
        Found::Answer(response) => response,
    })
}

/// `PATCH /files/{id}`: appends.
pub(crate) async fn patch(
    State(app): State<App>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Error> {
    let id: UploadId = id.parse().map_err(|_| Error::NoUpload)?;
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != OFFSET_STREAM) {
        return Err(Error::MediaType);
    }
    let missing = Error::InvalidHeader { header: "Upload-Offset", why: "is missing" };
    let offset = headers.get("upload-offset").ok_or(missing)?;
    let offset = headers::bytes(offset.as_bytes()).map_err(invalid("Upload-Offset"))?;
    let sent = sent(headers, body)?;
    let appending = Appending::begin(&app)?;
    let span = appending.span("append");
    let running = Box::pin(appending.run(id.clone(), offset, sent)).instrument(span);
    let result = app.shutdown.spawn(running).await;
    match result.unwrap_or_else(|error| Err(Error::unavailable("go on with the upload", error))) {
        Ok(came) => Ok((StatusCode::NO_CONTENT, outcome(&app, &came)).into_response()),
        // Its answer may have been lost: it is given again.
        Err(Error::NoUpload) => Ok(match find(&app, &id).await? {
            Found::Stored(submitted) if submitted.bytes == offset => {
                let came = Came::Whole(submitted);
                (StatusCode::NO_CONTENT, outcome(&app, &came)).into_response()
            }
            Found::Stored(submitted) => {
                Error::OffsetMismatch { offset: submitted.bytes }.into_response()
            }
            Found::Answer(response) => response,
            Found::Here(looked) => Error::OffsetMismatch { offset: looked.offset }.into_response(),
        }),
        Err(error) => Err(error),
    }
}

/// `DELETE /files/{id}`: ends an upload that is not at its end.
pub(crate) async fn delete(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, Error> {
    let id: UploadId = id.parse().map_err(|_| Error::NoUpload)?;
    if app.tus.look(&id).await?.is_none() {
        return Ok(match find(&app, &id).await? {
            Found::Stored(submitted) => {
                let error = Error::AlreadySubmitted {
                    hotkey: submitted.hotkey,
                    round: app
                        .latest
                        .any()?
                        .view
                        .round
                        .as_ref()
                        .map_or(domain::RoundId(0), |r| r.id),
                };
                error.into_response()
            }
            Found::Answer(response) => response,
            Found::Here(_) => Error::UploadLocked.into_response(),
        });
    }
    let taken = app.tus.take(&id).await?;
    if !life::tell(&app, &id, &End::Terminated).await {
        return Err(Error::Unavailable { doing: "end the upload" });
    }
    metrics::tus_ended("terminated");
    taken.end().await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /files/{id}`: for clients that can send no other method.
pub(crate) async fn overridden(
    state: State<App>,
    id: Path<String>,
    request: Request,
) -> Result<Response, Error> {
    let method = request.headers().get("x-http-method-override");
    match method.map(HeaderValue::as_bytes) {
        Some(b"PATCH") => patch(state, id, request).await,
        Some(b"DELETE") => delete(state, id).await,
        Some(b"HEAD") => look(state, id).await,
        _ => Err(Error::NoMethod),
    }
}

/// What there is to say of an upload that is not in hand.
enum Found {
    Here(Looked),
    Stored(Submitted),
    Answer(Response),
}

/// Looks for an upload that is not here, or not any more.
async fn find(app: &App, id: &UploadId) -> Result<Found, Error> {
    if let Some(end) = marks::end(&app.store, id).await? {
        return Ok(ended(end));
    }
    let hotkey = marks::sender(&app.store, id).await?.ok_or(Error::NoUpload)?;
    let place = marks::place(&app.store, &hotkey).await?.ok_or(Error::NoUpload)?;
    if place.id != *id {
        return Err(Error::UploadGone { why: Gone::Replaced });
    }
    // Gateways that share an address cannot be told apart by it.
    if place.url.is_empty() || place.url == life::home(app) {
        return Err(Error::UploadElsewhere);
    }
    let mut response = StatusCode::TEMPORARY_REDIRECT.into_response();
    put(response.headers_mut(), "location", format!("{}/files/{}", place.url, id.as_str()));
    Ok(Found::Answer(response))
}

fn ended(end: End) -> Found {
    let why = match end {
        End::Stored(submitted) => return Found::Stored(submitted),
        End::Refused { status, reason, detail } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
            let said = HeaderValue::try_from(&reason);
            let mut response =
                (status, Json(json!({ "detail": detail, "reason": reason }))).into_response();
            if let Ok(reason) = said {
                response.headers_mut().insert("x-reason", reason);
            }
            return Found::Answer(response);
        }
        End::Expired => Gone::Expired,
        End::Terminated => Gone::Terminated,
        End::Lost => Gone::Lost,
    };
    Found::Answer(Error::UploadGone { why }.into_response())
}

/// The headers that tell how far an upload is, or what became of it.
fn outcome(app: &App, came: &Came) -> HeaderMap {
    let mut headers = HeaderMap::new();
    match came {
        Came::Part(looked) => {
            put(&mut headers, "upload-offset", looked.offset);
            put(&mut headers, "upload-length", looked.info.length);
            if let Some(date) = life::expires(app, looked) {
                put(&mut headers, "upload-expires", date);
            }
        }
        Came::Whole(submitted) => {
            put(&mut headers, "upload-offset", submitted.bytes);
            put(&mut headers, "upload-length", submitted.bytes);
            put(&mut headers, "x-stored-path", &submitted.key);
            put(&mut headers, "x-content-sha256", &submitted.sha256);
        }
    }
    headers
}

fn put(headers: &mut HeaderMap, name: &'static str, value: impl ToString) {
    if let Ok(value) = HeaderValue::try_from(value.to_string()) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// The refusal of a header.
fn invalid(header: &'static str) -> impl FnOnce(Flaw) -> Error {
    move |flaw| match flaw {
        Flaw::Malformed(why) => Error::InvalidHeader { header, why },
        Flaw::Algorithm => Error::ChecksumAlgorithm,
    }
}
