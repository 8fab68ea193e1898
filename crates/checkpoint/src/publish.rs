//! Publishing a global model: every slice in both formats and the manifest, in one pass over the tensors.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use domain::{ExpertGroup, GlobalVersion, ModelHash};
use rayon::prelude::*;

use crate::{
    checkpoint::{Format, Limits, open},
    groups::{ExpertGroups, Name},
    hash::ModelHasher,
    hub::Shards,
    layout::SliceId,
    manifest::{Manifest, ManifestError, Slice},
    refusal::Refusal,
    source::TensorSource,
    tensor::TensorSpec,
    write::{WriteError, Writer},
};

/// What a model is published as.
#[derive(Debug, Clone, PartialEq)]
pub struct Publication {
    pub global_version: GlobalVersion,
    /// The group whose slice gives the model its hash.
    pub expert_group: ExpertGroup,
    pub parent: Option<ModelHash>,
    /// The model's `config.json`.
    pub config: serde_json::Value,
    pub groups: ExpertGroups,
}

/// A model that could not be published or opened.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Read(#[from] Refusal),
    #[error("cannot write {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("there is no expert group {0}")]
    NoGroup(ExpertGroup),
    #[error("group {group} has expert {expert} of layer {layer}, the model has not")]
    NoExpert { group: ExpertGroup, layer: u32, expert: u32 },
    #[error("{name} is not in the subnet's form")]
    Form { name: String },
    #[error("the files of {} do not have the tensors of its manifest", folder.display())]
    Differs { folder: PathBuf },
}

/// Writes a whole model in the subnet's form into a folder, which is made where it is missing: `model_shared`,
/// `model_full` and one `model_expgroup_<id>` per group in both formats, at last `manifest.json`.
///
/// A layer of the groups that has no routed experts in the model (the dense first one) is ignored.
pub fn publish_model(
    folder: &Path,
    model: &dyn TensorSource,
    publication: Publication,
) -> Result<Manifest, PublishError> {
    let mut publishing = Publishing::create(folder, model.specs(), publication)?;
    for name in model.specs().keys() {
        publishing.write(name, &model.bytes(name)?)?;
    }
    let manifest = publishing.finish()?;
    manifest.write(folder)?;
    Ok(manifest)
}

/// A model while it is published. Each tensor is handed to all files and hashes that take it, side by side.
pub(crate) struct Publishing {
    publication: Publication,
    slices: BTreeMap<SliceId, OpenSlice>,
}

impl Publishing {
    pub(crate) fn create(
        folder: &Path,
        specs: &Specs,
        publication: Publication,
    ) -> Result<Self, PublishError> {
        let divided = divide(specs, &publication)?;
        fs::create_dir_all(folder)
            .map_err(|source| PublishError::Io { path: folder.to_owned(), source })?;
        let mut slices = BTreeMap::new();
        for (id, tensors) in divided {
            slices.insert(id, OpenSlice::create(folder, id, tensors)?);
        }
        Ok(Self { publication, slices })
    }

    /// The tensors of a slice.
    pub(crate) fn tensors(&self, id: SliceId) -> Option<&Specs> {
        self.slices.get(&id).map(|slice| &slice.tensors)
    }

    /// The next tensor, in ascending order of name.
    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let takers = self.slices.values_mut().filter(|slice| slice.tensors.contains_key(name));
        let lanes: Vec<Lane<'_>> = takers.flat_map(OpenSlice::lanes).collect();
        lanes.into_par_iter().with_max_len(1).try_for_each(|lane| lane.write(name, bytes))
    }

    /// Makes all files visible. They are a model once the manifest is written.
    pub(crate) fn finish(self) -> Result<Manifest, PublishError> {
        let Self { publication, slices } = self;
        let slices: BTreeMap<_, _> = slices
            .into_par_iter()
            .map(|(id, slice)| Ok((id, slice.finish()?)))
            .collect::<Result<_, WriteError>>()?;
        let own = slices.get(&SliceId::Group(publication.expert_group));
        Ok(Manifest {
            format: Manifest::FORMAT,
            global_version: publication.global_version,
            model_hash: own.ok_or(PublishError::NoGroup(publication.expert_group))?.model_hash,
            expert_group: publication.expert_group,
            parent: publication.parent,
            config: publication.config,
            groups: publication.groups,
            slices,
        })
    }
}

type Specs = BTreeMap<String, TensorSpec>;

