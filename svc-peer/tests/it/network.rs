//! A small network of validators in one process: each with its own hotkey (a chain service that
//! only signs), folder, and the real service on a port of its own.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use checkpoint::{ExpertGroups, HubModel, Publication, publish_model};
use domain::{ExpertGroup, GlobalVersion, Hotkey};
use kit::{Common, Shutdown, Tls};
use proto::{
    common::v1::{ModelRef, Submission},
    peer::v1::{
        Contribution, GetMergeRequest, MergeState, MergeStatus, StartMergeRequest, Validator,
        merge_service_client::MergeServiceClient,
    },
};
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey};
use svc_peer::{Bound, Conduct, Config, Honest, message};

use crate::chain::Chain;

pub(crate) const ROUND: u64 = 336;
pub(crate) const BASE_VERSION: u64 = 300;
pub(crate) const NEW_VERSION: u64 = 406;

pub(crate) fn vectors() -> PathBuf {
    match std::env::var_os("CONNITO_VECTORS") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors"),
    }
}

pub(crate) fn expected_hash(file: &str) -> String {
    let json = std::fs::read_to_string(vectors().join("model/expected.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json[file]["model_hash"].as_str().unwrap().to_owned()
}

pub(crate) fn keypair(seed: u8) -> Keypair {
    MiniSecretKey::from_bytes(&[seed; 32]).unwrap().expand_to_keypair(ExpansionMode::Ed25519)
}

pub(crate) fn hotkey(seed: u8) -> Hotkey {
    Hotkey::from_public_key(keypair(seed).public.to_bytes())
}

pub(crate) fn sign(seed: u8, digest: &[u8; 32]) -> [u8; 64] {
    keypair(seed).sign_simple(b"substrate", &message::signed_bytes(digest)).to_bytes()
}

/// Publishes the vectors' model as version [`BASE_VERSION`] below `artifacts`, with `nudge` added
/// to one value, and returns it.
pub(crate) fn publish_base(artifacts: &Path, group: u32, nudge: f32) -> ModelRef {
    use checkpoint::{MemoryTensors, TensorSource as _, overlay};

    let hub = HubModel::open(&vectors().join("model/base")).unwrap();
    let groups = std::fs::read(vectors().join("model/expert_groups.json")).unwrap();
    let groups: ExpertGroups = serde_json::from_slice(&groups).unwrap();
    let publication = Publication {
        global_version: GlobalVersion(BASE_VERSION),
        expert_group: ExpertGroup(group),
        parent: None,
        config: hub.config().clone(),
        groups,
    };
    let prefix = format!("models/{BASE_VERSION}");
    let folder = artifacts.join(&prefix);
    let mut over = MemoryTensors::default();
    if nudge != 0.0 {
        for (name, spec) in hub.specs().iter().filter(|(name, _)| name.contains(".experts.")) {
            let mut values = hub.to_f32(name).unwrap();
            values[0] += nudge;
            over.insert_f32(name, spec.shape.clone(), &values).unwrap();
        }
    }
    let whole = overlay(Box::new(hub), Box::new(over)).unwrap();
    let manifest = publish_model(&folder, &whole, publication).unwrap();
    ModelRef { global_version: BASE_VERSION, model_hash: manifest.model_hash.to_hex(), prefix }
}

/// A submission: the miner's seed, its file among the vectors, the hash that it committed to.
pub(crate) type Miner<'a> = (u8, &'a str, String, f64);

/// A miner of the vectors, with its right hash.
pub(crate) fn miner(seed: u8, file: &str, weight: f64) -> Miner<'_> {
    let stem = file.split('.').next().unwrap();
    (seed, file, expected_hash(stem), weight)
}

/// A validator: its folder and settings outlive its service.
pub(crate) struct Member {
    pub(crate) seed: u8,
    pub(crate) hotkey: Hotkey,
    pub(crate) dir: testkit::TempDir,
    pub(crate) base: ModelRef,
    pub(crate) addr: SocketAddr,
    pub(crate) chain: Chain,
    pub(crate) config: Config,
    pub(crate) conduct: Arc<dyn Conduct>,
    /// State store, where it is not this process's memory.
    pub(crate) store_url: Option<String>,
    service: Option<(Shutdown, tokio::task::JoinHandle<()>)>,
}

