//! What must hold of any bytes that a stranger sends: each parser of the gateway, called with them, and the
//! claims that its callers rely on.
//!
//! The fuzz targets in `fuzz/` call these functions, and so does a test here, with some thousands of bent
//! requests. Nothing else of the gateway is called: no store, no scheduler, no disk.

use axum::http::{HeaderMap, HeaderValue, Method, header};
use bytes::Bytes;
use domain::{BlockNumber, ExpertGroup, Hotkey, Schedule};

use crate::{
    admit,
    error::Error,
    multipart::{self, MAX_HEAD, MAX_PARTS, Multipart, MultipartError, PartHead},
    range::{self, Answer, Representation},
    signed, tus,
    view::View,
    wanted,
};

/// Separates the parts of the forms here.
pub const BOUNDARY: &str = "XyZ";

type Parts = Vec<(PartHead, Vec<u8>)>;
type Read = Result<Parts, &'static str>;

/// A form that arrives in pieces of any size is what it is in one piece, and what a reader that has all of
/// it before it says. The first byte chooses the sizes.
///
/// # Panics
///
/// When that does not hold.
pub fn multipart(bytes: &[u8]) -> bool {
    let Some((&seed, body)) = bytes.split_first() else { return false };
    let expected = whole(body);
    assert_eq!(read(body, body.len().max(1), 0), expected, "in one piece");
    assert_eq!(read(body, 1 + usize::from(seed >> 3), seed & 7), expected, "in pieces");
    if let Ok(parts) = &expected {
        let data: usize = parts.iter().map(|(_, data)| data.len()).sum();
        assert!(data <= body.len() && parts.len() <= MAX_PARTS, "more came out than went in");
    }
    expected.is_ok()
}

/// A form that any client could write reads as it was written. The bytes are cut into names and data.
///
/// # Panics
///
/// When that does not hold.
pub fn multipart_written(bytes: &[u8]) -> bool {
    let delimiter = format!("\r\n--{BOUNDARY}");
    let mut rest = bytes;
    let mut written: Parts = Vec::new();
    while let Some((&kind, behind)) = rest.split_first()
        && written.len() < MAX_PARTS
    {
        let (name, behind) = behind.split_at(usize::from(kind & 15).min(behind.len()));
        let (data, behind) = behind.split_at((usize::from(kind) * 7).min(behind.len()));
        let name: String = String::from_utf8_lossy(name).replace(['\r', '\n'], "_");
        let file_name = (kind & 16 != 0).then(|| name.clone());
        let data = if memchr::memmem::find(data, delimiter.as_bytes()).is_some()
            || data.starts_with(&delimiter.as_bytes()[2..])
        {
            &[]
        } else {
            data
        };
        written.push((PartHead { name, file_name }, data.to_vec()));
        rest = behind;
    }
    let mut body = Vec::new();
    for (head, data) in &written {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        body.extend(format!("--{BOUNDARY}\r\nContent-Disposition: form-data; ").bytes());
        body.extend(format!("name=\"{}\"", quoted(&head.name)).bytes());
        if let Some(file) = &head.file_name {
            body.extend(format!("; filename=\"{}\"", quoted(file)).bytes());
        }
        body.extend(b"\r\nContent-Type: text/plain\r\n\r\n");
        body.extend(data);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{BOUNDARY}--\r\n").bytes());
    let size = bytes.first().map_or(1, |byte| 1 + usize::from(*byte));
    assert_eq!(read(&body, size, 3), Ok(written));
    true
}

/// A `Content-Type` names a boundary that can be used, or is refused.
///
/// # Panics
///
/// When that does not hold.
pub fn boundary(bytes: &[u8]) -> bool {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return false };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, value);
    let Ok(boundary) = multipart::boundary(&headers) else { return false };
    assert!(!boundary.is_empty() && boundary.len() <= 70 && boundary.is_ascii(), "{boundary:?}");
    true
}

