//! A model, texts and submissions as they lie in an artifact store, and the evaluator's
//! configuration for them.

use std::{net::SocketAddr, path::PathBuf};

use checkpoint::{
    Format, HubModel, Limits, Manifest, MemoryTensors, Publication, SliceId, TensorSource as _,
};
use data::{Batch, Corpus, TokenizedCorpus, Tokenizer, held_out_seed};
use domain::{ExpertGroup, GlobalVersion, Hotkey, Seed};
use kit::Common;
use model::{
    LanguageModel, LoadOptions, corpus, init, single_threaded,
    train::{TrainOptions, Trainer},
};
use proto::{common::v1 as common, scheduler::v1 as wire};
use sha2::{Digest as _, Sha256};
use store::Artifacts;
use svc_evaluator::Config;

pub(crate) const GROUP: ExpertGroup = ExpertGroup(1);
const PREFIX: &str = "models/7";
const SIZE: usize = 2;
const LENGTH: usize = 32;
const HELD_OUT: usize = 2;

pub(crate) struct Fixture {
    dir: tempfile::TempDir,
    artifacts: Artifacts,
    manifest: Manifest,
    model: PathBuf,
    texts: TokenizedCorpus,
    held_out: TokenizedCorpus,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        single_threaded();
        let dir = tempfile::tempdir().unwrap();
        let texts = corpus::generate(&Seed([1; 32]), 80);
        for (folder, texts) in [("train", &texts[..60]), ("held_out", &texts[60..])] {
            let folder = dir.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            let line = |text: &String| format!("{}\n", serde_json::json!({ "text": text }));
            let lines: String = texts.iter().map(line).collect();
            std::fs::write(folder.join("facts.jsonl"), lines).unwrap();
        }
        let (config, hub) = (init::demo_config(), dir.path().join("hub"));
        init::random(&hub, &config, &Seed([2; 32]), &texts).unwrap();
        let publication = Publication {
            global_version: GlobalVersion(7),
            expert_group: GROUP,
            parent: None,
            groups: init::demo_groups(&config, 2).unwrap(),
            config,
        };
        let model = dir.path().join("published");
        let hub_model = HubModel::open(&hub).unwrap();
        let manifest = checkpoint::publish_model(&model, &hub_model, publication).unwrap();

