//! Configuration: one TOML file per host, `[common]` and one section per service.
//!
//! What wins, from the top: an environment variable, the file, the default. Every key has a
//! variable: `CONNITO_<KEY>` for `[common]`, `CONNITO_<SECTION>_<KEY>` for a service's section.
//! Sections and keys that nobody knows are refused, so that a typing error can't go unnoticed.

mod common;
mod keys;

use std::path::Path;

use anyhow::{Context as _, bail};
pub use common::{Common, LogFormat, Tls};
use confique::Config;
use toml::{Table, Value};

/// The sections that a configuration file may have.
pub const SECTIONS: [&str; 6] = ["common", "chain", "scheduler", "gateway", "evaluator", "peer"];

/// Secrets that are taken from the environment only, by section and key.
const ENVIRONMENT_ONLY: [(&str, &str); 1] = [("common", "token")];

/// Loads `[section]` of the file at `path`, and what the environment says of its keys.
///
/// Without a path, from the environment and the defaults alone.
///
/// # Errors
///
/// When the file can't be read; on a section that is not in [`SECTIONS`]; on a key that `C` does
/// not have, a value that it refuses, and a required key that is missing, each by name.
pub fn load<C: Config>(path: Option<&Path>, section: &str) -> anyhow::Result<C> {
    load_with(path, section, |name| std::env::var(name).ok())
}

/// As [`load`], with an environment of the caller's.
///
/// # Errors
///
/// As [`load`].
pub fn load_with<C: Config>(
    path: Option<&Path>,
    section: &str,
    env: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<C> {
    let table = match path {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("read {}", path.display()))?;
            section_of::<C>(&text, section).with_context(|| format!("in {}", path.display()))?
        }
        None => Table::new(),
    };
    let from_env = from_env::<C>(section, env)?;

    let layer = |table: Table| Value::Table(table).try_into::<C::Layer>();
    C::builder()
        .env()
        .preloaded(layer(from_env).context("read the environment")?)
        .preloaded(layer(table).with_context(|| format!("read [{section}]"))?)
        .load()
        .with_context(|| format!("configuration of [{section}]"))
}

/// Parses `text`, and returns the table of `section` after checking every name and value in it.
fn section_of<C: Config>(text: &str, section: &str) -> anyhow::Result<Table> {
    let mut file: Table = toml::from_str(text).context("not TOML")?;
    for (name, value) in &file {
        if !SECTIONS.contains(&name.as_str()) {
            bail!("unknown section or key `{name}`; sections are {}", SECTIONS.join(", "));
        }
        if !value.is_table() {
            bail!("`{name}` must be a section: [{name}]");
        }
    }
    let table = match file.remove(section) {
        Some(Value::Table(table)) => table,
        _ => Table::new(),
    };
    keys::check_names(&C::META, section, &table)?;
    for key in keys::leaves(&C::META) {
        if let Some(value) = key.find(&table) {
            if ENVIRONMENT_ONLY.contains(&(section, key.dotted().as_str())) {
                let variable = key.variable(section);
                bail!("key `{section}.{}` is a secret: set {variable} instead", key.dotted());
            }
            accepts::<C>(&key, value.clone())
                .with_context(|| format!("key `{section}.{}`", key.dotted()))?;
        }
    }
    Ok(table)
}

/// Collects the values that the environment has for keys of `C`.
fn from_env<C: Config>(
    section: &str,
    env: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Table> {
    let mut table = Table::new();
    for key in keys::leaves(&C::META) {
        let name = key.variable(section);
        let Some(text) = env(&name) else { continue };
        let value = typed::<C>(&key, &text)
            .with_context(|| format!("environment variable {name} (key `{}`)", key.dotted()))?;
        key.insert(&mut table, value);
    }
    Ok(table)
}

/// Reads `text` as the type that `key` has: a string as it is, anything else as TOML writes it.
fn typed<C: Config>(key: &keys::Key, text: &str) -> anyhow::Result<Value> {
    let plain = Value::String(text.to_owned());
    let Err(error) = accepts::<C>(key, plain.clone()) else { return Ok(plain) };
    let literal = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"));
    match literal {
        Some(value) => accepts::<C>(key, value.clone()).map(|()| value),
        None => Err(error),
    }
}

fn accepts<C: Config>(key: &keys::Key, value: Value) -> anyhow::Result<()> {
    let mut alone = Table::new();
    key.insert(&mut alone, value);
    Value::Table(alone).try_into::<C::Layer>()?;
    Ok(())
}

/// Returns the text of `[section]` with every key, its meaning and its default, commented out.
#[must_use]
pub fn template<C: Config>(section: &str) -> String {
    let text = confique::toml::template::<C>(confique::toml::FormatOptions::default());
    let mut lines = text.lines();
    let mut out: Vec<_> = lines.by_ref().take(C::META.doc.len()).map(ToOwned::to_owned).collect();
    if let Some(key) = keys::leaves(&C::META).first() {
        let variable = key.variable(section);
        out.push(format!("#\n# The environment wins over this file: {variable}, and so on."));
    }
    out.push(format!("[{section}]"));
    out.extend(lines.map(|line| match line.strip_prefix('[') {
        Some(nested) => format!("[{section}.{nested}"),
        None => line.to_owned(),
    }));
    out.join("\n") + "\n"
}
