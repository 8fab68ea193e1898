//! Publishing a model and reading it back.

use std::fs;

use checkpoint::{
    Dtype, Format, HubModel, Limits, Manifest, MemoryTensors, PublishedModel, SliceId,
    TensorSource, TensorSpec, encode_f32, model_hash, open, overlay, publish_model, subnet_form,
    write_pt, write_safetensors,
};
use domain::ExpertGroup;
use sha2::{Digest as _, Sha256};

use crate::setup::{file_names, open_vector, publication, publish_base, vectors};

#[test]
fn every_file_of_a_published_model_is_what_the_manifest_says() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = publish_base(folder.path());
    assert_eq!(Manifest::read(folder.path()).unwrap(), manifest);
    let mut names = vec!["manifest.json".to_owned()];
    for (id, slice) in &manifest.slices {
        for (format, file) in &slice.files {
            assert_eq!(file.name, id.file_name(*format));
            names.push(file.name.clone());
            let path = folder.path().join(&file.name);
            let bytes = fs::read(&path).unwrap();
            assert_eq!(bytes.len() as u64, file.bytes);
            assert_eq!(hex::encode(Sha256::digest(&bytes)), file.sha256, "{}", file.name);
            let opened = open(&path, Limits::default()).unwrap();
            assert_eq!(opened.format(), *format);
            assert_eq!(*opened.specs(), slice.tensors);
            assert_eq!(model_hash(&opened), Ok(slice.model_hash));
        }
    }
    names.sort();
    let slices = 2 + manifest.groups.0.len();
    assert_eq!(names.len(), 2 * slices + 1, "two formats of each, and the manifest");
    assert_eq!(file_names(folder.path()), names, "nothing else is left in the folder");
}

#[test]
fn the_slices_of_a_model_make_the_whole_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = publish_base(folder.path());
    let slice = |id| &manifest.slice(id).unwrap().tensors;
    let groups = [SliceId::Group(ExpertGroup(0)), SliceId::Group(ExpertGroup(1))];
    let experts: usize = groups.map(|id| slice(id).len()).iter().sum();
    assert_eq!(slice(SliceId::Shared).len() + experts, slice(SliceId::Full).len());
    assert!(slice(SliceId::Shared).contains_key("model.layers.1.mlp.gate.weight"));

    let whole = PublishedModel::open(folder.path()).unwrap();
    let hash = model_hash(&whole).unwrap();
    assert_eq!(hash, manifest.slice(SliceId::Full).unwrap().model_hash);
    fs::remove_file(folder.path().join("model_full.safetensors")).unwrap();
    let joined = PublishedModel::open(folder.path()).unwrap();
    assert_eq!(model_hash(&joined), Ok(hash), "from the other slices");
    fs::remove_file(folder.path().join("model_expgroup_1.safetensors")).unwrap();
    assert!(PublishedModel::open(folder.path()).is_err());
}

#[test]
fn the_same_model_is_published_as_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert_eq!(publish_base(one.path()), publish_base(two.path()));
}

#[test]
fn experts_rows_are_the_gates_and_then_the_ups() {
    let hub = HubModel::open(&vectors().join("base")).unwrap();
    let source = open_vector("base/model.safetensors");
    let stem = "model.layers.2.mlp.experts.5";
    let gate = source.spec(&format!("{stem}.gate_proj.weight")).unwrap();
    let [rows, columns] = gate.shape[..] else { panic!("{gate:?} is not a matrix") };
    let gate_up = hub.bytes(&format!("{stem}.gate_up_proj")).unwrap();
    let gate = source.bytes(&format!("{stem}.gate_proj.weight")).unwrap();
    let up = source.bytes(&format!("{stem}.up_proj.weight")).unwrap();
    assert_eq!(*gate_up, [gate, up].concat());
    assert_eq!(hub.spec(&format!("{stem}.gate_up_proj")).unwrap().shape, [2 * rows, columns]);
    let down = hub.bytes(&format!("{stem}.down_proj")).unwrap();
    assert_eq!(down, source.bytes(&format!("{stem}.down_proj.weight")).unwrap());
}

