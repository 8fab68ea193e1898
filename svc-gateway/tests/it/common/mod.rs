//! A gateway among fakes: a scheduler that says what a test wants, a folder of artifacts, miners with keys.

pub(crate) mod document;
mod miner;
mod model;
mod scheduler;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use checkpoint::{ExpertGroups, Format, HubModel, Manifest, Publication, SliceId, publish_model};
use domain::{
    BlockNumber, ExpertGroup, GlobalVersion, Hotkey, Schedule, block_message, submission_message,
};
use kit::{Common, Shutdown};
pub(crate) use miner::{Miner, hotkey_of, keypair, sign, vectors};
pub(crate) use model::republish;
use proto::{
    common::v1::ModelRef,
    gateway::v1::{GetStatusRequest, gateway_service_client::GatewayServiceClient},
    scheduler::v1 as wire,
};
use reqwest::{
    Client, RequestBuilder, Response, StatusCode,
    multipart::{Form, Part},
};
pub(crate) use scheduler::FakeScheduler;
use schnorrkel::Keypair;
use serde_json::Value;
use svc_gateway::{Config, Gateway, HubConfig};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::sleep};

/// First block of the Submission phase of cycle 0 in the default schedule: the round of the tests.
pub(crate) const ROUND: u64 = 336;
/// A block in the middle of it.
pub(crate) const NOW: u64 = 340;

/// A gateway, its scheduler and its disk.
pub(crate) struct World {
    pub(crate) scheduler: FakeScheduler,
    pub(crate) validator: Hotkey,
    pub(crate) manifest: Manifest,
    pub(crate) disk: TempDir,
    pub(crate) store_url: String,
    pub(crate) http: Client,
    pub(crate) url: String,
    pub(crate) grpc: SocketAddr,
    shutdown: Shutdown,
}

impl World {
    /// In the Submission phase, with these miners on the roster.
    pub(crate) async fn new(miners: &[&Miner]) -> Self {
        Self::with(miners, Config::default()).await
    }

    /// The same with other settings.
    pub(crate) async fn with(miners: &[&Miner], config: Config) -> Self {
        kit::install_crypto();
        let disk = tempfile::tempdir().unwrap();
        let manifest = publish(&disk.path().join("artifacts/models/100"));
        let validator = hotkey_of(&keypair(200));
        let scheduler = FakeScheduler::start().await;
        static WORLDS: AtomicU64 = AtomicU64::new(0);
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let mut world = Self {
            scheduler,
            validator,
            manifest,
            disk,
            store_url: format!("memory://gateway-test-{number}"),
            http: Client::new(),
            url: String::new(),
            grpc: ([127, 0, 0, 1], 0).into(),
            shutdown: Shutdown::default(),
        };
        let roster = miners.iter().zip(1..).map(|(miner, uid)| miner.on_roster(uid)).collect();
        world.scheduler.set(world.view(NOW, roster));
        (world.url, world.grpc) = world.gateway("data", config).await;
        world.until_ready().await;
        world
    }

    /// Starts a gateway in this world with a data folder of its own.
    pub(crate) async fn gateway(&self, data: &str, config: Config) -> (String, SocketAddr) {
        self.gateway_at(data, ([127, 0, 0, 1], 0).into(), config).await
    }

    /// The same on this address.
    pub(crate) async fn gateway_at(
        &self,
        data: &str,
        http_addr: SocketAddr,
        config: Config,
    ) -> (String, SocketAddr) {
        let grpc_addr = ([127, 0, 0, 1], 0).into();
        // Only a hub that a test started is ever asked.
        let ours = config.hub.url.starts_with("http://127.0.0.1:");
        let hub = HubConfig { enabled: config.hub.enabled && ours, ..config.hub };
        let config = Config { http_addr, grpc_addr, hub, ..config };
        let common = Common {
            store_url: self.store_url.clone(),
            artifacts_url: format!("file:{}", self.disk.path().join("artifacts").display()),
            data_dir: self.disk.path().join(data),
            scheduler_url: self.scheduler.url.clone(),
            ..Common::default()
        };
        let gateway = Gateway::bind(config, common).await.unwrap();
        let (http, grpc) = (gateway.http_addr(), gateway.grpc_addr());
        self.shutdown.spawn(gateway.serve(self.shutdown.clone()));
        (format!("http://{http}"), grpc)
    }

    /// Stops every gateway; false when they did not end in time.
    pub(crate) async fn stop(&self) -> bool {
        self.shutdown.drain(Duration::from_secs(10)).await
    }

