//! What the demonstration rests on: a few cycles of training, merging and measuring make the model
//! better each time, on texts that nobody trained on.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use checkpoint::{
    Contribution, Format, HubModel, Limits, Manifest, MemoryTensors, OuterSgd, PseudoGradient,
    Publication, PublishedModel, SliceId, TensorSource as _,
};
use data::{Batch, Corpus, TokenizedCorpus, Tokenizer, held_out_seed};
use domain::{ExpertGroup, GlobalVersion, Hotkey, Seed};
use model::{
    Device, LanguageModel, LoadOptions, corpus, init, mean_loss, single_threaded,
    train::{DEMO_STEPS, TrainOptions, Trainer},
};

const GROUP: ExpertGroup = ExpertGroup(0);

fn seed(parts: [u8; 3]) -> Seed {
    let mut seed = [0; 32];
    seed[..3].copy_from_slice(&parts);
    Seed(seed)
}

struct Subnet {
    dir: tempfile::TempDir,
    train: TokenizedCorpus,
    held_out: Vec<Batch>,
    manifest: Manifest,
    model: PathBuf,
    momentum: Option<MemoryTensors>,
}

impl Subnet {
    /// A corpus, a random model and its first publication.
    fn begin(number: u8) -> Self {
        single_threaded();
        let dir = tempfile::tempdir().unwrap();
        let folders = corpus::write(&dir.path().join("corpus"), &seed([number, 1, 0])).unwrap();
        let train = Corpus::open(&folders.train, 16).unwrap();
        let held_out = Corpus::open(&folders.held_out, 16).unwrap();
        let (config, hub) = (init::demo_config(), dir.path().join("hub"));
        init::random(&hub, &config, &seed([number, 2, 0]), train.texts()).unwrap();
        let tokenizer = Tokenizer::open(&hub.join("tokenizer.json")).unwrap();
        let tokens = |corpus| TokenizedCorpus::new(corpus, &tokenizer, 1).unwrap();
        let options = TrainOptions::default();
        let held_out = tokens(&held_out)
            .draw(&held_out_seed(), 8, options.batch_size, options.sequence_length)
            .unwrap();
        let model = dir.path().join("models-0");
        let publication = Publication {
            global_version: GlobalVersion(0),
            expert_group: GROUP,
            parent: None,
            groups: init::demo_groups(&config, 2).unwrap(),
            config,
        };
        let hub = HubModel::open(&hub).unwrap();
        let manifest = checkpoint::publish_model(&model, &hub, publication).unwrap();
        let train = tokens(&train);
        Self { dir, train, held_out, manifest, model, momentum: None }
    }

    fn load(&self) -> LanguageModel {
        let file = |id| {
            self.model.join(&self.manifest.slice(id).unwrap().files[&Format::Safetensors].name)
        };
        LanguageModel::from_slices(
            &self.manifest,
            GROUP,
            &file(SliceId::Shared),
            &file(SliceId::Group(GROUP)),
            LoadOptions { device: device(), ..LoadOptions::default() },
        )
        .unwrap()
    }

    fn loss(&self) -> f64 {
        mean_loss(&self.load().losses(&self.held_out).unwrap())
    }

    /// Trains as one miner and writes its file; the held-out loss of what it made.
    fn mine(&self, miner_seed: &Seed, steps: usize, path: &Path) -> f64 {
        let mut trainer = Trainer::new(self.load()).unwrap();
        let options = TrainOptions { steps, ..TrainOptions::default() };
        let report = trainer.train(&self.train, miner_seed, &options, || false).unwrap();
        assert_eq!(report.losses.len(), steps);
        trainer.export(path, Format::Safetensors).unwrap();
        let mut model = self.load();
        model.overlay(&checkpoint::open(path, Limits::default()).unwrap()).unwrap();
        mean_loss(&model.losses(&self.held_out).unwrap())
    }

    /// Steps the outer optimizer over the miners' files and publishes what comes out.
    fn merge(&mut self, files: &[PathBuf]) {
        let contributions = files
            .iter()
            .enumerate()
            .map(|(n, path)| Contribution {
                hotkey: Hotkey::from_public_key([n as u8; 32]),
                weight: 1.0,
                path: path.clone(),
                model_hash: None,
            })
            .collect();
        let layout = self.manifest.layout(GROUP).unwrap();
        let base = PublishedModel::open(&self.model).unwrap();
        let gradient =
            PseudoGradient::new(&base, &layout, contributions, Limits::default()).unwrap();
        assert!(gradient.skipped().is_empty(), "{:?}", gradient.skipped());
        let (mut stepped, mut momentum) = (MemoryTensors::default(), MemoryTensors::default());
        for part in gradient.iter() {
            let (name, gradient) = part.unwrap();
            let mut values = base.to_f32(name).unwrap();
            let mut velocity = match &self.momentum {
                Some(momentum) => momentum.to_f32(name).unwrap(),
                None => vec![0.0; values.len()],
            };
            OuterSgd::default().step(&mut values, &mut velocity, &gradient).unwrap();
            let shape = layout.tensors[name].shape.clone();
            stepped.insert_f32(name, shape.clone(), &values).unwrap();
            momentum.insert_f32(name, shape, &velocity).unwrap();
        }
        drop(gradient);
        let version = GlobalVersion(self.manifest.global_version.0 + 1);
        let folder = self.dir.path().join(format!("models-{version}"));
        let publication = Publication {
            global_version: version,
            expert_group: GROUP,
            parent: Some(self.manifest.model_hash),
            config: self.manifest.config.clone(),
            groups: self.manifest.groups.clone(),
        };
        let next = checkpoint::overlay(Box::new(base), Box::new(stepped)).unwrap();
        self.manifest = checkpoint::publish_model(&folder, &next, publication).unwrap();
        self.model = folder;
        self.momentum = Some(momentum);
    }

