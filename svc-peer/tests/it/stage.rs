//! What tests of resyncs share: a model, its holders, and a validator without it.

use std::{collections::BTreeMap, path::Path, time::Duration};

use checkpoint::{
    Dtype, ExpertGroups, MemoryTensors, Publication, TensorSpec, publish_model, write_safetensors,
};
use domain::{ExpertGroup, GlobalVersion, Hotkey, ModelHash};
use kit::Tls;
use proto::{
    common::v1::ModelRef,
    peer::v1::{
        GetResyncRequest, ResyncStatus, StartResyncRequest, Validator,
        resync_service_client::ResyncServiceClient,
    },
};

use crate::{
    holder::{Deed, Holder},
    network::{Member, NEW_VERSION, ROUND},
};

/// The validator that lacks the model.
pub(crate) const LATE: u8 = 9;

pub(crate) type Resyncs = ResyncServiceClient<kit::Channel>;

/// Writes a model of a little more than 12 MiB, with its momentum; `seed` changes the group's
/// weights, `shared` the others.
pub(crate) fn publish(folder: &Path, seed: u8, shared: u8) -> ModelRef {
    let values = |len: usize, seed: u8| -> Vec<u8> {
        (0..len).map(|n| (n as u64 * 2_654_435_761 % 249) as u8 ^ seed).collect()
    };
    let mut model = MemoryTensors::default();
    let mut momentum = MemoryTensors::default();
    let mut add = |name: &str, len: usize, seed: u8| {
        let spec = TensorSpec { dtype: Dtype::BF16, shape: vec![len / 2] };
        model.insert(name, spec, values(len, seed)).unwrap();
    };
    add("model.embed_tokens.weight", 10 << 20, shared);
    for expert in 0..2 {
        for part in ["gate_up_proj", "down_proj"] {
            let name = format!("model.layers.1.mlp.experts.{expert}.{part}");
            add(&name, 1 << 19, seed);
            if expert == 0 {
                momentum.insert_f32(&name, vec![1 << 18], &vec![0.5; 1 << 18]).unwrap();
            }
        }
    }
    let groups: ExpertGroups =
        serde_json::from_str(r#"{"0":{"1":[[0,0]]},"1":{"1":[[0,1]]}}"#).unwrap();
    let publication = Publication {
        global_version: GlobalVersion(NEW_VERSION),
        expert_group: ExpertGroup(0),
        parent: Some(ModelHash([7; 24])),
        config: serde_json::json!({}),
        groups,
    };
    let manifest = publish_model(folder, &model, publication).unwrap();
    write_safetensors(&folder.join("optimizer_0.safetensors"), &momentum).unwrap();
    ModelRef {
        global_version: NEW_VERSION,
        model_hash: manifest.model_hash.to_hex(),
        prefix: format!("models/{NEW_VERSION}"),
    }
}

/// A folder with the model, and a validator without it.
pub(crate) struct Stage {
    pub(crate) dir: testkit::TempDir,
    pub(crate) model: ModelRef,
    pub(crate) late: Member,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        let dir = testkit::tempdir().unwrap();
        let model = publish(&dir.path().join("model"), 1, 2);
        let late = Member::new(LATE, 0.0).await;
        Self { dir, model, late }
    }

    pub(crate) fn folder(&self) -> std::path::PathBuf {
        self.dir.path().join("model")
    }

    pub(crate) async fn holder(&self, seed: u8, deed: Deed) -> Holder {
        Holder::start(seed, &self.folder(), NEW_VERSION, deed).await
    }

    /// Starts the late validator, which knows these holders.
    pub(crate) async fn start(&mut self, holders: &[&Holder]) {
        let url = |holder: &&Holder| (holder.hotkey.clone(), format!("http://{}", holder.addr));
        self.late.config.peer_urls = holders.iter().map(url).collect();
        self.late.start().await;
    }

    pub(crate) async fn bring(&self, holders: &[(&Holder, u64)]) -> ResyncStatus {
        let holders: Vec<_> = holders.iter().map(|(h, stake)| (h.hotkey.clone(), *stake)).collect();
        bring(&self.late, &self.model, &holders).await
    }

    /// Every file of the model is at `prefix` of the late validator, with the same bytes.
    pub(crate) fn assert_brought(&self, status: &ResyncStatus, prefix: &str) {
        assert_eq!(status.state, "done", "{status:?}");
        assert_eq!(status.model.as_ref().unwrap().prefix, prefix);
        let there = self.late.artifacts().join(prefix);
        let mut count = 0;
        for entry in std::fs::read_dir(self.folder()).unwrap() {
            let path = entry.unwrap().path();
            let same = std::fs::read(&path).unwrap()
                == std::fs::read(there.join(path.file_name().unwrap())).unwrap();
            assert!(same, "{} differs", path.display());
            count += 1;
        }
        // Whole, shared and two groups, in two formats; manifest and momentum.
        assert_eq!(count, 10);
    }
}

pub(crate) fn resyncs(member: &Member) -> Resyncs {
    ResyncServiceClient::new(kit::channel(&member.url(), &Tls::default()).unwrap())
}

pub(crate) fn request(
    member: &Member,
    model: &ModelRef,
    holders: &[(Hotkey, u64)],
) -> StartResyncRequest {
    let holder = |(hotkey, stake): &(Hotkey, u64)| Validator {
        hotkey: hotkey.to_string(),
        axon: String::new(),
        stake: *stake,
    };
    StartResyncRequest {
        round_id: ROUND,
        model: Some(model.clone()),
        expert_group: 0,
        holders: holders.iter().map(holder).collect(),
        hotkey: member.hotkey.to_string(),
        deadline_ms: 120_000,
        traceparent: kit::trace::root(),
    }
}

pub(crate) async fn status(member: &Member, model: &ModelRef) -> ResyncStatus {
    let request = GetResyncRequest { model_hash: model.model_hash.clone() };
    resyncs(member).get_resync(request).await.unwrap().into_inner()
}

/// Polls until `there`.
pub(crate) async fn until(
    member: &Member,
    model: &ModelRef,
    there: impl Fn(&ResyncStatus) -> bool,
) -> ResyncStatus {
    let poll = async {
        loop {
            let status = status(member, model).await;
            if there(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(300), poll).await.expect("it comes to this")
}

/// Starts a resync and waits for its end.
pub(crate) async fn bring(
    member: &Member,
    model: &ModelRef,
    holders: &[(Hotkey, u64)],
) -> ResyncStatus {
    resyncs(member).start_resync(request(member, model, holders)).await.unwrap();
    until(member, model, |status| status.state != "running").await
}

/// Lets the scheduler of `member` name `others`, by a resync of a model that it has.
pub(crate) async fn name(member: &Member, model: &ModelRef, others: &[Hotkey]) {
    let others: Vec<_> = others.iter().map(|other| (other.clone(), 1)).collect();
    let there = resyncs(member).start_resync(request(member, model, &others)).await.unwrap();
    assert_eq!(there.into_inner().state, "done");
}

pub(crate) fn blamed(status: &ResyncStatus) -> BTreeMap<&str, &str> {
    status.blamed.iter().map(|one| (one.hotkey.as_str(), one.reason.as_str())).collect()
}
