//! Python's `torch.save({"model_state_dict": {name: tensor}}, path)`: a zip archive of a pickle and its storages.

use std::collections::BTreeMap;

use super::{
    Tensors,
    pickle::{self, Pickle, Ref, Tensor, Value},
    walk::{StorageSizes, pickle_folder},
    zip::{self, Entries},
};
use crate::{
    checkpoint::Limits,
    dtype::Dtype,
    refusal::{Flaw, Refusal, clip},
    tensor::{TensorInfo, TensorSpec},
};

/// The key of the state dict in the pickled dictionary.
const STATE_DICT: &str = "model_state_dict";

/// torch needs about twenty for a tensor: texts, numbers and tuples.
const VALUES_PER_TENSOR: usize = 32;

/// What a pickle says of its tensors; nothing is checked against the archive yet.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) tensors: BTreeMap<String, Stored>,
    /// Of every storage that the pickle mentions. Of two sizes for one storage, the first.
    pub(crate) storages: StorageSizes,
}

/// A tensor in its storage.
#[derive(Debug)]
pub(crate) struct Stored {
    /// The storage is the archive's entry `<folder>/data/<key>`.
    pub(crate) key: String,
    pub(crate) storage_bytes: usize,
    /// Its place counts from the storage's first byte.
    pub(crate) info: TensorInfo,
}

/// Reads the archive's directory and its pickle; no tensor's data is looked at.
pub(super) fn tensors(file: &[u8], limits: Limits) -> Result<Tensors, Refusal> {
    let archive = zip::archive(file, limits.max_header_bytes)?;
    let entries = &archive.entries;
    let mut folders = entries.keys().filter_map(|name| pickle_folder(name));
    let (Some(folder), None) = (folders.next(), folders.next()) else {
        return Err(no_single_pickle());
    };
    if let Some(order) = entries.get(format!("{folder}/byteorder").as_str())
        && &file[order.clone()] != b"little"
    {
        return Err(Flaw::BigEndian.with(folder));
    }
    let described =
        describe(&file[entries[format!("{folder}/data.pkl").as_str()].clone()], limits)?;
    let mut tensors = Tensors::new();
    for (name, stored) in described.tensors {
        let info = place(&name, stored, entries, folder)?;
        tensors.insert(name, info);
    }
    archive.check_front_to_back(file, limits.max_header_bytes, folder, described.storages)?;
    Ok(tensors)
}

pub(crate) fn no_single_pickle() -> Refusal {
    Flaw::MissingEntry.with("not exactly one <folder>/data.pkl")
}

/// Reads a pickle: the tensors of its state dict, each inside its storage.
pub(crate) fn describe(bytes: &[u8], limits: Limits) -> Result<Described, Refusal> {
    if bytes.len() as u64 > limits.max_header_bytes {
        return Err(Flaw::PickleTooLarge.with(format!("{} bytes", bytes.len())));
    }
    let max_values = limits.max_tensors.saturating_mul(VALUES_PER_TENSOR).saturating_add(1000);
    let pickle = pickle::read(bytes, max_values)?;
    let state = state_dict(&pickle)?;
    if state.len() > limits.max_tensors {
        return Err(Flaw::TooManyTensors.with(state.len()));
    }
    let mut tensors = BTreeMap::new();
    for (name, value) in state {
        let not = |what| Flaw::NotAStateDict.with(what);
        let name = pickle.text(*name).ok_or_else(|| not("a name that is not text".to_owned()))?;
        let Value::Tensor(tensor) = pickle.value(*value) else {
            return Err(not(format!("{} is not a tensor", clip(name))));
        };
        let stored = stored(name, tensor, &pickle)?;
        if tensors.insert(name.to_owned(), stored).is_some() {
            return Err(Flaw::DuplicateTensor.with(name));
        }
    }
    let mut storages = StorageSizes::new();
    for value in pickle.values() {
        if let Value::Storage { dtype, key, elements } = value
            && let Some(bytes) = storage_bytes(*dtype, *elements)
            && !storages.contains_key(*key)
        {
            storages.insert((*key).to_owned(), bytes as u64);
        }
    }
    Ok(Described { tensors, storages })
}

fn storage_bytes(dtype: Dtype, elements: i64) -> Option<usize> {
    usize::try_from(elements).ok()?.checked_mul(dtype.size())
}

fn state_dict<'p>(pickle: &'p Pickle<'_>) -> Result<&'p [(Ref, Ref)], Refusal> {
    let not = |what| Flaw::NotAStateDict.with(what);
    let Value::Dict(root) = pickle.value(pickle.root) else {
        return Err(not("the pickle is not a dictionary"));
    };
    let mut found = root.iter().filter(|(key, _)| pickle.text(*key) == Some(STATE_DICT));
    match (found.next(), found.next()) {
        (Some((_, state)), None) => {
            let Value::Dict(state) = pickle.value(*state) else {
                return Err(not("model_state_dict is not a dictionary"));
            };
            Ok(state)
        }
        (None, _) => Err(not("no model_state_dict")),
        (Some(_), Some(_)) => Err(not("two of model_state_dict")),
    }
}

fn stored(name: &str, tensor: &Tensor, pickle: &Pickle<'_>) -> Result<Stored, Refusal> {
    let Value::Storage { dtype, key, elements } = pickle.value(tensor.storage) else {
        return Err(Flaw::BadPickle.with(format!("{}: no storage", clip(name))));
    };
    let outside = || Flaw::OutOfStorage.with(name);
    let storage_bytes = storage_bytes(*dtype, *elements).ok_or_else(outside)?;
    let offset = usize::try_from(tensor.offset).map_err(|_| outside())?;
    let spec = TensorSpec { dtype: *dtype, shape: tensor.shape.clone() };
    let strides = tensor.strides.clone();
    let info = TensorInfo::strided(name, spec, storage_bytes, offset, strides)?;
    Ok(Stored { key: (*key).to_owned(), storage_bytes, info })
}

fn place(
    name: &str,
    stored: Stored,
    entries: &Entries<'_>,
    folder: &str,
) -> Result<TensorInfo, Refusal> {
    let entry = format!("{folder}/data/{}", stored.key);
    let range = entries
        .get(entry.as_str())
        .ok_or_else(|| Flaw::MissingEntry.with(format!("{}: {}", clip(name), clip(&entry))))?;
    if stored.storage_bytes != range.len() {
        return Err(Flaw::OutOfStorage.with(name));
    }
    Ok(stored.info.moved_by(range.start))
}