/// Any bytes are fields, and no fields are a miner's without its signature.
///
/// # Panics
///
/// When that does not hold.
pub fn form(bytes: &[u8]) -> bool {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (body, query) = bytes.split_at(at);
    let query = String::from_utf8_lossy(query.strip_prefix(&[0]).unwrap_or(query));
    let fields = signed::read(body, &query);
    // The body's word counts, and of several the first one.
    let pairs = form_urlencoded::parse(body).chain(form_urlencoded::parse(query.as_bytes()));
    let mut seen = std::collections::BTreeSet::new();
    for (name, value) in pairs {
        if seen.insert(name.clone()) {
            let expected = Some(value.trim()).filter(|value| !value.is_empty());
            assert_eq!(fields.get(&name), expected, "{name}");
        }
    }
    // Written again, they read the same.
    let again = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(form_urlencoded::parse(body))
        .finish();
    assert_eq!(signed::read(again.as_bytes(), &query), fields);
    let view = view();
    let Err(error) = admit::authenticate(&fields, &view) else {
        panic!("nobody signed this");
    };
    assert!(matches!(error.status().as_u16(), 400 | 403), "{error}");
    wanted::of_fields(&fields);
    true
}

/// The name of a file is one plain part of a path, or is refused.
///
/// # Panics
///
/// When that does not hold.
pub fn file_name(bytes: &[u8]) -> bool {
    let name = String::from_utf8_lossy(bytes);
    match admit::safe_file_name(Some(&name)) {
        Ok(safe) => {
            assert_eq!(safe, name, "a safe name is not changed");
            let key = format!("submissions/1/x/{safe}");
            let mut parts = std::path::Path::new(&key).components();
            assert!(parts.all(|part| matches!(part, std::path::Component::Normal(_))), "{key}");
            assert!(!safe.contains(['/', '\\', '\0']) && safe != "meta.json", "{safe}");
            true
        }
        Err(error) => {
            let known = matches!(error, Error::UnsafeFileName { .. } | Error::Extension);
            assert!(known, "{error}");
            false
        }
    }
}

/// The conditions and the range of a download get a part of the file, all of it, or none. Lines of the bytes
/// are the headers; the first byte chooses the file's length.
///
/// # Panics
///
/// When that does not hold.
pub fn download(bytes: &[u8]) -> bool {
    const NAMES: [header::HeaderName; 7] = [
        header::RANGE,
        header::IF_RANGE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::ACCEPT,
    ];
    let Some((&seed, text)) = bytes.split_first() else { return false };
    let mut headers = HeaderMap::new();
    for (line, at) in text.split(|byte| *byte == b'\n').zip(0..16) {
        let name = NAMES[at % NAMES.len()].clone();
        if let Ok(value) = HeaderValue::from_bytes(line)
            && !line.is_empty()
        {
            headers.append(name, value);
        }
    }
    let len = [0, 1, 10, 255, 1 << 20, u64::MAX][usize::from(seed) % 6];
    let modified =
        std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    let file = Representation {
        len,
        etag: "\"tag\"".to_owned(),
        modified: (seed & 128 == 0).then_some(modified),
    };
    wanted::accepted(&headers);
    assert!(!matches!(range::answer(&Method::HEAD, &headers, &file), Answer::Part { .. }));
    let answer = range::answer(&Method::GET, &headers, &file);
    match answer {
        Answer::Part { start, len: part } => {
            assert!(part > 0, "an empty part");
            assert!(start.checked_add(part).is_some_and(|end| end <= len), "{start} and {part}");
            assert!(headers.contains_key(header::RANGE), "nobody asked for a part");
        }
        Answer::Unsatisfiable | Answer::Several => assert!(headers.contains_key(header::RANGE)),
        Answer::PreconditionFailed => assert!(
            headers.contains_key(header::IF_MATCH)
                || headers.contains_key(header::IF_UNMODIFIED_SINCE)
        ),
        Answer::NotModified => assert!(
            headers.contains_key(header::IF_NONE_MATCH)
                || headers.contains_key(header::IF_MODIFIED_SINCE)
        ),
        Answer::Whole => {}
    }
    answer != Answer::Whole
}

