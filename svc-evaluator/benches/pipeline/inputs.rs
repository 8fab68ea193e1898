//! What is measured: a generated model, published, and submissions of it.

use std::{path::PathBuf, sync::Arc};

use checkpoint::{
    Format, HubModel, Limits, Manifest, MemoryTensors, Publication, SliceId, TensorSource as _,
};
use data::{Draw, Drawer, Drawn, Place, Settings, Source, Sources, Tokenizer, Weight};
use domain::{ExpertGroup, GlobalVersion, Hotkey};
use model::{
    Device, LanguageModel, LoadOptions, WeightType,
    init::{self, GenerateOptions, Width},
};
use proto::{common::v1 as common, scheduler::v1 as wire};
use store::Artifacts;

use crate::SEED;

const GROUP: ExpertGroup = ExpertGroup(0);
const PREFIX: &str = "models/1";

pub(crate) struct Arguments {
    pub(crate) width: Width,
    /// Of the width's layers the first so many; zero: all.
    pub(crate) layers: u32,
    pub(crate) device: Device,
    pub(crate) weights: WeightType,
    pub(crate) submissions: usize,
    pub(crate) batches: usize,
    pub(crate) rows: usize,
    pub(crate) length: usize,
    pub(crate) threads: u32,
    pub(crate) groups: u32,
    pub(crate) processes: bool,
}

impl Arguments {
    pub(crate) fn parse() -> Self {
        let mut this = Self {
            width: Width::Small,
            layers: 0,
            device: Device::Cpu,
            weights: WeightType::Float32,
            submissions: 10,
            batches: 4,
            rows: 1,
            length: 512,
            threads: 1,
            groups: 4,
            processes: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap();
            match word.as_str() {
                "--width" => this.width = value().parse().unwrap(),
                "--layers" => this.layers = value().parse().unwrap(),
                "--device" => this.device = value().parse().unwrap(),
                "--bfloat16" => this.weights = WeightType::BFloat16,
                "--submissions" => this.submissions = value().parse().unwrap(),
                "--batches" => this.batches = value().parse().unwrap(),
                "--rows" => this.rows = value().parse().unwrap(),
                "--length" => this.length = value().parse().unwrap(),
                "--threads" => this.threads = value().parse().unwrap(),
                "--groups" => this.groups = value().parse().unwrap(),
                "--processes" => this.processes = true,
                // What `cargo bench` adds.
                "--bench" => {}
                other => panic!("unknown argument `{other}`"),
            }
        }
        this
    }

    fn bytes(&self) -> u64 {
        if self.weights == WeightType::Float32 { 4 } else { 2 }
    }

    pub(crate) fn weights_text(&self) -> String {
        format!("{} bytes", self.bytes())
    }

    fn by(&self) -> Draw {
        Draw::new(SEED, self.batches, self.rows, self.length)
    }
}

pub(crate) struct Inputs {
    dir: tempfile::TempDir,
    manifest: Manifest,
    submissions: Vec<common::Submission>,
    pub(crate) drawn: Arc<Drawn>,
    options: LoadOptions,
    arguments: [usize; 3],
    threads: u32,
    weight_bytes: u64,
}

impl Inputs {
    pub(crate) async fn new(arguments: &Arguments) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let texts = model::corpus::generate(&SEED, 2000);
        std::fs::create_dir(at("texts")).unwrap();
        // Long ones, that fill rows.
        let line =
            |texts: &[String]| format!("{}\n", serde_json::json!({ "text": texts.join(" ") }));
        let lines: String = texts.chunks(20).map(line).collect();
        std::fs::write(at("texts/facts.jsonl"), lines).unwrap();

        let mut config = init::deepseek_config(arguments.width);
        if arguments.layers > 0 {
            config["num_hidden_layers"] = arguments.layers.into();
        }
        let options = GenerateOptions { weights: arguments.weights, shard_bytes: None };
        init::generate(&at("hub"), &config, &SEED, &options).unwrap();
        init::tokenizer(&at("hub/tokenizer.json"), 320, &texts[..200]).unwrap();
        let publication = Publication {
            global_version: GlobalVersion(1),
            expert_group: GROUP,
            parent: None,
            groups: init::demo_groups(&config, arguments.groups).unwrap(),
            config,
        };
        let hub = HubModel::open(&at("hub")).unwrap();
        let manifest = checkpoint::publish_model(&at("published"), &hub, publication).unwrap();
        let url = format!("file:{}", at("artifacts").display());
        let artifacts = Artifacts::open(&url, &at("cache")).unwrap();
        for entry in std::fs::read_dir(at("published")).unwrap() {
            let entry = entry.unwrap();
            let key = format!("{PREFIX}/{}", entry.file_name().to_str().unwrap());
            artifacts.put_file(&key, &entry.path()).await.unwrap();
        }

