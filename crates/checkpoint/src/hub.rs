//! Base models as the hub has them, seen in the subnet's form: one tensor pair per expert.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    checkpoint::{Checkpoint, Limits, open},
    groups::{HubPart, Name, SubnetPart},
    refusal::{Flaw, Refusal, clip},
    source::TensorSource,
    tensor::TensorSpec,
};

/// How a tensor of the subnet's form is made from the source's.
#[derive(Debug)]
enum Recipe {
    Same,
    /// The same tensor under another name.
    Whole(String),
    /// The rows of the first, then the rows of the second.
    Rows(String, String),
    /// One expert of a stacked tensor.
    Nth(String, usize),
}

/// A model in the subnet's form whatever the form of its source; converted tensor by tensor when read.
pub struct SubnetForm<'a> {
    source: Box<dyn TensorSource + 'a>,
    specs: BTreeMap<String, TensorSpec>,
    recipes: BTreeMap<String, Recipe>,
}

/// Sees hub, stacked and subnet names (protocol, section 7) in the subnet's form.
pub fn subnet_form<'a>(source: Box<dyn TensorSource + 'a>) -> Result<SubnetForm<'a>, Refusal> {
    let (mut specs, mut recipes) = (BTreeMap::new(), BTreeMap::new());
    let mut add = |name: String, spec: TensorSpec, recipe: Recipe| {
        if specs.insert(name.clone(), spec).is_some() {
            return Err(Flaw::DuplicateTensor.with(format!("{name}, from several forms")));
        }
        recipes.insert(name, recipe);
        Ok(())
    };
    for (name, spec) in source.specs() {
        match Name::parse(name) {
            Name::Shared | Name::Subnet { .. } => add(name.clone(), spec.clone(), Recipe::Same)?,
            Name::Hub { stem, expert, part: HubPart::Down } => {
                let subnet = Name::subnet(stem, expert, SubnetPart::Down);
                add(subnet, spec.clone(), Recipe::Whole(name.clone()))?;
            }
            Name::Hub { stem, expert, part: HubPart::Gate } => {
                let up = format!("{stem}{expert}.up_proj.weight");
                let spec = rows(name, spec, &up, source.spec(&up)?)?;
                let subnet = Name::subnet(stem, expert, SubnetPart::GateUp);
                add(subnet, spec, Recipe::Rows(name.clone(), up))?;
            }
            Name::Hub { stem, expert, part: HubPart::Up } => {
                source.spec(&format!("{stem}{expert}.gate_proj.weight"))?;
            }
            Name::Stacked { stem, part } => {
                let [experts, inner @ ..] = spec.shape.as_slice() else {
                    return Err(not_matrices(name, spec, 3));
                };
                if inner.len() != 2 {
                    return Err(not_matrices(name, spec, 3));
                }
                for expert in 0..*experts {
                    let spec = TensorSpec { dtype: spec.dtype, shape: inner.to_vec() };
                    let id = u32::try_from(expert).map_err(|_| Flaw::HugeShape.with(name))?;
                    add(Name::subnet(stem, id, part), spec, Recipe::Nth(name.clone(), expert))?;
                }
            }
        }
    }
    Ok(SubnetForm { source, specs, recipes })
}

fn not_matrices(name: &str, spec: &TensorSpec, dimensions: usize) -> Refusal {
    let expected = vec![0; dimensions];
    Refusal::WrongShape { name: clip(name), expected, found: spec.shape.clone() }
}

fn rows(
    name: &str,
    gate: &TensorSpec,
    up_name: &str,
    up: &TensorSpec,
) -> Result<TensorSpec, Refusal> {
    let [rows, columns] = gate.shape[..] else { return Err(not_matrices(name, gate, 2)) };
    if up.shape != gate.shape {
        let (expected, found) = (gate.shape.clone(), up.shape.clone());
        return Err(Refusal::WrongShape { name: clip(up_name), expected, found });
    }
    if up.dtype != gate.dtype {
        return Err(Refusal::WrongDtype { name: clip(up_name), found: up.dtype });
    }
    Ok(TensorSpec { dtype: gate.dtype, shape: vec![2 * rows, columns] })
}