    /// One cycle; the held-out losses of the miners.
    fn cycle(&mut self, number: u8, cycle: u8, steps: &[usize]) -> Vec<f64> {
        let (mut files, mut losses) = (Vec::new(), Vec::new());
        for (miner, steps) in steps.iter().enumerate() {
            let path = self.dir.path().join(format!("{cycle}-{miner}.safetensors"));
            losses.push(self.mine(&seed([number, 3 + cycle, miner as u8]), *steps, &path));
            files.push(path);
        }
        self.merge(&files);
        losses
    }
}

#[test]
fn the_held_out_loss_falls_in_every_cycle_and_more_effort_scores_better() {
    let number = 1;
    let mut subnet = Subnet::begin(number);
    let mut losses = vec![subnet.loss()];
    for cycle in 0..3 {
        let miners = subnet.cycle(number, cycle, &[DEMO_STEPS, DEMO_STEPS / 2]);
        let before = losses[losses.len() - 1];
        assert!(miners.iter().all(|loss| *loss < before), "{miners:?} from {before}");
        assert!(miners.is_sorted(), "less effort, better loss: {miners:?}");
        losses.push(subnet.loss());
    }
    let falls: Vec<_> = losses.windows(2).map(|pair| pair[0] - pair[1]).collect();
    assert!(falls.iter().all(|fall| *fall > 0.1), "seed {number}: {losses:?}");
}

#[test]
fn honest_trainings_from_one_base_are_not_near_copies_and_a_noisy_copy_is_one() {
    let subnet = Subnet::begin(4);
    let base = subnet.model.join(
        &subnet.manifest.slice(SliceId::Group(GROUP)).unwrap().files[&Format::Safetensors].name,
    );
    let base = checkpoint::open(&base, Limits::trusted()).unwrap();
    let train = |miner: u8, steps: usize| {
        let mut trainer = Trainer::new(subnet.load()).unwrap();
        let options = TrainOptions { steps, ..TrainOptions::default() };
        trainer.train(&subnet.train, &seed([4, 9, miner]), &options, || false).unwrap();
        trainer.experts().unwrap()
    };
    let sketch = |tensors: &MemoryTensors| checkpoint::sketch(tensors, &base, &seed([4, 8, 0]));
    let honest = [train(0, 2 * DEMO_STEPS), train(1, 2 * DEMO_STEPS), train(2, DEMO_STEPS)];
    let sketches = honest.each_ref().map(|tensors| sketch(tensors).unwrap());
    let limit = domain::DuplicatePolicy::default().similarity;
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        let cosine = sketches[a].cosine(&sketches[b]).unwrap();
        // The sketches estimate it to about 0.002 here.
        assert!(cosine < limit - 0.01, "miners {a} and {b}: {cosine} of {limit}");
    }

    // A fiftieth of the difference's own size, with a sign that alternates.
    let mut noisy = MemoryTensors::default();
    for (name, spec) in honest[0].specs() {
        let (mut values, before) = (honest[0].to_f32(name).unwrap(), base.to_f32(name).unwrap());
        for (n, (value, before)) in values.iter_mut().zip(before).enumerate() {
            let part = if n % 2 == 0 { 0.02 } else { -0.02 };
            *value += part * (*value - before);
        }
        noisy.insert_f32(name, spec.shape.clone(), &values).unwrap();
    }
    let cosine = sketches[0].cosine(&sketch(&noisy).unwrap()).unwrap();
    assert!(cosine >= limit, "{cosine} of {limit}");
}

#[test]
fn the_same_seed_trains_the_same_bits_and_a_stop_ends_the_training() {
    let subnet = Subnet::begin(2);
    let train = |stop_after: usize| {
        let mut trainer = Trainer::new(subnet.load()).unwrap();
        let options = TrainOptions { steps: 4, ..TrainOptions::default() };
        let mut left = stop_after;
        let stop = || {
            left = left.saturating_sub(1);
            left == 0
        };
        let report = trainer.train(&subnet.train, &seed([9, 9, 9]), &options, stop).unwrap();
        (report.losses.len(), trainer.experts().unwrap())
    };
    let (whole, stopped) = (train(100), train(3));
    assert_eq!(whole, train(100));
    assert_eq!((whole.0, stopped.0), (4, 2));
    assert_ne!(whole.1, stopped.1);
    let layout = subnet.manifest.layout(GROUP).unwrap();
    assert_eq!(whole.1.specs(), &layout.tensors, "a submission has the group's tensors");
}

/// Where the models of these tests run: the processor, unless `CONNITO_DEVICE` names another device.
fn device() -> Device {
    std::env::var("CONNITO_DEVICE").map_or(Device::Cpu, |name| name.parse().unwrap())
}
