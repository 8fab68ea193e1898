//! The only place where a protobuf type meets a domain type.
//!
//! Domain values become wire values with `From`, which cannot fail; the other way is `TryFrom` or a
//! function of this module, and a failure names the field.

mod chain;
mod schedule;

use std::{fmt::Display, str::FromStr};

pub use chain::{block_hash, degradation, metagraph, weight_rows};

/// A message field that does not hold what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid field `{field}`: {reason}")]
pub struct InvalidField {
    /// Name of the field, as in the `.proto` file.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl InvalidField {
    /// The field `field` is wrong because of `reason`.
    pub fn new(field: &'static str, reason: impl Display) -> Self {
        Self { field, reason: reason.to_string() }
    }
}

/// Parses the text of `field`.
pub fn parse<T>(field: &'static str, text: &str) -> Result<T, InvalidField>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse().map_err(|error| InvalidField::new(field, error))
}

/// Takes a message field that must be there.
pub fn required<T>(field: &'static str, value: Option<T>) -> Result<T, InvalidField> {
    value.ok_or_else(|| InvalidField::new(field, "missing"))
}

/// Takes exactly `N` bytes.
pub fn bytes<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], InvalidField> {
    bytes
        .try_into()
        .map_err(|_| InvalidField::new(field, format!("{} bytes instead of {N}", bytes.len())))
}
