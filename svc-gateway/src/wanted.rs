//! Which file a download asks for: by the path, by fields, or by `Accept` (RFC 9110, 12.5.1).
//!
//! Pure: words of the client and the manifest in, a slice and a format out.

use axum::http::{HeaderMap, header};
use checkpoint::{FileInfo, Format, Manifest, Slice, SliceId};

use crate::{admit::Fields, error::Error, range::elements};

/// A published file that was asked for.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// What it is of.
    pub(crate) slice: SliceId,
    /// How it is written.
    pub(crate) format: Format,
    /// The slice in the manifest.
    pub(crate) of: &'a Slice,
    /// The file in the manifest.
    pub(crate) file: &'a FileInfo,
    /// Whether `Accept` had a say.
    pub(crate) negotiated: bool,
}

impl<'a> Wanted<'a> {
    /// The file that the path's `name`, the fields and the headers ask for. Without a word on it, it is
    /// the whole model in `.pt`, as today's miners load it.
    pub(crate) fn find(
        name: Option<&str>,
        fields: &Fields,
        headers: &HeaderMap,
        manifest: &'a Manifest,
    ) -> Result<Self, Error> {
        let slice = slice(fields)?;
        let format = format(fields)?;
        let (slice, format, negotiated) = match name {
            Some(name) => {
                let (named, written) = by_name(name, manifest)?;
                agrees("expert_group_id", slice, named)?;
                agrees("format", format, written)?;
                (named, written, false)
            }
            None => {
                let slice = slice.unwrap_or(SliceId::Full);
                (slice, format.unwrap_or_else(|| accepted(headers)), format.is_none())
            }
        };
        let none = || Error::NoSlice { slice: slice.to_string(), format: format.to_string() };
        let of = manifest.slice(slice).ok_or_else(none)?;
        let file = of.files.get(&format).ok_or_else(none)?;
        Ok(Self { slice, format, of, file, negotiated })
    }
}

/// The published file of this name.
fn by_name(name: &str, manifest: &Manifest) -> Result<(SliceId, Format), Error> {
    let files = manifest
        .slices
        .iter()
        .flat_map(|(slice, of)| of.files.iter().map(|(format, file)| (*slice, *format, file)));
    files
        .into_iter()
        .find(|(.., file)| file.name == name)
        .map(|(slice, format, _)| (slice, format))
        .ok_or_else(|| Error::NoSlice { slice: shown(name), format: "any".to_owned() })
}

/// Refuses a field that says something else than the path.
fn agrees<T: PartialEq>(field: &'static str, said: Option<T>, named: T) -> Result<(), Error> {
    if said.is_some_and(|said| said != named) {
        let why = "the path names another file".to_owned();
        return Err(Error::InvalidField { field, why });
    }
    Ok(())
}

fn slice(fields: &Fields) -> Result<Option<SliceId>, Error> {
    let parse = |text: &str| {
        text.parse().map_err(|_| Error::NoSlice { slice: shown(text), format: "any".to_owned() })
    };
    fields.get("expert_group_id").map(parse).transpose()
}

/// What the fields alone ask for.
#[cfg(any(test, fuzzing))]
pub(crate) fn of_fields(fields: &Fields) -> (Option<SliceId>, Option<Format>) {
    (slice(fields).ok().flatten(), format(fields).ok().flatten())
}

fn format(fields: &Fields) -> Result<Option<Format>, Error> {
    let parse = |text: &str| {
        text.parse()
            .map_err(|why: &str| Error::InvalidField { field: "format", why: why.to_owned() })
    };
    fields.get("format").map(parse).transpose()
}

/// The format that `Accept` likes better: `.pt`, unless safetensors is. Whoever accepts neither, or
/// says nothing, gets `.pt` as well: today's miners send what their HTTP library likes.
pub(crate) fn accepted(headers: &HeaderMap) -> Format {
    let (pt, safetensors) = (liking(headers, Format::Pt), liking(headers, Format::Safetensors));
    if safetensors > pt { Format::Safetensors } else { Format::Pt }
}

/// How much a format is liked: its weight in thousandths, and how closely it was named.
fn liking(headers: &HeaderMap, format: Format) -> (u16, u8) {
    let ranges = headers.get_all(header::ACCEPT).iter().flat_map(|v| elements(v.as_bytes()));
    let weights = ranges.filter_map(|range| {
        let mut words = std::str::from_utf8(range).ok()?.split(';').map(str::trim);
        let closeness = closeness(words.next()?, format)?;
        let weight = words.find_map(|word| {
            let (name, value) = word.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then(|| thousandths(value.trim()))
        });
        // What has no readable weight says nothing.
        Some((closeness, weight.unwrap_or(Some(1000))?))
    });
    // The closest word on a format counts, whatever others weigh.
    weights.max_by_key(|(closeness, _)| *closeness).map_or((0, 0), |(close, q)| match q {
        0 => (0, 0),
        q => (q, close),
    })
}

/// How closely a media range names a format, if it takes it in.
fn closeness(range: &str, format: Format) -> Option<u8> {
    let range = range.to_ascii_lowercase();
    let (kind, subtype) = range.split_once('/')?;
    match (kind, subtype) {
        ("*", "*") => Some(1),
        ("application", "*") => Some(2),
        ("application", "octet-stream") => Some(3),
        (_, named) => {
            let word = match format {
                Format::Pt => "pytorch",
                Format::Safetensors => "safetensors",
            };
            named.contains(word).then_some(4)
        }
    }
}

/// A weight from 0 to 1.
fn thousandths(text: &str) -> Option<u16> {
    let weight: f32 = text.parse().ok()?;
    (0.0..=1.0).contains(&weight).then_some((weight * 1000.0).round() as u16)
}

/// The beginning of what a client said, to be said back.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(lines: &[&str]) -> Format {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::ACCEPT, line.parse().unwrap());
        }
        accepted(&headers)
    }

    #[test]
    fn whoever_names_safetensors_gets_it() {
        for line in [
            "application/x-safetensors",
            "application/vnd.safetensors; version=1",
            "Application/X-SafeTensors;Q=0.1",
            "application/x-safetensors, */*",
            "application/octet-stream;q=0.5, application/x-safetensors;q=0.6",
            "text/html, application/x-safetensors;q=0.001",
        ] {
            assert_eq!(accept(&[line]), Format::Safetensors, "{line}");
        }
        let lines = ["application/x-pytorch;q=0.4", "application/x-safetensors;q=0.5"];
        assert_eq!(accept(&lines), Format::Safetensors);
    }

    #[test]
    fn everybody_else_gets_what_they_always_got() {
        assert_eq!(accept(&[]), Format::Pt);
        for line in [
            "",
            "*/*",
            "application/*",
            "application/octet-stream",
            "application/json",
            "application/x-safetensors;q=0",
            "application/x-safetensors;q=0, */*",
            "application/x-safetensors;q=0.5, */*",
            "application/x-pytorch, application/x-safetensors",
            "application/x-safetensors;q=2",
            "application/x-safetensors;q=nan",
            "text/plain;of=\"a,application/x-safetensors,b\"",
        ] {
            assert_eq!(accept(&[line]), Format::Pt, "{line}");
        }
    }
}
