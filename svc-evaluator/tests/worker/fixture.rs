//! A model, texts and submissions as they lie in an artifact store, and the evaluator's
//! configuration for them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use checkpoint::{
    Format, HubModel, Limits, Manifest, MemoryTensors, Publication, SliceId, TensorSource as _,
};
use data::{
    Corpus, Draw, Drawer, Drawn, Place, Settings, Source, Sources, TokenizedCorpus, Tokenizer,
    Weight,
};
use domain::{ExpertGroup, GlobalVersion, Hotkey, Seed};
use kit::Common;
use model::{
    Device, LanguageModel, LoadOptions, corpus, init, single_threaded,
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

/// Whose every submission is.
pub(crate) fn miner() -> Hotkey {
    Hotkey::from_public_key([7; 32])
}

pub(crate) struct Fixture {
    dir: tempfile::TempDir,
    artifacts: Artifacts,
    manifest: Manifest,
    model: PathBuf,
    train: TokenizedCorpus,
    texts: Drawer,
    held_out: Drawer,
}

/// A drawer as the evaluator makes it of a folder, without its cache.
async fn drawer(folder: PathBuf, tokenizer: Tokenizer, cache: &Path) -> Drawer {
    let source = Source {
        place: Place::Folder(folder),
        files: None,
        text_field: "text".to_owned(),
        weight: Weight::ONE,
    };
    let sources = Sources::open(&[source], &Settings::new(cache.to_owned())).await.unwrap();
    Drawer::new(sources, tokenizer, 1)
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
        let corpus = Corpus::open(&dir.path().join("train"), 16).unwrap();
        let train = TokenizedCorpus::new(&corpus, &tokenizer, 1).unwrap();
        let cache = dir.path().join("expected");
        let texts = drawer(dir.path().join("train"), tokenizer.clone(), &cache).await;
        let held_out = drawer(dir.path().join("held_out"), tokenizer, &cache).await;
        Self { dir, artifacts, manifest, model, train, texts, held_out }
    }

    /// Where a stored artifact lies.
    pub(crate) fn stored(&self, key: &str) -> PathBuf {
        self.dir.path().join("artifacts").join(key)
    }

    /// The evaluator's environment, for a process.
    pub(crate) fn environment(
        &self,
        worker: &str,
        grpc_addr: SocketAddr,
        scheduler_url: &str,
    ) -> Vec<(&'static str, String)> {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        vec![
            ("CONNITO_EVALUATOR_GRPC_ADDR", grpc_addr.to_string()),
            ("CONNITO_EVALUATOR_WORKER", worker.to_owned()),
            ("CONNITO_EVALUATOR_TOKENIZER", at("hub/tokenizer.json")),
            ("CONNITO_EVALUATOR_CORPUS", at("train")),
            ("CONNITO_EVALUATOR_HELD_OUT", at("held_out")),
            ("CONNITO_EVALUATOR_HELD_OUT_BATCHES", HELD_OUT.to_string()),
            ("CONNITO_EVALUATOR_IDLE", "10ms".to_owned()),
            ("CONNITO_EVALUATOR_DEVICE", device().to_string()),
            ("CONNITO_ARTIFACTS_URL", format!("file:{}", at("artifacts"))),
            ("CONNITO_DATA_DIR", at("data")),
            ("CONNITO_SCHEDULER_URL", scheduler_url.to_owned()),
        ]
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
            device: device(),
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
        let options = LoadOptions { device: device(), ..LoadOptions::default() };
        LanguageModel::from_slices(&self.manifest, GROUP, &shared, &experts, options).unwrap()
    }

    pub(crate) fn base_hash(&self) -> String {
        self.manifest.model_hash.to_hex()
    }

    fn by(seed: u8, count: usize) -> Draw {
        Draw::new(Seed([seed; 32]), count, SIZE, LENGTH)
    }

    pub(crate) async fn round_batches(&self, seed: u8, count: usize) -> Arc<Drawn> {
        self.texts.draw(&Self::by(seed, count)).await.unwrap()
    }

    pub(crate) async fn held_out_batches(&self) -> Arc<Drawn> {
        self.held_out.draw(&Self::by(0, 1).held_out(HELD_OUT)).await.unwrap()
    }

    /// A miner's own data.
    pub(crate) async fn own_batches(&self, hotkey: &Hotkey, count: usize) -> Arc<Drawn> {
        self.texts.draw(&Self::by(0, 1).own(hotkey, GlobalVersion(7), count)).await.unwrap()
    }

    /// The sketch of a submission.
    pub(crate) fn sketch(&self, submission: &MemoryTensors) -> domain::Sketch {
        checkpoint::sketch(submission, &self.base(), &Seed([4; 32])).unwrap()
    }

    /// The experts of the base.
    fn base(&self) -> checkpoint::Checkpoint {
        let slice = self.manifest.slice(SliceId::Group(GROUP)).unwrap();
        let path = self.model.join(&slice.files[&Format::Safetensors].name);
        checkpoint::open(&path, Limits::trusted()).unwrap()
    }

    /// The experts after a little training.
    pub(crate) fn trained(&self) -> MemoryTensors {
        let mut trainer = Trainer::new(self.load()).unwrap();
        let options = TrainOptions { steps: 6, ..TrainOptions::default() };
        trainer.train(&self.train, &Seed([5; 32]), &options, || false).unwrap();
        trainer.experts().unwrap()
    }

    /// The experts of the base, changed by `change`.
    pub(crate) fn altered(&self, change: impl Fn(&str, &mut Vec<f32>)) -> MemoryTensors {
        let base = self.base();
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
            hotkey: miner().as_str().to_owned(),
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

/// Where the models of these tests run: the processor, unless `CONNITO_DEVICE` names another device.
pub(crate) fn device() -> Device {
    std::env::var("CONNITO_DEVICE").map_or(Device::Cpu, |name| name.parse().unwrap())
}
