use checkpoint::{CHUNK, Codec, TensorSource as _};
use merge::Slices;
use proptest::prelude::*;

use super::*;
use crate::fixture::{Base, ELEMENTS, bits, noise, through, write};

/// The vector in `parts` files.
fn slices(folder: &Path, cut: Cut, parts: u16, values: &[f32]) -> Vec<Chunks> {
    let slices = Slices { chunks: cut.chunks(), parts };
    let slice = |index: u16| {
        let path = folder.join(format!("slice-{index}-of-{parts}"));
        write(&path, cut, slices.range(index), values)
    };
    (0..parts).map(slice).collect()
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(read).collect();
    all.sort();
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_part_of_the_vector_is_read_as_it_was_encoded(
        codec in prop::sample::select(&Codec::ALL),
        parts in 1_u16..6,
        start in 0..ELEMENTS,
        len in prop_oneof![0..600_usize, 0..=ELEMENTS],
    ) {
        let folder = tempfile::tempdir().unwrap();
        let cut = Cut { elements: ELEMENTS, chunk: CHUNK, codec };
        let values = noise(3, ELEMENTS);
        let vector = ReducedVector::new(cut, slices(folder.path(), cut, parts, &values)).unwrap();
        let end = ELEMENTS.min(start + len);
        let mut out = vec![f32::NAN; end - start];
        vector.read(start, &mut out).unwrap();
        let all: Vec<f32> = values.chunks(CHUNK).flat_map(|chunk| through(codec, chunk)).collect();
        prop_assert_eq!(bits(&out), bits(&all[start..end]));
        let beyond = vector.read(start, &mut vec![0.0; ELEMENTS - start + 1]);
        let outside = matches!(beyond, Err(ReadError::Outside { .. }));
        prop_assert!(outside, "{beyond:?}");
    }
}

#[test]
fn a_vector_with_a_gap_an_overlap_or_another_codec_is_none() {
    let base = Base::new();
    let cut = Cut { elements: ELEMENTS, chunk: CHUNK, codec: Codec::Float32 };
    let values = noise(3, ELEMENTS);
    let all = slices(base.dir.path(), cut, 3, &values);
    assert!(ReducedVector::new(cut, all.clone()).is_ok());
    for wrong in [
        vec![],
        all[..2].to_vec(),
        all[1..].to_vec(),
        vec![all[0].clone(), all[2].clone()],
        vec![all[0].clone(), all[0].clone(), all[1].clone(), all[2].clone()],
        vec![all[1].clone(), all[0].clone(), all[2].clone()],
    ] {
        assert!(matches!(ReducedVector::new(cut, wrong), Err(Failure::Write(_))));
    }
    let other = Cut { codec: Codec::Bfloat16, ..cut };
    assert!(ReducedVector::new(other, all).is_err());
}

#[test]
fn a_step_makes_the_same_bits_however_the_vector_is_sliced() {
    let base = Base::new();
    let cut = Cut { elements: ELEMENTS, chunk: CHUNK, codec: Codec::Bfloat16 };
    let values = noise(3, ELEMENTS);
    let sgd = OuterSgd::default();
    let made = [1, 2, 5].map(|parts| {
        let reduced =
            ReducedVector::new(cut, slices(base.dir.path(), cut, parts, &values)).unwrap();
        let folder = base.path(&format!("made-{parts}"));
        let manifest = step(base.open(), &base.plan, &sgd, &reduced, &folder).unwrap();
        assert_eq!(manifest.parent, Some(base.plan.base.model_hash));
        files(&folder)
    });
    assert!(made[0].iter().any(|(name, _)| *name == base.plan.optimizer_file()));
    assert!(made[1] == made[0] && made[2] == made[0]);

    // By the arithmetic alone: one step of the float32 tensor, whose elements are the first.
    let down = 512 * 400;
    let mut param = noise(1, ELEMENTS)[..down].to_vec();
    let gradient = through(cut.codec, &values);
    sgd.step(&mut param, &mut vec![0.0; down], &gradient[..down]).unwrap();
    let next = checkpoint::PublishedModel::open(&base.path("made-1")).unwrap();
    let name = "model.layers.1.mlp.experts.0.down_proj";
    assert_eq!(bits(&next.to_f32(name).unwrap()), bits(&param));
}

#[test]
fn the_next_round_goes_on_with_momentum_and_float32_parameters() {
    let base = Base::new();
    let cut = Cut { elements: ELEMENTS, chunk: CHUNK, codec: Codec::Float32 };
    // Less than what most bfloat16 parameters can show in one step.
    let values: Vec<f32> = noise(3, ELEMENTS).iter().map(|x| x * 1e-3).collect();
    let reduced = ReducedVector::new(cut, slices(base.dir.path(), cut, 2, &values)).unwrap();
    let sgd = OuterSgd::default();
    let (mut plan, mut model) = (base.plan.clone(), base.open());
    let name = "model.layers.1.mlp.experts.0.gate_up_proj";
    let mut params = model.published().to_f32(name).unwrap();
    let mut momentum = vec![0.0; params.len()];
    let mut layouts = vec![model.layout_digest(&sgd)];
    for round in 0..4 {
        let folder = base.path(&format!("round-{round}"));
        let manifest = step(model, &plan, &sgd, &reduced, &folder).unwrap();
        plan.base.model_hash = manifest.model_hash;
        model = Model::open(&folder, Some(&folder.join(plan.optimizer_file())), &plan).unwrap();
        sgd.step(&mut params, &mut momentum, &values[512 * 400..]).unwrap();
        let published = model.published().to_f32(name).unwrap();
        assert_eq!(bits(&published), bits(&through(Codec::Bfloat16, &params)), "round {round}");
        layouts.push(model.layout_digest(&sgd));
    }
    layouts.sort();
    layouts.dedup();
    assert_eq!(layouts.len(), 5, "who has not the same momentum is told by the layout");
}

#[test]
fn a_file_that_was_cut_short_makes_no_model() {
    let base = Base::new();
    let cut = Cut { elements: ELEMENTS, chunk: CHUNK, codec: Codec::Float32 };
    let all = slices(base.dir.path(), cut, 1, &noise(3, ELEMENTS));
    let reduced = ReducedVector::new(cut, all).unwrap();
    std::fs::write(base.path("slice-0-of-1"), [0; 1000]).unwrap();
    let folder = base.path("made");
    let made = step(base.open(), &base.plan, &OuterSgd::default(), &reduced, &folder);
    assert!(matches!(made, Err(Failure::Write(_))), "{made:?}");
    assert!(!folder.join(Manifest::FILE_NAME).exists());
}

#[tokio::test]
async fn a_model_is_published_whole_and_its_manifest_last() {
    let base = Base::new();
    let url = format!("file:{}", base.path("artifacts").display());
    let artifacts = Artifacts::open(&url, &base.path("cache")).unwrap();
    assert_eq!(published(&artifacts, "models/300").await.unwrap(), None);
    publish(&artifacts, &base.path("base"), "models/300").await.unwrap();
    let manifest = published(&artifacts, "models/300").await.unwrap().unwrap();
    assert_eq!(manifest.model_hash, base.plan.base.model_hash);
    let (folder, state) = crate::model::fetch(&artifacts, &base.plan).await.unwrap();
    assert!(state.is_none());
    Model::open(&folder, None, &base.plan).unwrap();
}