        let url = format!("file:{}", dir.path().join("artifacts").display());
        let artifacts = Artifacts::open(&url, &dir.path().join("cache")).unwrap();
        for entry in std::fs::read_dir(&model).unwrap() {
            let entry = entry.unwrap();
            let key = format!("{PREFIX}/{}", entry.file_name().to_str().unwrap());
            artifacts.put_file(&key, &entry.path()).await.unwrap();
        }
        let tokenizer = Tokenizer::open(&hub.join("tokenizer.json")).unwrap();
        let open = |folder: &str| {
            let corpus = Corpus::open(&dir.path().join(folder), 16).unwrap();
            TokenizedCorpus::new(&corpus, &tokenizer, 1).unwrap()
        };
        let (texts, held_out) = (open("train"), open("held_out"));
        Self { dir, artifacts, manifest, model, texts, held_out }
    }

    pub(crate) fn config(&self, grpc_addr: SocketAddr) -> Config {
        Config {
            grpc_addr,
            worker: "under-test".to_owned(),
            tokenizer: self.dir.path().join("hub/tokenizer.json"),
            corpus: self.dir.path().join("train"),
            held_out: self.dir.path().join("held_out"),
            held_out_batches: u32::try_from(HELD_OUT).unwrap(),
            idle: std::time::Duration::from_millis(10),
            ..Config::default()
        }
    }

    pub(crate) fn common(&self, scheduler_url: String) -> Common {
        Common {
            artifacts_url: format!("file:{}", self.dir.path().join("artifacts").display()),
            data_dir: self.dir.path().join("data"),
            scheduler_url,
            ..Common::default()
        }
    }

    pub(crate) fn load(&self) -> LanguageModel {
        let file = |id| {
            self.model.join(&self.manifest.slice(id).unwrap().files[&Format::Safetensors].name)
        };
        let (shared, experts) = (file(SliceId::Shared), file(SliceId::Group(GROUP)));
        let options = LoadOptions::default();
        LanguageModel::from_slices(&self.manifest, GROUP, &shared, &experts, options).unwrap()
    }

    pub(crate) fn base_hash(&self) -> String {
        self.manifest.model_hash.to_hex()
    }

    pub(crate) fn round_batches(&self, seed: u8, count: usize) -> Vec<Batch> {
        self.texts.draw(&Seed([seed; 32]), count, SIZE, LENGTH).unwrap()
    }

    pub(crate) fn held_out_batches(&self) -> Vec<Batch> {
        self.held_out.draw(&held_out_seed(), HELD_OUT, SIZE, LENGTH).unwrap()
    }

    /// The experts after a little training.
    pub(crate) fn trained(&self) -> MemoryTensors {
        let mut trainer = Trainer::new(self.load()).unwrap();
        let options = TrainOptions { steps: 6, ..TrainOptions::default() };
        trainer.train(&self.texts, &Seed([5; 32]), &options, || false).unwrap();
        trainer.experts().unwrap()
    }

    /// The experts of the base, changed by `change`.
    pub(crate) fn altered(&self, change: impl Fn(&str, &mut Vec<f32>)) -> MemoryTensors {
        let slice = self.manifest.slice(SliceId::Group(GROUP)).unwrap();
        let path = self.model.join(&slice.files[&Format::Safetensors].name);
        let base = checkpoint::open(&path, Limits::trusted()).unwrap();
        let mut altered = MemoryTensors::default();
        for (name, spec) in base.specs() {
            let mut values = base.to_f32(name).unwrap();
            change(name, &mut values);
            altered.insert_f32(name, spec.shape.clone(), &values).unwrap();
        }
        altered
    }

    /// Stores tensors as the gateway stores a miner's file.
    pub(crate) async fn submit(&self, name: &str, tensors: &MemoryTensors) -> common::Submission {
        let path = self.dir.path().join(name);
        let file = match path.extension().unwrap().to_str() {
            Some("pt") => checkpoint::write_pt(&path, tensors),
            _ => checkpoint::write_safetensors(&path, tensors),
        }
        .unwrap();
        let key = format!("submissions/20/miner/{name}");
        self.artifacts.put_file(&key, &path).await.unwrap();
        assert_eq!(file.sha256, hex::encode(Sha256::digest(std::fs::read(&path).unwrap())));
        common::Submission {
            hotkey: Hotkey::from_public_key([7; 32]).as_str().to_owned(),
            key,
            model_hash: checkpoint::model_hash(tensors).unwrap().to_hex(),
            sha256: file.sha256,
            bytes: file.bytes,
            block: 20,
        }
    }

    pub(crate) fn job(&self, id: &str, kind: wire::JobKind) -> wire::Job {
        wire::Job {
            job_id: id.to_owned(),
            round_id: 20,
            fence: 3,
            attempt: 1,
            kind: kind.into(),
            model: Some(common::ModelRef {
                global_version: 7,
                model_hash: self.base_hash(),
                prefix: PREFIX.to_owned(),
            }),
            expert_group: GROUP.0,
            submission: None,
            seed: Seed([4; 32]).to_hex(),
            batches: 3,
            batch_size: u32::try_from(SIZE).unwrap(),
            sequence_length: u32::try_from(LENGTH).unwrap(),
            traceparent: kit::trace::root(),
            lease_ms: 30_000,
            ..wire::Job::default()
        }
    }

    pub(crate) fn score(&self, id: &str, submission: common::Submission) -> wire::Job {
        wire::Job { submission: Some(submission), ..self.job(id, wire::JobKind::Score) }
    }

    /// A job of many seconds, unless it is stopped.
    pub(crate) fn long(&self, id: &str) -> wire::Job {
        wire::Job { batches: 800, ..self.job(id, wire::JobKind::Baseline) }
    }
}