#[test]
fn the_stacked_form_is_the_same_model() {
    let hub = HubModel::open(&vectors().join("base")).unwrap();
    let mut stacked = MemoryTensors::default();
    for (name, spec) in hub.specs() {
        if !name.contains(".mlp.experts.") {
            stacked.insert(name, spec.clone(), hub.bytes(name).unwrap().into_owned()).unwrap();
        }
    }
    for layer in 1..4 {
        for part in ["gate_up_proj", "down_proj"] {
            let name = |k: usize| format!("model.layers.{layer}.mlp.experts.{k}.{part}");
            let bytes = (0..8).flat_map(|k| hub.bytes(&name(k)).unwrap().into_owned()).collect();
            let mut spec = hub.spec(&name(0)).unwrap().clone();
            spec.shape.insert(0, 8);
            stacked
                .insert(&format!("model.layers.{layer}.mlp.experts.{part}"), spec, bytes)
                .unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stacked.safetensors");
    write_safetensors(&path, &stacked).unwrap();
    for source in [
        Box::new(stacked) as Box<dyn TensorSource>,
        Box::new(open(&path, Limits::default()).unwrap()),
    ] {
        let form = subnet_form(source).unwrap();
        assert_eq!(form.specs(), hub.specs());
        assert_eq!(model_hash(&form), model_hash(&hub));
    }
}

#[test]
fn a_hub_folder_of_several_files_is_read_through_its_index() {
    let folder = tempfile::tempdir().unwrap();
    let source = open_vector("base/model.safetensors");
    let mut parts = [MemoryTensors::default(), MemoryTensors::default()];
    let mut map = serde_json::Map::new();
    for (nth, (name, spec)) in source.specs().iter().enumerate() {
        let bytes = source.bytes(name).unwrap().into_owned();
        parts[nth % 2].insert(name, spec.clone(), bytes).unwrap();
        map.insert(name.clone(), format!("part-{}.safetensors", nth % 2).into());
    }
    for (nth, part) in parts.iter().enumerate() {
        write_safetensors(&folder.path().join(format!("part-{nth}.safetensors")), part).unwrap();
    }
    let index = serde_json::json!({ "weight_map": map });
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::copy(vectors().join("base/config.json"), folder.path().join("config.json")).unwrap();
    let whole = HubModel::open(&vectors().join("base")).unwrap();
    let parted = HubModel::open(folder.path()).unwrap();
    assert_eq!(model_hash(&parted), model_hash(&whole));
    assert_eq!(parted.config(), whole.config());

    let escape = serde_json::json!({ "weight_map": { "a": "../part-0.safetensors" } });
    fs::write(folder.path().join("model.safetensors.index.json"), escape.to_string()).unwrap();
    assert!(HubModel::open(folder.path()).unwrap_err().to_string().contains("bad_header"));
}

#[test]
fn a_group_with_an_expert_that_the_model_lacks_is_not_published() {
    let folder = tempfile::tempdir().unwrap();
    let hub = HubModel::open(&vectors().join("base")).unwrap();
    let mut missing = publication(hub.config().clone());
    let layers = missing.groups.0.get_mut(&ExpertGroup(1)).unwrap();
    layers.get_mut(&2).unwrap().push((4, 8));
    let error = publish_model(folder.path(), &hub, missing).unwrap_err().to_string();
    assert!(error.contains("expert 8 of layer 2"), "{error}");
    let mut foreign = publication(hub.config().clone());
    foreign.expert_group = ExpertGroup(9);
    let error = publish_model(folder.path(), &hub, foreign).unwrap_err().to_string();
    assert!(error.contains("no expert group 9"), "{error}");
    let raw = open_vector("base/model.safetensors");
    let error = publish_model(folder.path(), &raw, publication(hub.config().clone())).unwrap_err();
    assert!(error.to_string().contains("not in the subnet's form"), "{error}");
    assert_eq!(file_names(folder.path()), [""; 0]);
}

#[test]
fn an_overlay_has_the_bases_types_and_the_miners_values() {
    let folder = tempfile::tempdir().unwrap();
    publish_base(folder.path());
    let base = PublishedModel::open(folder.path()).unwrap();
    let specs = base.specs().clone();
    let miner = open_vector("miner2_g0.pt");
    let untouched = "model.norm.weight";
    let norm = base.bytes(untouched).unwrap().into_owned();
    let model = overlay(Box::new(base), Box::new(miner.clone())).unwrap();
    assert_eq!(*model.specs(), specs);
    assert_eq!(*model.bytes(untouched).unwrap(), norm);
    for name in miner.tensors().keys() {
        assert_eq!(model.spec(name).unwrap().dtype, Dtype::F32);
        assert_eq!(model.to_f32(name), miner.to_f32(name));
    }
}

#[test]
fn an_overlay_of_what_the_base_lacks_is_refused() {
    let base = || Box::new(open_vector("miner0_g0.pt"));
    let foreign = overlay(base(), Box::new(open_vector("miner0_g1.pt"))).unwrap_err();
    assert_eq!(foreign.reason(), "foreign_tensor");
    let mut over = MemoryTensors::default();
    over.insert_f32("model.layers.1.mlp.experts.2.down_proj", vec![1], &[0.0]).unwrap();
    assert_eq!(overlay(base(), Box::new(over)).unwrap_err().reason(), "wrong_shape");
}

/// Tensors of every type, their sizes and shapes odd.
fn mixed() -> MemoryTensors {
    let mut tensors = MemoryTensors::default();
    let shapes: [&[usize]; 4] = [&[], &[3], &[5, 7], &[2, 1, 3]];
    let dtypes =
        [Dtype::U8, Dtype::BF16, Dtype::F32, Dtype::F16, Dtype::F64, Dtype::I64, Dtype::Bool];
    for (nth, dtype) in dtypes.into_iter().enumerate() {
        let spec = TensorSpec { dtype, shape: shapes[nth % 4].to_vec() };
        let values: Vec<f32> = (0..spec.elements()).map(|n| n as f32 * 0.5 - 1.0).collect();
        let bytes = encode_f32(dtype, &values).unwrap_or_else(|| vec![1; spec.bytes()]);
        tensors.insert(&format!("{}.{dtype}", 9 - nth), spec, bytes).unwrap();
    }
    tensors.insert_f32("empty", vec![0, 4], &[]).unwrap();
    tensors
}

#[test]
fn tensors_of_all_types_survive_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = mixed();
    for format in [Format::Safetensors, Format::Pt] {
        let path = folder.path().join("mixed");
        let info = match format {
            Format::Safetensors => write_safetensors(&path, &tensors),
            Format::Pt => write_pt(&path, &tensors),
        };
        let bytes = fs::read(&path).unwrap();
        assert_eq!(info.unwrap().sha256, hex::encode(Sha256::digest(&bytes)));
        let read = open(&path, Limits::default()).unwrap();
        assert_eq!(read.format(), format);
        assert_eq!(read.specs(), tensors.specs());
        for name in tensors.specs().keys() {
            assert_eq!(read.bytes(name).unwrap(), tensors.bytes(name).unwrap(), "{name}");
        }
    }
}

#[test]
fn the_reference_reader_understands_our_safetensors_and_finds_them_aligned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mixed.safetensors");
    let tensors = mixed();
    write_safetensors(&path, &tensors).unwrap();
    let bytes = fs::read(&path).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.len(), tensors.specs().len());
    for (name, spec) in tensors.specs() {
        let view = read.tensor(name).unwrap();
        assert_eq!(view.shape(), spec.shape);
        assert_eq!(view.data(), &*tensors.bytes(name).unwrap());
        let offset = view.data().as_ptr().addr() - bytes.as_ptr().addr();
        assert!(spec.bytes() == 0 || offset.is_multiple_of(spec.dtype.size()), "{name}");
    }
}