    /// The validator's state at `block`, with an open round.
    pub(crate) fn view(&self, block: u64, miners: Vec<wire::Miner>) -> wire::RoundView {
        wire::RoundView {
            hotkey: self.validator.to_string(),
            block,
            schedule: Some(wire::Schedule { lengths: Schedule::default().lengths().to_vec() }),
            base: Some(ModelRef {
                global_version: 100,
                model_hash: self.manifest.model_hash.to_hex(),
                prefix: "models/100".into(),
            }),
            expert_group: 0,
            round: Some(wire::Round {
                round_id: ROUND,
                stage: wire::RoundStage::Evaluating.into(),
                traceparent: kit::trace::root(),
                uploads_open: true,
                miners,
                ..wire::Round::default()
            }),
            validators: vec![self.validator.to_string()],
            ..wire::RoundView::default()
        }
    }

    /// Changes the scheduler's view, and waits until the gateway acts on it.
    pub(crate) async fn change(&self, change: impl FnOnce(&mut wire::RoundView)) {
        let mut view = self.scheduler.view().unwrap();
        change(&mut view);
        // A block that no other view had shows when the gateway has it; it stays in its phase.
        let block = view.block;
        self.scheduler.set(view);
        self.until(&format!("block {block}"), || async move {
            let status = self.get("/status").await;
            status["block"] == block
        })
        .await;
        // The same block may have been there before: one more turn of the gateway's loop.
        sleep(Duration::from_millis(50)).await;
    }

    pub(crate) async fn until_ready(&self) {
        self.until("the gateway is ready", || async {
            let status = self.http.get(format!("{}/status", self.url)).send().await;
            status.is_ok_and(|response| response.status() != StatusCode::SERVICE_UNAVAILABLE)
        })
        .await;
    }

