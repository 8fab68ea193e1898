//! `multipart/form-data` (RFC 7578), read as it arrives, in bounded memory.
//!
//! Knows parts and bytes; knows nothing of miners. Data is handed on in the buffers in which it came: only what may
//! be the beginning of a boundary is copied. Written here and not taken from a crate, because the
//! header of a part must have a limit of its own: a reader that waits for the end of a header with only
//! the limit of the whole body (gigabytes, for a checkpoint) can be made to hold all of it in memory.

use axum::http::{HeaderMap, header};
use bytes::{Buf as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use memchr::memmem::Finder;

/// Longest header of a part, and longest text before the first part, in bytes.
pub(crate) const MAX_HEAD: usize = 8 << 10;
/// Most parts of one form.
pub(crate) const MAX_PARTS: usize = 32;
/// Longest boundary that RFC 2046 allows.
const MAX_BOUNDARY: usize = 70;

/// A form that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MultipartError {
    #[error("the content type is not multipart/form-data with a boundary")]
    ContentType,
    #[error("the form ended before its closing boundary")]
    Truncated,
    #[error("the form is malformed: {0}")]
    Malformed(&'static str),
    #[error("the body could not be read: {0}")]
    Body(String),
}

/// What a part says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartHead {
    /// The form field's name.
    pub(crate) name: String,
    /// The file name, where the part is a file.
    pub(crate) file_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the first boundary.
    Preamble,
    /// In the data of a part.
    Data,
    /// Right behind a boundary.
    Boundary,
    /// Behind the closing boundary.
    End,
}

/// A form on its way in.
#[derive(Debug)]
pub(crate) struct Multipart<S> {
    body: S,
    /// What came and was not handed on yet.
    buffer: Bytes,
    /// Finds `CRLF -- boundary`.
    delimiter: Finder<'static>,
    place: Place,
    parts: usize,
}

/// The boundary that the headers announce.
pub(crate) fn boundary(headers: &HeaderMap) -> Result<String, MultipartError> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let (kind, parameters) =
        value.and_then(|v| v.split_once(';')).ok_or(MultipartError::ContentType)?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return Err(MultipartError::ContentType);
    }
    parameter(parameters, "boundary")
        .filter(|b| !b.is_empty() && b.len() <= MAX_BOUNDARY && b.is_ascii())
        .ok_or(MultipartError::ContentType)
}

