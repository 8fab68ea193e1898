//! The names that a configuration struct knows, from confique's description of it.

use anyhow::bail;
use confique::meta::{FieldKind, Meta};
use toml::{Table, Value};

/// A key that has a value: its name, and those of the tables around it.
pub(super) struct Key(Vec<&'static str>);

impl Key {
    /// Returns the name with dots, without the section.
    pub(super) fn dotted(&self) -> String {
        self.0.join(".")
    }

    /// Returns the environment variable of this key in `section`.
    pub(super) fn variable(&self, section: &str) -> String {
        let mut name = String::from("CONNITO");
        let section = (section != "common").then_some(section);
        for part in section.into_iter().chain(self.0.iter().copied()) {
            name.push('_');
            name.push_str(&part.to_uppercase());
        }
        name
    }

    /// Returns this key's value in `table`.
    pub(super) fn find<'a>(&self, table: &'a Table) -> Option<&'a Value> {
        let (last, tables) = self.0.split_last()?;
        let mut table = table;
        for name in tables {
            table = table.get(*name)?.as_table()?;
        }
        table.get(*last)
    }

    /// Puts `value` where this key is in `table`, making the tables around it.
    pub(super) fn insert(&self, table: &mut Table, value: Value) {
        let Some((last, tables)) = self.0.split_last() else { return };
        let mut table = table;
        for name in tables {
            let entry = table.entry(*name).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = entry else { return };
            table = inner;
        }
        table.insert((*last).to_owned(), value);
    }
}

/// Returns every key of `meta`, in the order of the struct.
pub(super) fn leaves(meta: &Meta) -> Vec<Key> {
    let mut found = Vec::new();
    collect(meta, &mut Vec::new(), &mut found);
    found
}

fn collect(meta: &Meta, path: &mut Vec<&'static str>, found: &mut Vec<Key>) {
    for field in meta.fields {
        path.push(field.name);
        match field.kind {
            FieldKind::Leaf { .. } => found.push(Key(path.clone())),
            FieldKind::Nested { meta } => collect(meta, path, found),
        }
        path.pop();
    }
}

/// Refuses `table` if it has a key that `meta` lacks; `path` is its name with dots.
pub(super) fn check_names(meta: &Meta, path: &str, table: &Table) -> anyhow::Result<()> {
    for (name, value) in table {
        let Some(field) = meta.fields.iter().find(|field| field.name == name) else {
            let known: Vec<_> = meta.fields.iter().map(|field| field.name).collect();
            bail!("unknown key `{path}.{name}`; known are {}", known.join(", "));
        };
        if let FieldKind::Nested { meta } = field.kind {
            let path = format!("{path}.{name}");
            let Value::Table(table) = value else { bail!("`{path}` must be a table: [{path}]") };
            check_names(meta, &path, table)?;
        }
    }
    Ok(())
}