/// A header of tus is a value no larger than itself, or is refused. The first byte chooses the header.
///
/// # Panics
///
/// When that does not hold.
pub fn tus(bytes: &[u8]) -> bool {
    let Some((&kind, header)) = bytes.split_first() else { return false };
    match kind % 4 {
        0 => tus::headers::metadata_is_no_larger(header),
        1 => match tus::headers::bytes(header) {
            Ok(number) => {
                // Written again, it is the same number.
                let written = number.to_string();
                assert_eq!(tus::headers::bytes(written.as_bytes()), Ok(number));
                let digits = header.trim_ascii();
                let zeroes = digits.iter().take_while(|digit| **digit == b'0').count();
                assert!(number == 0 || digits.get(zeroes..) == Some(written.as_bytes()));
                true
            }
            Err(_) => false,
        },
        2 => tus::headers::Checksum::parse(header).is_ok(),
        _ => {
            let text = String::from_utf8_lossy(header);
            match text.parse::<tus::UploadId>() {
                Ok(id) => {
                    assert_eq!(id.as_str(), text, "a name is not changed");
                    assert!(id.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric()));
                    true
                }
                Err(_) => false,
            }
        }
    }
}

/// Reads a form that comes in pieces whose sizes vary around `size`.
fn read(body: &[u8], size: usize, vary: u8) -> Read {
    let mut pieces = Vec::new();
    let (mut rest, mut step) = (body, 0u8);
    while !rest.is_empty() {
        step = step.wrapping_mul(5).wrapping_add(vary);
        let (piece, behind) = rest.split_at((size + usize::from(step)).clamp(1, rest.len()));
        pieces.push(Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)));
        rest = behind;
    }
    let mut form = Multipart::new(futures::stream::iter(pieces), BOUNDARY);
    let reading = async {
        let mut parts = Vec::new();
        while let Some(head) = form.next_part().await? {
            let mut data = Vec::new();
            while let Some(piece) = form.chunk().await? {
                assert!(!piece.is_empty(), "an empty piece");
                data.extend_from_slice(&piece);
            }
            parts.push((head, data));
        }
        Ok(parts)
    };
    futures::executor::block_on(reading).map_err(|error| name(&error))
}

fn name(error: &MultipartError) -> &'static str {
    match error {
        MultipartError::ContentType => "content type",
        MultipartError::Truncated => "truncated",
        MultipartError::Malformed(why) => why,
        MultipartError::Body(_) => "body",
    }
}

/// The same form, read by somebody who has all of it: the model that the reader of pieces is held against.
fn whole(body: &[u8]) -> Read {
    let delimiter = format!("\r\n--{BOUNDARY}");
    let find = memchr::memmem::find;
    let text = [b"\r\n", body].concat();
    let mut rest = match find(&text, delimiter.as_bytes()) {
        Some(at) if at <= MAX_HEAD => &text[at + delimiter.len()..],
        None if text.len() < MAX_HEAD + delimiter.len() => return Err("truncated"),
        _ => return Err("no boundary at the beginning"),
    };
    let mut parts = Vec::new();
    loop {
        match rest.get(..2) {
            None => return Err("truncated"),
            Some(b"--") => return Ok(parts),
            Some(b"\r\n") if parts.len() == MAX_PARTS => return Err("too many parts"),
            Some(b"\r\n") => {}
            Some(_) => return Err("text behind a boundary"),
        }
        let end = match find(rest, b"\r\n\r\n") {
            Some(end) if end <= MAX_HEAD => end,
            None if rest.len() < MAX_HEAD + 4 => return Err("truncated"),
            _ => return Err("a part's header is too long"),
        };
        let head = multipart::part_head(&rest[..end]).map_err(|error| name(&error))?;
        rest = &rest[end + 4..];
        let end = find(rest, delimiter.as_bytes()).ok_or("truncated")?;
        parts.push((head, rest[..end].to_vec()));
        rest = &rest[end + delimiter.len()..];
    }
}

/// A validator to whom forms are sent.
fn view() -> View {
    View {
        hotkey: Hotkey::from_public_key([200; 32]),
        block: BlockNumber(340),
        schedule: Schedule::default(),
        base: None,
        expert_group: ExpertGroup(0),
        round: None,
        validators: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
