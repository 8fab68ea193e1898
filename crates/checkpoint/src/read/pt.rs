//! Python's `torch.save({"model_state_dict": {name: tensor}}, path)`: a zip archive of a pickle and its storages.

use super::{
    Tensors,
    pickle::{self, Pickle, Ref, Tensor, Value},
    zip::{self, Entries},
};
use crate::{
    checkpoint::Limits,
    refusal::{Flaw, Refusal, clip},
    tensor::{TensorInfo, TensorSpec},
};

/// The key of the state dict in the pickled dictionary.
const STATE_DICT: &str = "model_state_dict";

/// torch needs about twenty for a tensor: texts, numbers and tuples.
const VALUES_PER_TENSOR: usize = 32;

/// Reads the archive's directory and its pickle; no tensor's data is looked at.
pub(super) fn tensors(file: &[u8], limits: Limits) -> Result<Tensors, Refusal> {
    let entries = zip::entries(file, limits.max_header_bytes)?;
    let mut pickles = entries.keys().filter_map(|name| name.strip_suffix("/data.pkl"));
    let folder = match (pickles.find(|folder| !folder.contains('/')), pickles.next()) {
        (Some(folder), None) => folder,
        _ => return Err(Flaw::MissingEntry.with("not exactly one <folder>/data.pkl")),
    };
    if let Some(order) = entries.get(format!("{folder}/byteorder").as_str())
        && &file[order.clone()] != b"little"
    {
        return Err(Flaw::BigEndian.with(folder));
    }
    let bytes = &file[entries[format!("{folder}/data.pkl").as_str()].clone()];
    if bytes.len() as u64 > limits.max_header_bytes {
        return Err(Flaw::PickleTooLarge.with(format!("{} bytes", bytes.len())));
    }
    let max_values = limits.max_tensors.saturating_mul(VALUES_PER_TENSOR).saturating_add(1000);
    let pickle = pickle::read(bytes, max_values)?;
    let state = state_dict(&pickle)?;
    if state.len() > limits.max_tensors {
        return Err(Flaw::TooManyTensors.with(state.len()));
    }
    let mut tensors = Tensors::new();
    for (name, value) in state {
        let not = |what| Flaw::NotAStateDict.with(what);
        let name = pickle.text(*name).ok_or_else(|| not("a name that is not text".to_owned()))?;
        let Value::Tensor(tensor) = pickle.value(*value) else {
            return Err(not(format!("{} is not a tensor", clip(name))));
        };
        let info = place(name, tensor, &pickle, &entries, folder)?;
        if tensors.insert(name.to_owned(), info).is_some() {
            return Err(Flaw::DuplicateTensor.with(name));
        }
    }
    Ok(tensors)
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

fn place(
    name: &str,
    tensor: &Tensor,
    pickle: &Pickle<'_>,
    entries: &Entries<'_>,
    folder: &str,
) -> Result<TensorInfo, Refusal> {
    let Value::Storage { dtype, key, elements } = pickle.value(tensor.storage) else {
        return Err(Flaw::BadPickle.with(format!("{}: no storage", clip(name))));
    };
    let entry = format!("{folder}/data/{key}");
    let range = entries
        .get(entry.as_str())
        .ok_or_else(|| Flaw::MissingEntry.with(format!("{}: {}", clip(name), clip(&entry))))?;
    let outside = || Flaw::OutOfStorage.with(name);
    let announced = usize::try_from(*elements).ok().and_then(|n| n.checked_mul(dtype.size()));
    if announced != Some(range.len()) {
        return Err(outside());
    }
    let offset = usize::try_from(tensor.offset).map_err(|_| outside())?;
    let spec = TensorSpec { dtype: *dtype, shape: tensor.shape.clone() };
    TensorInfo::strided(name, spec, range.start, range.len(), offset, tensor.strides.clone())
}