impl TensorSource for SubnetForm<'_> {
    fn specs(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        match self.recipes.get(name).ok_or_else(|| Refusal::missing(name))? {
            Recipe::Same => self.source.bytes(name),
            Recipe::Whole(only) => self.source.bytes(only),
            Recipe::Rows(first, second) => {
                // Joined at once: growing would hold the first rows twice.
                Ok(Cow::Owned([self.source.bytes(first)?, self.source.bytes(second)?].concat()))
            }
            Recipe::Nth(stacked, expert) => {
                let len = self.spec(name)?.bytes();
                let range = expert * len..(expert + 1) * len;
                match self.source.bytes(stacked)? {
                    Cow::Borrowed(all) => all.get(range).map(Cow::Borrowed),
                    Cow::Owned(all) => all.get(range).map(|part| Cow::Owned(part.to_vec())),
                }
                .ok_or_else(|| Flaw::OutOfStorage.with(name))
            }
        }
    }

    fn part(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Refusal> {
        let spec = self.spec(name)?;
        if range.start > range.end || range.end > spec.elements() {
            return Err(Flaw::OutOfStorage.with(name));
        }
        match self.recipes.get(name).ok_or_else(|| Refusal::missing(name))? {
            Recipe::Same => self.source.part(name, range),
            Recipe::Whole(only) => self.source.part(only, range),
            Recipe::Rows(first, second) => {
                let half = spec.elements() / 2;
                let (start, end) = (range.start, range.end);
                if end <= half {
                    self.source.part(first, range)
                } else if start >= half {
                    self.source.part(second, start - half..end - half)
                } else {
                    let upper = self.source.part(first, start..half)?;
                    Ok(Cow::Owned([upper, self.source.part(second, 0..end - half)?].concat()))
                }
            }
            Recipe::Nth(stacked, expert) => {
                let before = expert * spec.elements();
                self.source.part(stacked, before + range.start..before + range.end)
            }
        }
    }
}

impl fmt::Debug for SubnetForm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubnetForm").field("tensors", &self.specs.len()).finish()
    }
}

/// A folder as the hub has it: `config.json` and one `.safetensors` file or several with an index.
#[derive(Debug)]
pub struct HubModel {
    config: serde_json::Value,
    form: SubnetForm<'static>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

const INDEX: &str = "model.safetensors.index.json";

impl HubModel {
    /// Maps the folder's files; its operator chose it, so sizes are not limited. Expert names may be in any of the
    /// three forms of protocol section 7.
    pub fn open(folder: &Path) -> Result<Self, Refusal> {
        let config: serde_json::Value = read_json(&folder.join("config.json"))?;
        let index = folder.join(INDEX);
        let files = if index.exists() {
            let index: Index = read_json(&index)?;
            index.weight_map.into_values().collect()
        } else {
            BTreeSet::from(["model.safetensors".to_owned()])
        };
        let mut shards = Shards::default();
        for file in files {
            if Path::new(&file).components().count() != 1 || file == ".." {
                return Err(Flaw::BadHeader.with(format!("{INDEX} names the file {file}")));
            }
            shards.add(open(&folder.join(file), Limits::trusted())?)?;
        }
        Ok(Self { config, form: subnet_form(Box::new(shards))? })
    }

    /// The model's `config.json`.
    pub fn config(&self) -> &serde_json::Value {
        &self.config
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &PathBuf) -> Result<T, Refusal> {
    let json = fs::read(path).map_err(|e| Refusal::unreadable(path, e))?;
    serde_json::from_slice(&json).map_err(|e| Refusal::unreadable(path, e))
}

impl TensorSource for HubModel {
    fn specs(&self) -> &BTreeMap<String, TensorSpec> {
        self.form.specs()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        self.form.bytes(name)
    }

    fn part(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Refusal> {
        self.form.part(name, range)
    }
}

/// Several files as one set of tensors.
#[derive(Debug, Default)]
pub(crate) struct Shards {
    specs: BTreeMap<String, TensorSpec>,
    files: Vec<Checkpoint>,
    place: BTreeMap<String, usize>,
}

impl Shards {
    pub(crate) fn add(&mut self, file: Checkpoint) -> Result<(), Refusal> {
        for (name, spec) in file.specs() {
            if self.specs.insert(name.clone(), spec.clone()).is_some() {
                return Err(Flaw::DuplicateTensor.with(format!("{name}, in several files")));
            }
            self.place.insert(name.clone(), self.files.len());
        }
        self.files.push(file);
        Ok(())
    }

    /// Adds the tensors that are not there yet: an expert of two groups is in both their files.
    pub(crate) fn add_new(&mut self, file: Checkpoint) {
        for (name, spec) in file.specs() {
            if self.specs.insert(name.clone(), spec.clone()).is_none() {
                self.place.insert(name.clone(), self.files.len());
            }
        }
        self.files.push(file);
    }
}

impl TensorSource for Shards {
    fn specs(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        let place = self.place.get(name).ok_or_else(|| Refusal::missing(name))?;
        self.files[*place].bytes(name)
    }

    fn part(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Refusal> {
        let place = self.place.get(name).ok_or_else(|| Refusal::missing(name))?;
        self.files[*place].part(name, range)
    }
}