impl<S, E> Multipart<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    /// Reads the form whose parts `boundary` separates from `body`.
    pub(crate) fn new(body: S, boundary: &str) -> Self {
        let delimiter = format!("\r\n--{boundary}");
        Self {
            body,
            // The first boundary has no line before it when there is no preamble.
            buffer: Bytes::from_static(b"\r\n"),
            delimiter: Finder::new(&delimiter).into_owned(),
            place: Place::Preamble,
            parts: 0,
        }
    }

    /// Goes to the next part, over what is left of the current one; `None` behind the last.
    pub(crate) async fn next_part(&mut self) -> Result<Option<PartHead>, MultipartError> {
        if self.place == Place::Preamble {
            self.skip_preamble().await?;
        }
        while self.place == Place::Data {
            self.chunk().await?;
        }
        if self.place == Place::End {
            return Ok(None);
        }
        while self.buffer.len() < 2 {
            self.fill().await?;
        }
        if self.buffer.starts_with(b"--") {
            self.place = Place::End;
            return Ok(None);
        }
        if !self.buffer.starts_with(b"\r\n") {
            return Err(MultipartError::Malformed("text behind a boundary"));
        }
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(MultipartError::Malformed("too many parts"));
        }
        let end = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            // Long enough that an end within the limit would be there, however the form was cut.
            if self.buffer.len() >= MAX_HEAD + 4 {
                return Err(MultipartError::Malformed("a part's header is too long"));
            }
            self.fill().await?;
        };
        if end > MAX_HEAD {
            return Err(MultipartError::Malformed("a part's header is too long"));
        }
        let head = part_head(&self.buffer[..end])?;
        self.buffer.advance(end + 4);
        self.place = Place::Data;
        Ok(Some(head))
    }

    /// The next piece of the current part's data; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, MultipartError> {
        if self.place != Place::Data {
            return Ok(None);
        }
        let needle = self.delimiter.needle().len();
        loop {
            if let Some(at) = self.delimiter.find(&self.buffer) {
                if at > 0 {
                    return Ok(Some(self.buffer.split_to(at)));
                }
                self.buffer.advance(needle);
                self.place = Place::Boundary;
                return Ok(None);
            }
            let safe = self.buffer.len() - self.begun();
            if safe > 0 {
                return Ok(Some(self.buffer.split_to(safe)));
            }
            self.fill().await?;
        }
    }

    /// The current part's data as text of at most `limit` bytes.
    pub(crate) async fn text(&mut self, limit: usize) -> Result<String, MultipartError> {
        let mut text = Vec::new();
        while let Some(piece) = self.chunk().await? {
            if text.len() + piece.len() > limit {
                return Err(MultipartError::Malformed("a field is too long"));
            }
            text.extend_from_slice(&piece);
        }
        String::from_utf8(text).map_err(|_| MultipartError::Malformed("a field is not UTF-8"))
    }

    async fn skip_preamble(&mut self) -> Result<(), MultipartError> {
        let needle = self.delimiter.needle().len();
        loop {
            match self.delimiter.find(&self.buffer) {
                Some(at) if at <= MAX_HEAD => {
                    self.buffer.advance(at + needle);
                    self.place = Place::Boundary;
                    return Ok(());
                }
                None if self.buffer.len() < MAX_HEAD + needle => self.fill().await?,
                _ => return Err(MultipartError::Malformed("no boundary at the beginning")),
            }
        }
    }

    /// How many of the last bytes may be the beginning of a boundary.
    fn begun(&self) -> usize {
        let needle = self.delimiter.needle();
        let tail = self.buffer.len().saturating_sub(needle.len() - 1);
        let tail = self.buffer.get(tail..).unwrap_or_default();
        memchr::memchr_iter(b'\r', tail)
            .filter_map(|at| tail.get(at..))
            .find(|end| needle.starts_with(end))
            .map_or(0, <[u8]>::len)
    }

    async fn fill(&mut self) -> Result<(), MultipartError> {
        match self.body.next().await {
            Some(Ok(bytes)) if self.buffer.is_empty() => {
                self.buffer = bytes;
                Ok(())
            }
            Some(Ok(bytes)) => {
                // Own bytes grow in place, so that a head that comes byte by byte is not copied for each.
                let mut joined = match std::mem::take(&mut self.buffer).try_into_mut() {
                    Ok(own) => own,
                    Err(shared) => BytesMut::from(&shared[..]),
                };
                joined.extend_from_slice(&bytes);
                self.buffer = joined.freeze();
                Ok(())
            }
            Some(Err(error)) => Err(MultipartError::Body(error.to_string())),
            None => Err(MultipartError::Truncated),
        }
    }
}

/// Reads the header lines of a part.
pub(crate) fn part_head(head: &[u8]) -> Result<PartHead, MultipartError> {
    let head = std::str::from_utf8(head)
        .map_err(|_| MultipartError::Malformed("a part's header is not UTF-8"))?;
    let disposition = head
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"))
        .map(|(_, value)| value.trim())
        .ok_or(MultipartError::Malformed("a part without Content-Disposition"))?;
    let (kind, parameters) = disposition
        .split_once(';')
        .ok_or(MultipartError::Malformed("a part's Content-Disposition has no name"))?;
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return Err(MultipartError::Malformed("a part's Content-Disposition is not form-data"));
    }
    let name = parameter(parameters, "name")
        .ok_or(MultipartError::Malformed("a part's Content-Disposition has no name"))?;
    Ok(PartHead { name, file_name: parameter(parameters, "filename") })
}

/// The value of `wanted` in `; a=b; c="d"`. Inside quotes only `\"` and `\\` are escapes.
fn parameter(mut text: &str, wanted: &str) -> Option<String> {
    loop {
        text = text.trim_start_matches([';', ' ', '\t']);
        let (key, rest) = text.split_once('=')?;
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = rest.find(';').unwrap_or(rest.len());
                (rest[..end].trim().to_owned(), &rest[end..])
            }
        };
        if key.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        text = rest;
    }
}

fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        match (c, characters.peek()) {
            ('"', _) => return Some((value, &text[at + 1..])),
            ('\\', Some(&(_, next @ ('"' | '\\')))) => {
                value.push(next);
                characters.next();
            }
            _ => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Parts = Vec<(PartHead, Vec<u8>)>;

    /// Reads a whole form that arrives in pieces of the given sizes, over and over.
    async fn read(body: &[u8], sizes: &[usize]) -> Result<Parts, MultipartError> {
        let mut pieces = Vec::new();
        let mut rest = body;
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*size).clamp(1, rest.len()));
            pieces.push(Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)));
            rest = behind;
        }
        let mut form = Multipart::new(futures::stream::iter(pieces), "XyZ");
        let mut parts = Vec::new();
        while let Some(head) = form.next_part().await? {
            let mut data = Vec::new();
            while let Some(piece) = form.chunk().await? {
                data.extend_from_slice(&piece);
            }
            parts.push((head, data));
        }
        Ok(parts)
    }

    fn form(parts: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, file, data) in parts {
            body.extend_from_slice(b"--XyZ\r\nContent-Disposition: form-data; name=\"");
            body.extend_from_slice(name.as_bytes());
            body.push(b'"');
            if let Some(file) = file {
                body.extend_from_slice(format!("; filename=\"{file}\"").as_bytes());
            }
            body.extend_from_slice(b"\r\n\r\n");
            body.extend_from_slice(data);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--XyZ--\r\n");
        body
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    proptest! {
        #[test]
        fn a_form_reads_the_same_however_it_is_cut(
            data in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'X'), any::<u8>()], 0..200),
            sizes in proptest::collection::vec(1usize..40, 1..20),
        ) {
            prop_assume!(memchr::memmem::find(&data, b"\r\n--XyZ").is_none());
            let body = form(&[("a", None, b"1"), ("file", Some("m.pt"), &data), ("b", None, b"")]);
            let parts = run(read(&body, &sizes)).unwrap();
            prop_assert_eq!(parts.len(), 3);
            prop_assert_eq!(&parts[0].1, b"1");
            prop_assert_eq!(parts[1].0.file_name.as_deref(), Some("m.pt"));
            prop_assert_eq!(&parts[1].1, &data);
            prop_assert!(parts[2].1.is_empty());
        }

        #[test]
        fn a_cut_form_is_an_error_and_never_a_shorter_form(cut in 0usize..1000) {
            let body = form(&[("a", None, b"1"), ("file", Some("m.pt"), &[7; 300])]);
            let complete = body.len() - 4; // the last `--` and line break
            let cut = cut % complete;
            prop_assert!(run(read(&body[..cut], &[17])).is_err());
        }

        #[test]
        fn any_bytes_are_a_form_or_a_named_error(body: Vec<u8>) {
            let _ = run(read(&body, &[3]));
        }
    }

    #[test]
    fn data_is_handed_on_in_the_buffers_in_which_it_came() {
        let data = vec![7; 100_000];
        let body = form(&[("file", Some("m.pt"), &data)]);
        let pieces: Vec<Bytes> = body.chunks(16 << 10).map(Bytes::copy_from_slice).collect();
        let came: Vec<_> = pieces.iter().map(|piece| piece.as_ptr_range()).collect();
        let pieces = pieces.into_iter().map(Ok::<_, std::io::Error>);
        let mut form = Multipart::new(futures::stream::iter(pieces), "XyZ");
        run(form.next_part()).unwrap().unwrap();
        let mut copied = 0;
        while let Some(piece) = run(form.chunk()).unwrap() {
            if !came.iter().any(|came| came.contains(&piece.as_ptr())) {
                copied += piece.len();
            }
        }
        // The first piece begins with the head of the part.
        assert!(copied <= 16 << 10, "{copied} bytes were copied");
    }

    #[test]
    fn a_header_without_end_is_refused_early() {
        let mut body = b"--XyZ\r\nContent-Disposition: form-data; name=\"".to_vec();
        body.resize(1 << 20, b'a');
        let error = run(read(&body, &[1000])).unwrap_err();
        assert!(error.to_string().contains("header is too long"), "{error}");
    }

    #[test]
    fn a_body_without_boundary_is_refused_early() {
        let error = run(read(&vec![b'-'; 1 << 20], &[1000])).unwrap_err();
        assert!(error.to_string().contains("no boundary"), "{error}");
    }

    #[test]
    fn a_part_may_be_empty_and_a_name_may_hold_quotes() {
        let parts = run(read(&form(&[("a\\\"b", Some("C:\\x.pt"), b"")]), &[5])).unwrap();
        assert_eq!(parts[0].0.name, "a\"b");
        assert_eq!(parts[0].0.file_name.as_deref(), Some("C:\\x.pt"));
        assert!(parts[0].1.is_empty());
    }

    #[test]
    fn the_boundary_is_read_quoted_or_not() {
        let boundary_of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            boundary(&headers).ok()
        };
        assert_eq!(boundary_of("multipart/form-data; boundary=abc"), Some("abc".into()));
        assert_eq!(boundary_of("multipart/form-data; boundary=\"a b\""), Some("a b".into()));
        assert_eq!(boundary_of("multipart/form-data"), None);
        assert_eq!(boundary_of("application/json; boundary=abc"), None);
    }
}
