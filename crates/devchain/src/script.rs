//! Knobs that turn by themselves: a TOML file says which, and at which block.
//!
//! All of a script is checked before anything of it happens, the files that it names included.

mod knob;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub(crate) use self::knob::Knob;
use crate::{DevChain, Stopped, runtime::MetadataError};

/// A script that is not one.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("the script is not what a script is: {0}")]
    Toml(#[from] toml::de::Error),
    /// Entries are counted from 1.
    #[error("entry {entry} of the script: {why}")]
    Entry { entry: usize, why: String },
    #[error("entry {entry} of the script: reading {}: {source}", path.display())]
    File { entry: usize, path: PathBuf, source: std::io::Error },
    #[error("entry {entry} of the script: {}: {source}", path.display())]
    Metadata { entry: usize, path: PathBuf, source: MetadataError },
    #[error("entry {entry} of the script is for node {node} of {nodes}, counted from 0")]
    Node { entry: usize, node: usize, nodes: usize },
}

/// A script that can be played. Its text is a list of `[[at]]` tables, each with the number of a
/// `block`, for a knob of one node perhaps a `node`, and one knob with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// In order of blocks.
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    /// Its place in the file, from 1.
    place: usize,
    block: u32,
    node: Option<usize>,
    /// The knob as the file calls it.
    name: String,
    knob: Knob,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default)]
    at: Vec<toml::Table>,
}

impl Script {
    /// Reads a script. The files that it names are looked for in `folder`.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, ScriptError> {
        let text: Text = toml::from_str(text)?;
        let entries = (1..).zip(text.at).map(|(place, table)| Entry::parse(place, table, folder));
        let mut entries: Vec<Entry> = entries.collect::<Result<_, _>>()?;
        entries.sort_by_key(|entry| entry.block);
        Ok(Self { entries })
    }

    /// Whether all nodes that the script is for are among this many.
    pub fn check(&self, nodes: usize) -> Result<(), ScriptError> {
        let stray = |e: &&Entry| e.node.is_some_and(|node| node >= nodes);
        match self.entries.iter().find(stray) {
            None => Ok(()),
            Some(entry) => {
                let (entry, node) = (entry.place, entry.node.unwrap_or_default());
                Err(ScriptError::Node { entry, node, nodes })
            }
        }
    }

    /// What is left of the script for a chain that has come to this block already.
    pub fn after(mut self, block: u32) -> Self {
        self.entries.retain(|entry| entry.block > block);
        self
    }

    /// How many knobs it turns.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it does nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Entry {
    fn parse(place: usize, mut table: toml::Table, folder: &Path) -> Result<Self, ScriptError> {
        let refused = |why: String| ScriptError::Entry { entry: place, why };
        let Some(block) = table.remove("block") else {
            return Err(refused("`block` is missing".to_owned()));
        };
        let block =
            block.try_into().map_err(|error| refused(format!("`block`: {}", reason(&error))))?;
        let node = table.remove("node").map(toml::Value::try_into).transpose();
        let node = node.map_err(|error| refused(format!("`node`: {}", reason(&error))))?;
        let names: Vec<&str> = table.keys().map(String::as_str).collect();
        let [name] = names[..] else {
            let why = match names.is_empty() {
                true => "it has no knob".to_owned(),
                false => format!("it has more than one knob: {}", names.join(", ")),
            };
            return Err(refused(why));
        };
        let name = name.to_owned();
        let knob: Knob = toml::Value::Table(table)
            .try_into()
            .map_err(|error| refused(format!("`{name}`: {}", reason(&error))))?;
        if node.is_some() && !knob.is_of_a_node() {
            return Err(refused(format!("`{name}` is of the whole chain and takes no `node`")));
        }
        let knob = knob.read(place, folder)?;
        Ok(Self { place, block, node, name, knob })
    }
}

/// Why, without the place: there is none in a single value.
fn reason(error: &toml::de::Error) -> String {
    error.message().to_owned()
}

impl DevChain {
    /// Turns the knobs of a script, each when the newest block has its number or a later one, and
    /// ends after the last. A knob that cannot be turned is logged, and the script goes on.
    pub async fn play(&self, script: &Script) -> Result<(), Stopped> {
        let nodes = self.nodes();
        for entry in &script.entries {
            let head = self.wait_for_block(entry.block).await?;
            let Some(node) = nodes.get(entry.node.unwrap_or_default()) else {
                tracing::warn!(entry = entry.place, "the script is for a node that is not there");
                continue;
            };
            let (knob, block) = (&entry.name, head.number);
            match entry.knob.turn(self, node).await {
                Ok(()) => tracing::info!(knob, block, url = node.url(), "a knob was turned"),
                Err(error) => tracing::warn!(%error, knob, block, "a knob could not be turned"),
            }
        }
        Ok(())
    }
}
