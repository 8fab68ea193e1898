//! A small published model, its plan, and miners' files: for tests of what reads them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use checkpoint::{
    CHUNK, Codec, Contribution, Dtype, ExpertGroups, MemoryTensors, Publication, TensorSpec,
    encode_f32, publish_model, write_safetensors,
};
use domain::{ExpertGroup, GlobalVersion, Hotkey, RoundId};
use tempfile::TempDir;

use crate::{
    chunks::{Chunks, Cut, Writing},
    model::Model,
    plan,
};

const GATE_UP: &str = "model.layers.1.mlp.experts.0.gate_up_proj";
const DOWN: &str = "model.layers.1.mlp.experts.0.down_proj";

/// Elements of the group's tensors: two chunks and a part of a third.
pub(crate) const ELEMENTS: usize = 800 * 512 + 512 * 400;

/// A base model in a folder of its own.
pub(crate) struct Base {
    pub(crate) dir: TempDir,
    pub(crate) plan: plan::Plan,
}

pub(crate) fn hotkey(n: u8) -> Hotkey {
    Hotkey::from_public_key([n; 32])
}

/// Numbers from -0.5 to 0.5, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next()).collect()
}

/// The group's tensors with these values, in the types that they are published in.
fn experts(values: &[f32]) -> MemoryTensors {
    let mut tensors = MemoryTensors::default();
    let (down, gate_up) = values.split_at(512 * 400);
    for (name, dtype, shape, values) in
        [(DOWN, Dtype::F32, vec![512, 400], down), (GATE_UP, Dtype::BF16, vec![800, 512], gate_up)]
    {
        let bytes = encode_f32(dtype, values).unwrap();
        tensors.insert(name, TensorSpec { dtype, shape }, bytes).unwrap();
    }
    tensors
}

impl Base {
    /// A model whose experts have these values.
    pub(crate) fn of(values: &[f32]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut model = experts(values);
        model.insert_f32("model.embed_tokens.weight", vec![4, 8], &noise(7, 32)).unwrap();
        let layers = BTreeMap::from([(1, vec![(0, 0)])]);
        let publication = Publication {
            global_version: GlobalVersion(300),
            expert_group: ExpertGroup(0),
            parent: None,
            config: serde_json::json!({}),
            groups: ExpertGroups([(ExpertGroup(0), layers)].into()),
        };
        let manifest = publish_model(&dir.path().join("base"), &model, publication).unwrap();
        let base = plan::Model {
            global_version: GlobalVersion(300),
            model_hash: manifest.model_hash,
            prefix: "models/300".to_owned(),
        };
        let plan = plan::Plan {
            round: RoundId(336),
            block_hash: domain::BlockHash([7; 32]),
            base,
            group: ExpertGroup(0),
            new_version: GlobalVersion(406),
            contributions: Vec::new(),
            validators: BTreeMap::new(),
            absent: Vec::new(),
            hotkey: hotkey(1),
            stake: 1,
            deadline: Duration::from_secs(10),
            elapsed: Duration::ZERO,
            allow_solo: true,
            traceparent: String::new(),
        };
        Self { dir, plan }
    }

    pub(crate) fn new() -> Self {
        Self::of(&noise(1, ELEMENTS))
    }

    /// A file in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn open(&self) -> Model {
        Model::open(&self.path("base"), None, &self.plan).unwrap()
    }

    /// A miner whose experts have these values.
    pub(crate) fn miner(&self, n: u8, weight: f64, values: &[f32]) -> Contribution {
        let path = self.path(&format!("miner-{n}-{weight}"));
        write_safetensors(&path, &experts(values)).unwrap();
        Contribution { hotkey: hotkey(n), weight, path, model_hash: None }
    }

    /// A folder of this name, empty.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir(&path).unwrap();
        path
    }
}

/// The bytes of a whole vector, chunk by chunk.
pub(crate) fn encoded(cut: Cut, values: &[f32]) -> Vec<Vec<u8>> {
    let encode = |values: &[f32]| {
        let mut bytes = vec![0; cut.codec.encoded_len(values.len())];
        cut.codec.encode(values, &mut bytes).unwrap();
        bytes
    };
    values.chunks(CHUNK).map(encode).collect()
}

/// Some chunks of a vector, written to a file at `path`.
pub(crate) fn write(path: &Path, cut: Cut, range: std::ops::Range<u32>, values: &[f32]) -> Chunks {
    let mut writing = Writing::create(path.to_owned(), cut, range.clone()).unwrap();
    for chunk in &encoded(cut, values)[range.start as usize..range.end as usize] {
        writing.push(chunk).unwrap();
    }
    writing.finish().unwrap()
}

/// The values of all chunks.
pub(crate) fn decoded(chunks: &Chunks) -> Vec<f32> {
    let cut = chunks.cut();
    let decode = |chunk: u32| {
        let mut values = vec![0.0; cut.elements_of(chunk)];
        cut.codec.decode(&chunks.checked(chunk).unwrap(), &mut values).unwrap();
        values
    };
    chunks.range().flat_map(decode).collect()
}

/// Values as bits, to be compared exactly.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What `values` become in the codec of results.
pub(crate) fn through(codec: Codec, values: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; codec.encoded_len(values.len())];
    codec.encode(values, &mut bytes).unwrap();
    let mut back = vec![0.0; values.len()];
    codec.decode(&bytes, &mut back).unwrap();
    back
}