impl Member {
    /// A validator with a published base, not running yet.
    pub(crate) async fn new(seed: u8, nudge: f32) -> Self {
        let dir = testkit::tempdir().unwrap();
        let base = publish_base(&dir.path().join("artifacts"), 0, nudge);
        Self::with_base(seed, dir, base).await
    }

    /// A validator with this base in its folder, not running yet.
    pub(crate) async fn with_base(seed: u8, dir: testkit::TempDir, base: ModelRef) -> Self {
        let addr = testkit::unused_addr().unwrap();
        let mut config: Config = kit::config::load_with(None, "peer", |_| None).unwrap();
        config.grpc_addr = addr;
        config.answer_wait = Duration::from_secs(2);
        config.call_timeout = Duration::from_secs(5);
        config.chunk_elements = 1024;
        let chain = Chain::start(seed).await;
        Self {
            seed,
            hotkey: hotkey(seed),
            dir,
            base,
            addr,
            chain,
            config,
            conduct: Arc::new(Honest),
            store_url: None,
            service: None,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Where other members reach it.
    pub(crate) fn peer_addr(&self) -> SocketAddr {
        self.config.peer_addr.unwrap_or(self.addr)
    }

    /// How other members reach it.
    pub(crate) fn scheme(&self) -> &'static str {
        match self.config.peer_addr {
            Some(_) if self.config.peer_tls => "https",
            Some(_) | None => "http",
        }
    }

    pub(crate) fn peer_url(&self) -> String {
        format!("{}://{}", self.scheme(), self.peer_addr())
    }

    pub(crate) fn artifacts(&self) -> PathBuf {
        self.dir.path().join("artifacts")
    }

    pub(crate) fn common(&self) -> Common {
        Common {
            store_url: self
                .store_url
                .clone()
                .unwrap_or_else(|| format!("memory://peer-{}-{}", self.seed, self.addr.port())),
            artifacts_url: format!("file:{}", self.artifacts().display()),
            data_dir: self.dir.path().join("data"),
            chain_url: self.chain.url.clone(),
            ..Common::default()
        }
    }

    /// Starts the service.
    pub(crate) async fn start(&mut self) {
        let (config, common) = (self.config.clone(), self.common());
        let conduct = Arc::clone(&self.conduct);
        let bound = Bound::bind(&config, &common).await.unwrap();
        let shutdown = Shutdown::default();
        let stop = shutdown.clone();
        let run =
            async move { svc_peer::serve(bound, conduct, config, common, stop).await.unwrap() };
        let task = shutdown.spawn(run);
        self.service = Some((shutdown, task));
    }

    /// Stops the service at once, wherever it is.
    pub(crate) async fn kill(&mut self) {
        if let Some((shutdown, task)) = self.service.take() {
            task.abort();
            let _ = task.await;
            shutdown.cancel();
            shutdown.drain(Duration::from_secs(20)).await;
        }
    }

    /// Puts submissions into the artifact store.
    pub(crate) fn submit(&self, miners: &[Miner<'_>]) -> Vec<Contribution> {
        let put = |(seed, file, hash, weight): &Miner<'_>| {
            let miner = hotkey(*seed);
            let key = format!("submissions/{ROUND}/{miner}/{file}");
            let to = self.artifacts().join(&key);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(vectors().join("model").join(file), &to).unwrap();
            let submission = Submission {
                hotkey: miner.to_string(),
                key,
                model_hash: hash.clone(),
                ..Submission::default()
            };
            Contribution { submission: Some(submission), weight: *weight }
        };
        miners.iter().map(put).collect()
    }

    /// A request to merge with these validators.
    pub(crate) fn request(&self, others: &[Hotkey], miners: &[Miner<'_>]) -> StartMergeRequest {
        let validators = others
            .iter()
            .filter(|other| **other != self.hotkey)
            .map(|other| Validator { hotkey: other.to_string(), axon: String::new(), stake: 1 })
            .collect();
        StartMergeRequest {
            round_id: ROUND,
            base: Some(self.base.clone()),
            expert_group: 0,
            new_version: NEW_VERSION,
            contributions: self.submit(miners),
            validators,
            hotkey: self.hotkey.to_string(),
            deadline_ms: 60_000,
            allow_solo: false,
            traceparent: kit::trace::root(),
            block_hash: "ab".repeat(32),
            elapsed_ms: 0,
            stake: 1,
            absent: Vec::new(),
        }
    }

    pub(crate) fn merges(&self) -> MergeServiceClient<kit::Channel> {
        MergeServiceClient::new(kit::channel(&self.url(), &Tls::default()).unwrap())
    }

    /// Starts a merge.
    pub(crate) async fn begin(&self, request: StartMergeRequest) -> MergeStatus {
        self.merges().start_merge(request).await.unwrap().into_inner()
    }

    /// Waits for the end of a round's merge.
    pub(crate) async fn end(&self, round_id: u64) -> MergeStatus {
        let mut merges = self.merges();
        let ended = async {
            loop {
                let status = merges.get_merge(GetMergeRequest { round_id }).await.unwrap();
                let status = status.into_inner();
                if status.state() == MergeState::Ended {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(300), ended).await.expect("the merge ends")
    }

    /// Starts a merge and waits for its end.
    pub(crate) async fn merge(&self, request: StartMergeRequest) -> MergeStatus {
        let round = request.round_id;
        self.begin(request).await;
        self.end(round).await
    }

    /// A file of the artifact store.
    pub(crate) fn file(&self, key: &str) -> Vec<u8> {
        std::fs::read(self.artifacts().join(key)).unwrap()
    }

    /// A JSON file of the artifact store.
    pub(crate) fn json(&self, key: &str) -> serde_json::Value {
        serde_json::from_slice(&self.file(key)).unwrap()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some((shutdown, _)) = &self.service {
            shutdown.cancel();
        }
    }
}

/// Validators with these seeds and equal bases, that know each other's URLs.
pub(crate) async fn members(seeds: &[u8]) -> Vec<Member> {
    let mut members = Vec::new();
    for seed in seeds {
        members.push(Member::new(*seed, 0.0).await);
    }
    introduce(&mut members);
    members
}

/// Tells everybody everybody's URL.
pub(crate) fn introduce(members: &mut [Member]) {
    let urls: BTreeMap<Hotkey, String> =
        members.iter().map(|member| (member.hotkey.clone(), member.peer_url())).collect();
    members.iter_mut().for_each(|member| member.config.peer_urls.clone_from(&urls));
}

pub(crate) fn hotkeys(members: &[Member]) -> Vec<Hotkey> {
    members.iter().map(|member| member.hotkey.clone()).collect()
}

/// The names of a model's files, ascending.
pub(crate) fn model_files(member: &Member, version: u64) -> Vec<String> {
    let folder = member.artifacts().join(format!("models/{version}"));
    let names = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every file of a model is the same for both.
pub(crate) fn assert_same_model(one: &Member, other: &Member, version: u64) {
    let names = model_files(one, version);
    assert_eq!(names, model_files(other, version));
    for name in names {
        let key = format!("models/{version}/{name}");
        assert!(one.file(&key) == other.file(&key), "{name} differs");
    }
}

/// The outcome of a merge that has ended.
pub(crate) fn outcome(status: &MergeStatus) -> &str {
    assert_eq!(status.state(), MergeState::Ended);
    &status.outcome
}

/// Whom a merge has left out, each as `hotkey (reason)`.
pub(crate) fn dropped(status: &MergeStatus) -> Vec<String> {
    status.dropped.iter().map(|one| format!("{} ({})", one.hotkey, one.reason)).collect()
}

/// Hash of the model after a merge.
pub(crate) fn hash(status: &MergeStatus) -> &str {
    &status.model.as_ref().unwrap().model_hash
}

/// Two usable submissions of the vectors.
pub(crate) const GOOD: (&str, &str) = ("miner1_g0.safetensors", "miner2_g0.pt");
