//! The model that is merged: published once, of which every validator has links.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use checkpoint::{
    CHUNK, Codec, ExpertGroups, MemoryTensors, Publication, model_hash, publish_model,
    write_safetensors,
};
use domain::{ExpertGroup, GlobalVersion};
use proto::{
    common::v1::{ModelRef, Submission},
    peer::v1::Contribution,
};

use crate::network::{BASE_VERSION, Member, ROUND, hotkey};

/// Whose submission it is.
const MINER: u8 = 200;

/// A published model and miners' files, of which every validator has links.
pub(crate) struct Model {
    folder: PathBuf,
    base: ModelRef,
    elements: usize,
    miners: [String; 2],
}

impl Model {
    /// All parameters are in one expert group, in four tensors.
    pub(crate) fn make(folder: &Path, mib: usize) -> anyhow::Result<Self> {
        let elements = (mib << 20) / 16 * 4;
        let json = serde_json::json!({ "0": { "1": [[0, 0], [1, 1]] } });
        let groups: ExpertGroups = serde_json::from_value(json)?;
        let publication = Publication {
            global_version: GlobalVersion(BASE_VERSION),
            expert_group: ExpertGroup(0),
            parent: None,
            config: serde_json::json!({}),
            groups,
        };
        let mut whole = parameters(elements, None)?;
        whole.insert_f32("model.layers.0.self_attn.weight", vec![1024], &noise(9, 1024))?;
        // Not among the models that are for others: what is given of those is hashed meanwhile.
        let prefix = format!("base/{BASE_VERSION}");
        let manifest = publish_model(&folder.join(&prefix), &whole, publication)?;
        drop(whole);
        let base = ModelRef {
            global_version: BASE_VERSION,
            model_hash: manifest.model_hash.to_hex(),
            prefix,
        };
        let mut miners = [const { String::new() }; 2];
        for (n, hash) in miners.iter_mut().enumerate() {
            let tensors = parameters(elements, Some(n as u64))?;
            *hash = model_hash(&tensors)?.to_hex();
            write_safetensors(&folder.join(format!("{n}.safetensors")), &tensors)?;
        }
        Ok(Self { folder: folder.to_owned(), base, elements, miners })
    }

    /// A validator that has them.
    pub(crate) async fn member(&self, seed: u8) -> anyhow::Result<(Member, Contribution)> {
        let dir = testkit::tempdir()?;
        let artifacts = dir.path().join("artifacts");
        fs::create_dir_all(artifacts.join(&self.base.prefix))?;
        for file in fs::read_dir(self.folder.join(&self.base.prefix))? {
            let file = file?;
            let to = artifacts.join(&self.base.prefix).join(file.file_name());
            fs::hard_link(file.path(), to)?;
        }
        let n = usize::from(seed % 2);
        let key = format!("submissions/{ROUND}/{}/{n}.safetensors", hotkey(MINER));
        let to = artifacts.join(&key);
        fs::create_dir_all(to.parent().context("a folder")?)?;
        fs::hard_link(self.folder.join(format!("{n}.safetensors")), to)?;
        let submission = Submission {
            hotkey: hotkey(MINER).to_string(),
            key,
            model_hash: self.miners[n].clone(),
            ..Submission::default()
        };
        let contribution = Contribution { submission: Some(submission), weight: 1.0 };
        Ok((Member::with_base(seed, dir, self.base.clone()).await, contribution))
    }

    /// Bytes of the whole vector, encoded.
    pub(crate) fn bytes(&self, codec: Codec) -> usize {
        let (whole, rest) = (self.elements / CHUNK, self.elements % CHUNK);
        whole * codec.encoded_len(CHUNK) + codec.encoded_len(rest)
    }
}

/// The group's tensors: the base's, or a miner's.
fn parameters(elements: usize, miner: Option<u64>) -> anyhow::Result<MemoryTensors> {
    let mut tensors = MemoryTensors::default();
    for n in 0..4_u64 {
        let (expert, of) = (n / 2, ["gate_up_proj", "down_proj"][n as usize % 2]);
        let mut values = noise(n, elements / 4);
        if let Some(miner) = miner {
            let moved = noise(100 + 10 * miner + n, values.len());
            values.iter_mut().zip(moved).for_each(|(value, moved)| *value += moved * 1e-3);
        }
        let name = format!("model.layers.1.mlp.experts.{expert}.{of}");
        tensors.insert_f32(&name, vec![values.len() / 1024, 1024], &values)?;
    }
    Ok(tensors)
}

/// Numbers from -0.5 to 0.5, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next()).collect()
}
