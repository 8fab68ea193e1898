//! `GET /get-checkpoint`: a slice of the current global model, to whoever signs for it.

use std::time::SystemTime;

use axum::{
    body::{Body, to_bytes},
    extract::{RawQuery, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use checkpoint::{FileInfo, Format, SliceId};
use domain::{BlockNumber, Hotkey, block_message};
use futures::StreamExt as _;
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _, SeekFrom},
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tokio_util::io::ReaderStream;
use tracing::{info, instrument};

use crate::{
    admit::{Fields, check_target},
    app::App,
    auth::Signature,
    error::Error,
    metrics,
    range::{self, Answer, Representation},
    view::{Base, View},
};

/// Longest form of a download, in bytes.
const MAX_FORM: usize = 16 << 10;
/// Bytes read from the disk at a time.
const PIECE: usize = 256 << 10;

/// `GET /get-checkpoint`, with its form in the body, as today's miners send it, or in the query.
#[instrument(name = "download", skip_all, fields(hotkey, slice, format, answer))]
pub(crate) async fn get_checkpoint(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Error> {
    let seen = app.latest.any()?;
    let (parts, body) = request.into_parts();
    let form = timeout(app.config.header_timeout, to_bytes(body, MAX_FORM))
        .await
        .map_err(|_| Error::TooSlow { limit: app.config.header_timeout })?
        .map_err(|_| Error::TooLarge { limit: MAX_FORM as u64 })?;
    let mut fields = Fields::default();
    for (name, value) in form_urlencoded::parse(&form)
        .chain(form_urlencoded::parse(query.unwrap_or_default().as_bytes()))
    {
        fields.add(&name, &value);
    }

    let hotkey = authenticate(&fields, &seen.view, &app)?;
    app.limits.hotkey(&hotkey)?;
    let (base, manifest) = seen.model()?;
    let (slice, format) = (slice(&fields)?, format(&fields, &parts.headers)?);
    let no_slice = || Error::NoSlice { slice: slice.to_string(), format: format.to_string() };
    let found = manifest.slices.get(&slice).ok_or_else(no_slice)?;
    let info = found.files.get(&format).ok_or_else(no_slice)?;

    let permit = app.downloads.take()?;
    let key = format!("{}/{}", base.prefix, info.name);
    let path = app
        .artifacts
        .local_file(&key)
        .await
        .map_err(|error| Error::unavailable("read the checkpoint", error))?;
    let (file, modified) = open(&path, info)
        .await
        .map_err(|error| Error::unavailable("open the checkpoint", error))?;
    let representation = Representation {
        len: info.bytes,
        etag: format!("\"{}-{slice}-{}\"", found.model_hash, format.extension()),
        modified,
    };
    let answer = range::answer(&parts.headers, &representation);
    let named = match answer {
        Answer::Whole => "whole",
        Answer::Part { .. } => "part",
        Answer::NotModified => "not_modified",
        Answer::Unsatisfiable => {
            return Err(Error::RangeUnsatisfiable { len: representation.len });
        }
    };
    metrics::download(slice.to_string(), format.extension(), named);
    info!(%hotkey, %slice, %format, answer = named, "slice asked for");
    let mut response = respond(&representation, answer);
    describe(response.headers_mut(), &representation, info, base);
    let (start, len) = match answer {
        Answer::Part { start, len } => (start, len),
        Answer::Whole | Answer::NotModified | Answer::Unsatisfiable => (0, representation.len),
    };
    if parts.method != Method::HEAD && answer != Answer::NotModified {
        *response.body_mut() = stream(file, start, len, permit)
            .await
            .map_err(|error| Error::unavailable("read the checkpoint", error))?;
    }
    Ok(response)
}

/// Whoever signed the block message to this validator, lately.
fn authenticate(fields: &Fields, view: &View, app: &App) -> Result<Hotkey, Error> {
    for field in ["target_hotkey_ss58", "origin_hotkey_ss58", "origin_block", "signature"] {
        fields.text(field)?;
    }
    let target = check_target(fields, view)?;
    let hotkey: Hotkey = fields.parse("origin_hotkey_ss58")?;
    let origin = BlockNumber(fields.parse("origin_block")?);
    let signature: Signature = fields.parse("signature")?;
    if !signature.is_of(&hotkey, &block_message(&target, origin)) {
        return Err(Error::RequestSignature { hotkey, message: "block message" });
    }
    let age = app.config.max_origin_age_blocks.unwrap_or_else(|| view.schedule.cycle_length());
    let first = BlockNumber(view.block.0.saturating_sub(age));
    let last = BlockNumber(view.block.0.saturating_add(app.config.max_origin_ahead_blocks));
    if (first..=last).contains(&origin) {
        Ok(hotkey)
    } else {
        Err(Error::OriginBlock { origin, first, last })
    }
}

/// The slice that is asked for: the whole model unless one is named.
fn slice(fields: &Fields) -> Result<SliceId, Error> {
    match fields.get("expert_group_id") {
        None => Ok(SliceId::Full),
        Some(text) => text.parse().map_err(|_| Error::NoSlice {
            slice: text.chars().take(32).collect(),
            format: "any".to_owned(),
        }),
    }
}

/// The format that is asked for, by name or by `Accept`: `.pt`, as today's miners load it, unless
/// safetensors is wanted.
fn format(fields: &Fields, headers: &HeaderMap) -> Result<Format, Error> {
    match fields.get("format") {
        Some("pt") => return Ok(Format::Pt),
        Some("safetensors") => return Ok(Format::Safetensors),
        Some(_) => {
            let why = "it is neither `pt` nor `safetensors`".to_owned();
            return Err(Error::InvalidField { field: "format", why });
        }
        None => {}
    }
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let safetensors = accept.is_some_and(|accept| accept.contains("safetensors"));
    Ok(if safetensors { Format::Safetensors } else { Format::Pt })
}

async fn open(
    path: &std::path::Path,
    info: &FileInfo,
) -> std::io::Result<(File, Option<SystemTime>)> {
    let file = File::open(path).await?;
    let metadata = file.metadata().await?;
    if metadata.len() != info.bytes {
        let found = metadata.len();
        return Err(std::io::Error::other(format!("{found} bytes instead of {}", info.bytes)));
    }
    Ok((file, metadata.modified().ok()))
}

fn respond(file: &Representation, answer: Answer) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    let (status, len) = match answer {
        Answer::Part { start, len } => {
            let range = format!("bytes {start}-{}/{}", start + len - 1, file.len);
            put(headers, header::CONTENT_RANGE, &range);
            (StatusCode::PARTIAL_CONTENT, Some(len))
        }
        Answer::NotModified => (StatusCode::NOT_MODIFIED, None),
        Answer::Whole | Answer::Unsatisfiable => (StatusCode::OK, Some(file.len)),
    };
    if let Some(len) = len {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    }
    *response.status_mut() = status;
    response
}

/// Headers that every answer about a file carries.
fn describe(headers: &mut HeaderMap, file: &Representation, info: &FileInfo, base: &Base) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    put(headers, header::ETAG, &file.etag);
    put(headers, header::CONTENT_DISPOSITION, &format!("attachment; filename=\"{}\"", info.name));
    put(headers, "x-global-version", &base.version.to_string());
    put(headers, "x-model-hash", &base.model_hash.to_hex());
    put(headers, "x-content-sha256", &info.sha256);
    if let Some(modified) = file.modified {
        put(headers, header::LAST_MODIFIED, &httpdate::fmt_http_date(modified));
    }
}

fn put(headers: &mut HeaderMap, name: impl header::IntoHeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// `len` bytes of the file from `start`. The permit is given back at the end, however it comes.
async fn stream(
    mut file: File,
    start: u64,
    len: u64,
    permit: OwnedSemaphorePermit,
) -> std::io::Result<Body> {
    if start > 0 {
        file.seek(SeekFrom::Start(start)).await?;
    }
    let pieces = ReaderStream::with_capacity(file.take(len), PIECE).inspect(move |piece| {
        let _held = &permit;
        if let Ok(piece) = piece {
            metrics::download_bytes(piece.len() as u64);
        }
    });
    Ok(Body::from_stream(pieces))
}