/// The tensors of every slice.
fn divide(
    specs: &Specs,
    publication: &Publication,
) -> Result<BTreeMap<SliceId, Specs>, PublishError> {
    let groups = &publication.groups;
    if !groups.0.contains_key(&publication.expert_group) {
        return Err(PublishError::NoGroup(publication.expert_group));
    }
    let mut slices =
        BTreeMap::from([(SliceId::Full, specs.clone()), (SliceId::Shared, Specs::new())]);
    slices.extend(groups.0.keys().map(|group| (SliceId::Group(*group), Specs::new())));
    let mut experts: BTreeMap<u32, BTreeMap<u32, usize>> = BTreeMap::new();
    for (name, spec) in specs {
        let owners: Vec<SliceId> = match Name::parse(name) {
            Name::Shared => vec![SliceId::Shared],
            Name::Subnet { layer, expert } => {
                *experts.entry(layer).or_default().entry(expert).or_default() += 1;
                groups.holding(layer, expert).into_iter().map(SliceId::Group).collect()
            }
            Name::Hub { .. } | Name::Stacked { .. } => {
                return Err(PublishError::Form { name: name.clone() });
            }
        };
        for owner in owners {
            slices.entry(owner).or_default().insert(name.clone(), spec.clone());
        }
    }
    for (group, layers) in &groups.0 {
        for (layer, members) in layers {
            let Some(present) = experts.get(layer) else { continue };
            for (_, expert) in members {
                if present.get(expert) != Some(&2) {
                    let (group, layer, expert) = (*group, *layer, *expert);
                    return Err(PublishError::NoExpert { group, layer, expert });
                }
            }
        }
    }
    Ok(slices)
}

/// A slice while its files are written.
struct OpenSlice {
    tensors: Specs,
    hasher: ModelHasher,
    writers: BTreeMap<Format, Writer>,
}

impl OpenSlice {
    fn create(folder: &Path, id: SliceId, tensors: Specs) -> Result<Self, WriteError> {
        let mut writers = BTreeMap::new();
        for format in [Format::Safetensors, Format::Pt] {
            let path = folder.join(id.file_name(format));
            writers.insert(format, Writer::create(&path, format, &tensors)?);
        }
        Ok(Self { tensors, hasher: ModelHasher::default(), writers })
    }

    fn lanes(&mut self) -> impl Iterator<Item = Lane<'_>> {
        let files = self.writers.values_mut().map(Lane::File);
        std::iter::once(Lane::Hash(&mut self.hasher)).chain(files)
    }

    fn finish(self) -> Result<Slice, WriteError> {
        let files = self
            .writers
            .into_par_iter()
            .map(|(format, writer)| Ok((format, writer.finish()?)))
            .collect::<Result<_, WriteError>>()?;
        Ok(Slice { model_hash: self.hasher.finish(), tensors: self.tensors, files })
    }
}

/// One thing to be done with a tensor's bytes, which takes a core of its own.
enum Lane<'a> {
    Hash(&'a mut ModelHasher),
    File(&'a mut Writer),
}

impl Lane<'_> {
    fn write(self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        match self {
            Self::Hash(hasher) => {
                hasher.name(name);
                hasher.data(bytes);
                Ok(())
            }
            Self::File(writer) => writer.write(name, bytes),
        }
    }
}

/// A published model, opened from its folder: the whole of it, in the subnet's form.
#[derive(Debug)]
pub struct PublishedModel {
    manifest: Manifest,
    tensors: Shards,
}

impl PublishedModel {
    /// Opens `model_full.safetensors`, or where it is missing the shared slice and the groups' slices. The tensors
    /// are compared with the manifest, their content is not hashed: the folder is this validator's own.
    pub fn open(folder: &Path) -> Result<Self, PublishError> {
        let manifest = Manifest::read(folder)?;
        let mut tensors = Shards::default();
        let file = |id: SliceId| folder.join(id.file_name(Format::Safetensors));
        if file(SliceId::Full).exists() {
            tensors.add(open(&file(SliceId::Full), Limits::trusted())?)?;
        } else {
            for id in manifest.slices.keys().filter(|id| **id != SliceId::Full) {
                tensors.add_new(open(&file(*id), Limits::trusted())?);
            }
        }
        let full = manifest.slice(SliceId::Full).ok_or(ManifestError::NoSlice(SliceId::Full))?;
        if *tensors.specs() != full.tensors {
            return Err(PublishError::Differs { folder: folder.to_owned() });
        }
        Ok(Self { manifest, tensors })
    }

    /// The model's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl TensorSource for PublishedModel {
    fn specs(&self) -> &BTreeMap<String, TensorSpec> {
        self.tensors.specs()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Refusal> {
        self.tensors.bytes(name)
    }

    fn part(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, Refusal> {
        self.tensors.part(name, range)
    }
}