    /// Waits until `condition` holds.
    pub(crate) async fn until<F: Future<Output = bool>>(
        &self,
        what: &str,
        mut condition: impl FnMut() -> F,
    ) {
        for _ in 0..1000 {
            if condition().await {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain until {what}");
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let response = self.http.get(format!("{}{path}", self.url)).send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.json().await.unwrap();
        match status.as_u16() {
            200 => document::has_json("get", path, 200, &body),
            refused => document::has_refusal(path, refused, &headers, &body),
        }
        body
    }

    /// A signed download's form.
    pub(crate) fn download_form(&self, keys: &Keypair, block: u64) -> BTreeMap<String, String> {
        let message = block_message(&self.validator, BlockNumber(block));
        [
            ("target_hotkey_ss58", self.validator.to_string()),
            ("origin_hotkey_ss58", hotkey_of(keys).to_string()),
            ("origin_block", block.to_string()),
            ("signature", sign(keys, &message)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// A download of a slice, as today's miners ask for it: a form in the body of a GET.
    pub(crate) fn download(&self, slice: &str) -> RequestBuilder {
        let mut form = self.download_form(&keypair(1), NOW);
        form.insert("expert_group_id".into(), slice.into());
        self.http.get(format!("{}/get-checkpoint", self.url)).form(&form)
    }

    /// What the gateway at `url` tells this signer of a miner's file.
    pub(crate) async fn receipt(
        &self,
        url: &str,
        signer: &Keypair,
        round: &str,
        hotkey: &str,
    ) -> Response {
        let form = self.download_form(signer, self.scheduler.view().unwrap().block);
        self.http
            .get(format!("{url}/submissions/{round}/{hotkey}"))
            .form(&form)
            .send()
            .await
            .unwrap()
    }

    /// What an honest miner is told.
    pub(crate) async fn told(&self, miner: &Miner) -> Value {
        self.told_by(&self.url, miner).await
    }

    pub(crate) async fn told_by(&self, url: &str, miner: &Miner) -> Value {
        let round = ROUND.to_string();
        let response = self.receipt(url, &miner.keys, &round, miner.hotkey.as_str()).await;
        assert_eq!(response.headers()["cache-control"], "private, no-store");
        let path = response.url().path().to_owned();
        let (status, body) = (response.status(), response.json::<Value>().await.unwrap());
        assert_eq!(status, 200, "{body}");
        document::has_json("get", &path, 200, &body);
        body
    }

    /// The fields of an honest submission.
    pub(crate) fn fields(&self, miner: &Miner) -> Vec<(&'static str, String)> {
        self.fields_at(miner, NOW)
    }

    /// The same, signed at another block.
    pub(crate) fn fields_at(&self, miner: &Miner, block: u64) -> Vec<(&'static str, String)> {
        let message = submission_message(&miner.hash, &self.validator, BlockNumber(block));
        vec![
            ("target_hotkey_ss58", self.validator.to_string()),
            ("origin_hotkey_ss58", miner.hotkey.to_string()),
            ("origin_block", block.to_string()),
            ("model_hex", miner.hash.to_hex()),
            ("block_hex", hex::encode(block_message(&self.validator, BlockNumber(block)))),
            ("signature", sign(&miner.keys, &message)),
        ]
    }

    /// Sends these fields, then the file.
    pub(crate) async fn submit(
        &self,
        fields: Vec<(&'static str, String)>,
        file: &Path,
        name: &str,
    ) -> Response {
        self.submit_to(&self.url, fields, std::fs::read(file).unwrap(), name).await
    }

    pub(crate) async fn submit_to(
        &self,
        url: &str,
        fields: Vec<(&'static str, String)>,
        content: Vec<u8>,
        name: &str,
    ) -> Response {
        let mut form = Form::new();
        for (field, value) in fields {
            form = form.text(field, value);
        }
        let form = form.part("file", Part::bytes(content).file_name(name.to_owned()));
        self.http.post(format!("{url}/submit-checkpoint")).multipart(form).send().await.unwrap()
    }

    /// Submits as an honest miner.
    pub(crate) async fn submit_honestly(&self, miner: &Miner) -> Response {
        self.submit(self.fields(miner), &miner.file, &name_of(&miner.file)).await
    }

    /// The bytes of a submission's form, and the boundary in them.
    pub(crate) fn raw_form(&self, fields: &[(&str, String)], content: &[u8]) -> (Vec<u8>, String) {
        let boundary = "b0undary".to_owned();
        let mut body = Vec::new();
        for (name, value) in fields {
            let part = format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            );
            body.extend(part.into_bytes());
        }
        let head = "Content-Disposition: form-data; name=\"file\"; filename=\"model.pt\"";
        body.extend(format!("--{boundary}\r\n{head}\r\n\r\n").into_bytes());
        body.extend(content);
        body.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
        (body, boundary)
    }

    /// Opens a connection and sends the head of a submission that announces `length` bytes.
    pub(crate) async fn begin_raw(&self, boundary: &str, length: usize) -> TcpStream {
        let addr = self.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let head = format!(
            "POST /submit-checkpoint HTTP/1.1\r\nHost: gateway\r\n\
             Content-Type: multipart/form-data; boundary={boundary}\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    /// How many uploads the gateway says are in progress.
    pub(crate) async fn uploads(&self) -> u32 {
        let url = format!("http://{}", self.grpc);
        let mut client = GatewayServiceClient::connect(url).await.unwrap();
        client.get_status(GetStatusRequest {}).await.unwrap().into_inner().uploads
    }

    /// Every file of submissions and of the spool.
    pub(crate) fn traces(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for place in ["artifacts/submissions", "data/spool", "data2/spool"] {
            walk(&self.disk.path().join(place), &mut found);
        }
        found.retain(|path| path.file_name().is_some_and(|name| name != "lock"));
        found
    }

    /// Every file below a folder of this world's disk, without locks.
    pub(crate) fn below(&self, place: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.disk.path().join(place), &mut found);
        found.retain(|path| path.file_name().is_some_and(|name| name != "lock"));
        found
    }

    /// Waits until nothing of an upload is left.
    pub(crate) async fn until_no_traces(&self) {
        self.until("no trace is left", || async { self.traces().is_empty() }).await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Publishes the vectors' base model as version 100, group 0.
fn publish(folder: &Path) -> Manifest {
    let model = HubModel::open(&vectors().join("model/base")).unwrap();
    let groups = std::fs::read(vectors().join("model/expert_groups.json")).unwrap();
    let groups: ExpertGroups = serde_json::from_slice(&groups).unwrap();
    let publication = Publication {
        global_version: GlobalVersion(100),
        expert_group: ExpertGroup(0),
        parent: None,
        config: model.config().clone(),
        groups,
    };
    std::fs::create_dir_all(folder).unwrap();
    publish_model(folder, &model, publication).unwrap()
}

/// The bytes of a published file.
pub(crate) fn published(world: &World, slice: SliceId, format: Format) -> Vec<u8> {
    let name = slice.file_name(format);
    std::fs::read(world.disk.path().join("artifacts/models/100").join(name)).unwrap()
}

/// Asserts that a request was refused with this status and reason, in a body of the protocol's form.
pub(crate) async fn assert_refused(response: Response, status: u16, reason: &str) {
    let found = response.status().as_u16();
    let (path, headers) = (response.url().path().to_owned(), response.headers().clone());
    let body: Value = response.json().await.unwrap();
    document::has_refusal(&path, found, &headers, &body);
    assert_eq!((found, body["reason"].as_str().unwrap()), (status, reason), "{body}");
    assert!(!body["detail"].as_str().unwrap().is_empty());
}