        let source = Source {
            place: Place::Folder(at("texts")),
            files: None,
            text_field: "text".to_owned(),
            weight: Weight::ONE,
        };
        let sources = Sources::open(&[source], &Settings::new(at("expected"))).await.unwrap();
        let tokenizer = Tokenizer::open(&at("hub/tokenizer.json")).unwrap();
        let parsed = model::ModelConfig::from_json(&manifest.config).unwrap();
        let pad = parsed.pad_token.map_or(0, |id| u32::try_from(id).unwrap());
        let drawn = Drawer::new(sources, tokenizer, pad).draw(&arguments.by()).await.unwrap();
        let mut this = Self {
            manifest,
            submissions: Vec::new(),
            drawn,
            options: LoadOptions {
                weights: arguments.weights,
                device: arguments.device,
                ..LoadOptions::default()
            },
            arguments: [arguments.batches, arguments.rows, arguments.length],
            threads: arguments.threads,
            weight_bytes: arguments.bytes(),
            dir,
        };
        for n in 0..arguments.submissions {
            let submission = this.submit(&artifacts, n).await;
            this.submissions.push(submission);
        }
        this
    }

    fn file(&self, id: SliceId) -> PathBuf {
        let name = &self.manifest.slice(id).unwrap().files[&Format::Safetensors].name;
        self.dir.path().join("published").join(name)
    }

    /// The base's experts, scaled a little.
    async fn submit(&self, artifacts: &Artifacts, n: usize) -> common::Submission {
        let base = checkpoint::open(&self.file(SliceId::Group(GROUP)), Limits::trusted()).unwrap();
        let mut tensors = MemoryTensors::default();
        for (name, spec) in base.specs() {
            let mut values = base.to_f32(name).unwrap();
            for value in &mut values {
                *value *= 1.0 + 0.01 * (n + 1) as f32;
            }
            tensors.insert_f32(name, spec.shape.clone(), &values).unwrap();
        }
        let path = self.dir.path().join("submission.safetensors");
        let file = checkpoint::write_safetensors(&path, &tensors).unwrap();
        let key = format!("submissions/1/{n}/model.safetensors");
        artifacts.move_file(&key, &path).await.unwrap();
        common::Submission {
            hotkey: Hotkey::from_public_key([n as u8; 32]).as_str().to_owned(),
            key,
            model_hash: checkpoint::model_hash(&tensors).unwrap().to_hex(),
            sha256: file.sha256,
            bytes: file.bytes,
            block: 1,
        }
    }

    pub(crate) fn load(&self) -> LanguageModel {
        let (shared, experts) = (self.file(SliceId::Shared), self.file(SliceId::Group(GROUP)));
        LanguageModel::from_slices(&self.manifest, GROUP, &shared, &experts, self.options).unwrap()
    }

    fn slice_bytes(&self, id: SliceId) -> u64 {
        let file = checkpoint::open(&self.file(id), Limits::trusted()).unwrap();
        let elements = |spec: &checkpoint::TensorSpec| spec.shape.iter().product::<usize>() as u64;
        file.specs().values().map(elements).sum::<u64>() * self.weight_bytes
    }

    /// Bytes of a group's experts on the device.
    pub(crate) fn group_bytes(&self) -> u64 {
        self.slice_bytes(SliceId::Group(GROUP))
    }

    /// Bytes of the partial model on the device.
    pub(crate) fn base_bytes(&self) -> u64 {
        self.slice_bytes(SliceId::Shared) + self.group_bytes()
    }

    pub(crate) fn readable_group(&self) -> String {
        let million = |bytes: u64| bytes as f64 / self.weight_bytes as f64 / 1e6;
        let (group, all) = (million(self.group_bytes()), million(self.base_bytes()));
        format!("{group:.1} of {all:.1} million parameters")
    }

    pub(crate) fn environment(&self, worker: &str, url: &str) -> Vec<(&'static str, String)> {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let weights = if self.weight_bytes == 4 { "float32" } else { "bfloat16" };
        let addr = testkit::unused_addr().unwrap();
        vec![
            ("CONNITO_EVALUATOR_GRPC_ADDR", addr.to_string()),
            ("CONNITO_EVALUATOR_WORKER", worker.to_owned()),
            ("CONNITO_EVALUATOR_WEIGHTS", weights.to_owned()),
            ("CONNITO_EVALUATOR_DEVICE", self.options.device.to_string()),
            ("CONNITO_EVALUATOR_THREADS", self.threads.to_string()),
            ("CONNITO_EVALUATOR_TOKENIZER", at("hub/tokenizer.json")),
            ("CONNITO_EVALUATOR_CORPUS", at("texts")),
            ("CONNITO_EVALUATOR_HELD_OUT", at("texts")),
            ("CONNITO_EVALUATOR_HELD_OUT_BATCHES", "1".to_owned()),
            ("CONNITO_EVALUATOR_IDLE", "20ms".to_owned()),
            ("CONNITO_ARTIFACTS_URL", format!("file:{}", at("artifacts"))),
            ("CONNITO_DATA_DIR", at("data")),
            ("CONNITO_SCHEDULER_URL", url.to_owned()),
        ]
    }

    fn job(&self, id: String, kind: wire::JobKind) -> wire::Job {
        let [batches, rows, length] = self.arguments.map(|n| u32::try_from(n).unwrap());
        wire::Job {
            job_id: id,
            round_id: 1,
            fence: 3,
            attempt: 1,
            kind: kind.into(),
            model: Some(common::ModelRef {
                global_version: 1,
                model_hash: self.manifest.model_hash.to_hex(),
                prefix: PREFIX.to_owned(),
            }),
            expert_group: GROUP.0,
            seed: SEED.to_hex(),
            batches,
            batch_size: rows,
            sequence_length: length,
            lease_ms: 60_000,
            ..wire::Job::default()
        }
    }

    /// Makes a worker load the model.
    pub(crate) fn warm_up(&self, n: usize) -> wire::Job {
        self.job(format!("warm-up/{n}"), wire::JobKind::HeldOut)
    }

    /// The `n`-th score; submissions come again when there are no more.
    pub(crate) fn score(&self, n: usize) -> wire::Job {
        let submission = self.submissions.get(n % self.submissions.len()).cloned();
        wire::Job { submission, ..self.job(format!("score/{n}"), wire::JobKind::Score) }
    }
}