#[test]
fn a_failed_write_leaves_nothing_behind() {
    struct Broken(MemoryTensors);
    impl TensorSource for Broken {
        fn specs(&self) -> &std::collections::BTreeMap<String, TensorSpec> {
            self.0.specs()
        }
        fn bytes(&self, name: &str) -> Result<std::borrow::Cow<'_, [u8]>, checkpoint::Refusal> {
            let bytes = self.0.bytes(name)?;
            let half = bytes.len() / 2;
            Ok(if name == "empty" { bytes } else { bytes[..half].to_vec().into() })
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let broken = Broken(mixed());
    for result in [write_pt(&path, &broken), write_safetensors(&path, &broken)] {
        assert!(result.unwrap_err().to_string().contains("bytes, not"));
    }
    assert!(
        write_pt(&path, &MemoryTensors::default()).unwrap_err().to_string().contains("without")
    );
    assert_eq!(file_names(folder.path()), [""; 0]);
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = publish_base(folder.path());
    let refused = |change: &dyn Fn(&mut Manifest)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        Manifest::from_json(&changed.to_json().unwrap()).unwrap_err().to_string()
    };
    assert!(refused(&|m| m.format = 2).contains("format 2"));
    assert!(refused(&|m| m.expert_group = ExpertGroup(1)).contains("group 1"));
    assert!(refused(&|m| drop(m.slices.remove(&SliceId::Shared))).contains("`shared`"));
    let escape = refused(&|m| {
        let slice = m.slices.get_mut(&SliceId::Shared).unwrap();
        slice.files.get_mut(&Format::Pt).unwrap().name = "../../etc/passwd".to_owned();
    });
    assert!(escape.contains("../../etc/passwd"), "{escape}");
    assert!(Manifest::from_json(b"{}").is_err());
}
