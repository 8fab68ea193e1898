//! Sources of texts, as an expert group's `config.yaml` names them.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{DataError, Glob};

/// Millionths in a weight of one.
const ONE: u64 = 1_000_000;
/// The largest weight: a million. The sum of the weights of all sources stays below 2^64.
const MOST: u64 = 1_000_000 * ONE;
/// Sources of one group.
pub(crate) const MOST_SOURCES: usize = 64;

/// One entry of `data_sources`: a text, which is a name of the settings or a folder, or a mapping
/// with `hub` and `revision` or with `folder`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where the shards are.
    pub place: Place,
    /// Which files are shards; every file of a known format without it.
    pub files: Option<Glob>,
    /// The column or JSON key of the text.
    pub text_field: String,
    /// Share of the rows, against the other sources' weights.
    pub weight: Weight,
}

/// Where a source's shards are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A data set of the hub, at one revision.
    Hub { repo: Repo, revision: Revision },
    /// A folder of this machine; a relative one is looked for from the settings' base.
    Folder(PathBuf),
    /// A name that the settings give a folder for, or else the folder itself.
    Named(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub { repo, revision } => {
                write!(f, "{repo}@{}", revision.as_str().get(..8).unwrap_or_default())
            }
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// The name of a hub's data set, `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repo(String);

impl Repo {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Repo {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let part = |part: &str| {
            let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            (1..=96).contains(&part.len()) && part.bytes().all(known) && !part.starts_with('.')
        };
        match text.split_once('/') {
            Some((owner, name)) if part(owner) && part(name) => Ok(Self(text.to_owned())),
            Some(_) | None => Err(config(format!("`{}` is not owner/name", shown(text)))),
        }
    }
}

/// A commit of a data set: 40 digits of lower-case hex. Branches and tags can move, and are refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(String);

impl Revision {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Revision {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 40 && text.bytes().all(hex) {
            return Ok(Self(text.to_owned()));
        }
        Err(config(format!(
            "revision `{}` is not a commit of 40 lower-case hex digits; a branch or tag can move",
            shown(text)
        )))
    }
}

/// A share, in millionths, so that no two machines round it differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight(u64);

impl Weight {
    /// The weight of a source that states none.
    pub const ONE: Self = Self(ONE);

    /// Millionths, at least one.
    pub fn millionths(self) -> u64 {
        self.0
    }
}

impl FromStr for Weight {
    type Err = DataError;

    /// Reads a plain decimal such as `2` or `0.25`, of at most six decimals.
    fn from_str(text: &str) -> Result<Self, DataError> {
        let bad = || {
            config(format!(
                "weight `{}` is not a plain decimal from 0.000001 to 1000000 of at most six decimals",
                shown(text)
            ))
        };
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |s: &str, most| {
            (1..=most).contains(&s.len()) && s.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !digits(whole, 7) || !digits(part, 6) {
            return Err(bad());
        }
        let whole: u64 = whole.parse().map_err(|_| bad())?;
        let part: u64 = format!("{part:0<6}").parse().map_err(|_| bad())?;
        match whole * ONE + part {
            weight @ 1..=MOST => Ok(Self(weight)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:06}", self.0 / ONE, self.0 % ONE);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl Serialize for Weight {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Weight;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a weight such as 1 or 0.25")
            }

            fn visit_u64<E: de::Error>(self, weight: u64) -> Result<Weight, E> {
                self.visit_str(&weight.to_string())
            }

            fn visit_i64<E: de::Error>(self, weight: i64) -> Result<Weight, E> {
                self.visit_str(&weight.to_string())
            }

            // The shortest decimal that reads as this number: the one that was written.
            fn visit_f64<E: de::Error>(self, weight: f64) -> Result<Weight, E> {
                self.visit_str(&weight.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Weight, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// The mapping of a source, as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mapping {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hub: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    folder: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    files: Option<String>,
    #[serde(default = "default_text_field")]
    text_field: String,
    #[serde(default = "default_weight")]
    weight: Weight,
}

fn default_text_field() -> String {
    "text".to_owned()
}

fn default_weight() -> Weight {
    Weight::ONE
}

impl TryFrom<Mapping> for Source {
    type Error = DataError;

    fn try_from(mapping: Mapping) -> Result<Self, DataError> {
        let Mapping { hub, revision, folder, files, text_field, weight } = mapping;
        let place = match (hub, revision, folder) {
            (Some(hub), Some(revision), None) => {
                Place::Hub { repo: hub.parse()?, revision: revision.parse()? }
            }
            (Some(hub), None, None) => {
                return Err(config(format!("`{}` states no revision", shown(&hub))));
            }
            (None, None, Some(folder)) => Place::Folder(folder),
            (None, Some(_), Some(_)) => {
                return Err(config("a folder has no revision".to_owned()));
            }
            (None, _, None) => {
                return Err(config("a source needs `hub` and `revision`, or `folder`".to_owned()));
            }
            (Some(_), _, Some(_)) => {
                return Err(config("a source is either `hub` or `folder`".to_owned()));
            }
        };
        if text_field.is_empty() || text_field.len() > 256 || text_field.contains(char::is_control)
        {
            return Err(config(format!("text_field `{}`", shown(&text_field))));
        }
        let files = files.map(|files| files.parse()).transpose()?;
        Ok(Self { place, files, text_field, weight })
    }
}

impl From<&str> for Source {
    /// The entry that is only this text.
    fn from(name: &str) -> Self {
        Self {
            place: Place::Named(name.to_owned()),
            files: None,
            text_field: default_text_field(),
            weight: Weight::ONE,
        }
    }
}

impl From<PathBuf> for Source {
    /// Every file of a known format in a folder.
    fn from(folder: PathBuf) -> Self {
        Self { place: Place::Folder(folder), ..Self::from("") }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (hub, revision, folder) = match &self.place {
            Place::Named(name) => return serializer.serialize_str(name),
            Place::Hub { repo, revision } => {
                (Some(repo.as_str().to_owned()), Some(revision.as_str().to_owned()), None)
            }
            Place::Folder(folder) => (None, None, Some(folder.clone())),
        };
        let mapping = Mapping {
            hub,
            revision,
            folder,
            files: self.files.as_ref().map(|files| files.as_str().to_owned()),
            text_field: self.text_field.clone(),
            weight: self.weight,
        };
        mapping.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Source;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name, or a mapping with `hub` or `folder`")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Source, E> {
                if name.is_empty() {
                    return Err(E::custom(config("a name is empty".to_owned())));
                }
                Ok(name.into())
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Source, A::Error> {
                let mapping = Mapping::deserialize(de::value::MapAccessDeserializer::new(map))?;
                mapping.try_into().map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Reads `data_sources` of an expert group's `config.yaml`; the file's other keys are ignored.
///
/// # Errors
///
/// The text is no YAML, the key is missing or empty, an entry has a key that no source has, or
/// names something that can move.
pub fn parse_sources(yaml: &str) -> Result<Vec<Source>, DataError> {
    #[derive(Deserialize)]
    struct File {
        data_sources: Vec<Source>,
    }
    let File { data_sources } =
        serde_norway::from_str(yaml).map_err(|error| config(error.to_string()))?;
    check_count(&data_sources)?;
    Ok(data_sources)
}

/// Refuses a list that names nothing, or too much.
pub(crate) fn check_count(sources: &[Source]) -> Result<(), DataError> {
    match sources.len() {
        0 => Err(config("none is named".to_owned())),
        1..=MOST_SOURCES => Ok(()),
        count => Err(config(format!("{count} are more than {MOST_SOURCES}"))),
    }
}

fn config(why: String) -> DataError {
    DataError::Config { why }
}

/// What can be shown of a text of any length.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
