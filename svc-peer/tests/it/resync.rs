//! Models from other validators: whole, or by name why not, whatever their holders do.

use std::{collections::BTreeMap, path::Path, time::Duration};

use checkpoint::{
    Dtype, ExpertGroups, Manifest, MemoryTensors, Publication, TensorSpec, publish_model,
    write_safetensors,
};
use domain::{ExpertGroup, GlobalVersion, Hotkey, ModelHash, RoundId};
use futures::future::join_all;
use kit::Tls;
use proto::{
    common::v1::ModelRef,
    peer::{
        v1::{
            GetResyncRequest, ResyncStatus, StartResyncRequest, Validator,
            resync_service_client::ResyncServiceClient,
        },
        v2::{self, model_service_client::ModelServiceClient},
    },
};
use svc_peer::{
    messages::{Body, Envelope},
    resync::message::{Holdings, HoldingsRequest, ShardRequest},
};
use tonic::Code;

use crate::{
    holder::{Deed, Holder, files},
    hostile::{assert_refused, sealed},
    network::{
        GOOD, Member, NEW_VERSION, ROUND, assert_same_model, hotkey, hotkeys, members, miner,
        model_files, outcome,
    },
};

/// The validator that lacks the model.
const LATE: u8 = 9;

type Resyncs = ResyncServiceClient<kit::Channel>;

/// Writes a model of a little more than 12 MiB, with its momentum; `seed` changes the group's
/// weights, `shared` the others.
fn publish(folder: &Path, seed: u8, shared: u8) -> ModelRef {
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
struct Stage {
    dir: testkit::TempDir,
    model: ModelRef,
    late: Member,
}

impl Stage {
    async fn new() -> Self {
        let dir = testkit::tempdir().unwrap();
        let model = publish(&dir.path().join("model"), 1, 2);
        let late = Member::new(LATE, 0.0).await;
        Self { dir, model, late }
    }

    fn folder(&self) -> std::path::PathBuf {
        self.dir.path().join("model")
    }

    async fn holder(&self, seed: u8, deed: Deed) -> Holder {
        Holder::start(seed, &self.folder(), NEW_VERSION, deed).await
    }

    /// Starts the late validator, which knows these holders.
    async fn start(&mut self, holders: &[&Holder]) {
        let url = |holder: &&Holder| (holder.hotkey.clone(), format!("http://{}", holder.addr));
        self.late.config.peer_urls = holders.iter().map(url).collect();
        self.late.start().await;
    }

    async fn bring(&self, holders: &[(&Holder, u64)]) -> ResyncStatus {
        let holders: Vec<_> = holders.iter().map(|(h, stake)| (h.hotkey.clone(), *stake)).collect();
        bring(&self.late, &self.model, &holders).await
    }

    /// Every file of the model is at `prefix` of the late validator, with the same bytes.
    fn assert_brought(&self, status: &ResyncStatus, prefix: &str) {
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

fn resyncs(member: &Member) -> Resyncs {
    ResyncServiceClient::new(kit::channel(&member.url(), &Tls::default()).unwrap())
}

fn request(member: &Member, model: &ModelRef, holders: &[(Hotkey, u64)]) -> StartResyncRequest {
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

async fn status(member: &Member, model: &ModelRef) -> ResyncStatus {
    let request = GetResyncRequest { model_hash: model.model_hash.clone() };
    resyncs(member).get_resync(request).await.unwrap().into_inner()
}

/// Polls until `there`.
async fn until(
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
async fn bring(member: &Member, model: &ModelRef, holders: &[(Hotkey, u64)]) -> ResyncStatus {
    resyncs(member).start_resync(request(member, model, holders)).await.unwrap();
    until(member, model, |status| status.state != "running").await
}

/// Lets the scheduler of `member` name `others`, by a resync of a model that it has.
async fn name(member: &Member, model: &ModelRef, others: &[Hotkey]) {
    let others: Vec<_> = others.iter().map(|other| (other.clone(), 1)).collect();
    let there = resyncs(member).start_resync(request(member, model, &others)).await.unwrap();
    assert_eq!(there.into_inner().state, "done");
}

fn blamed(status: &ResyncStatus) -> BTreeMap<&str, &str> {
    status.blamed.iter().map(|one| (one.hotkey.as_str(), one.reason.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_that_missed_a_merge_gets_the_very_files_of_those_that_made_it() {
    let mut all = members(&[1, 2, LATE]).await;
    let merging = hotkeys(&all[..2]);
    join_all(all.iter_mut().map(Member::start)).await;
    let merges = all[..2].iter().map(|m| m.merge(m.request(&merging, &[miner(11, GOOD.0, 1.0)])));
    let merged = join_all(merges).await;
    assert_eq!(outcome(&merged[0]), "merged", "{}", merged[0].detail);
    let model = merged[0].model.clone().unwrap();
    for member in &all[..2] {
        name(member, &model, &[hotkey(LATE)]).await;
    }

    let late = &all[2];
    let holders: Vec<_> = merging.iter().map(|holder| (holder.clone(), 5)).collect();
    let status = bring(late, &model, &holders).await;
    assert_eq!(status.state, "done", "{status:?}");
    assert_eq!(status.model, Some(model.clone()));
    assert!(status.total > 0 && status.bytes == status.total && status.blamed.is_empty());
    assert_same_model(&all[0], late, NEW_VERSION);
    assert!(model_files(late, NEW_VERSION).contains(&"optimizer_0.safetensors".to_owned()));
    assert!(!late.dir.path().join("data/peer/resync/files").join(&model.model_hash).exists());

    // Once done it stays done, after a restart too, and others may have it from there.
    assert_eq!(bring(late, &model, &holders).await, status);
    all[2].kill().await;
    all[2].start().await;
    let again = resyncs(&all[2]).start_resync(request(&all[2], &model, &holders)).await.unwrap();
    assert_eq!(again.into_inner().model, Some(model));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_dies_in_the_middle_costs_nothing_but_itself() {
    let mut stage = Stage::new().await;
    let dies = stage.holder(1, Deed::Dies(3)).await;
    let others = [stage.holder(2, Deed::Honest).await, stage.holder(3, Deed::Honest).await];
    stage.start(&[&dies, &others[0], &others[1]]).await;
    let status = stage.bring(&[(&dies, 1), (&others[0], 1), (&others[1], 1)]).await;
    stage.assert_brought(&status, "models/406");
    assert!(status.blamed.is_empty(), "{status:?}");
    assert!(dies.served() > 0 && others.iter().all(|holder| holder.served() > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_sends_garbage_is_found_at_its_first_chunk_and_named() {
    let mut stage = Stage::new().await;
    let (liar, honest) =
        (stage.holder(1, Deed::Garbage).await, stage.holder(2, Deed::Honest).await);
    stage.start(&[&liar, &honest]).await;
    let status = stage.bring(&[(&liar, 9), (&honest, 1)]).await;
    stage.assert_brought(&status, "models/406");
    assert_eq!(blamed(&status), [(liar.hotkey.as_str(), "wrong_chunk")].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_digests_that_was_not_signed_is_not_taken() {
    let mut stage = Stage::new().await;
    let liar = stage.holder(1, Deed::OtherList).await;
    let honest = stage.holder(2, Deed::Honest).await;
    stage.start(&[&liar, &honest]).await;
    // Hotkeys are asked in their order: the liar may be asked first or not at all.
    let status = stage.bring(&[(&liar, 9), (&honest, 1)]).await;
    stage.assert_brought(&status, "models/406");
    let liars = blamed(&status);
    assert!(liars.is_empty() || liars == [(liar.hotkey.as_str(), "wrong_list")].into());

    let alone = Stage::new().await;
    let mut late = alone.late;
    late.config.peer_urls = [(liar.hotkey.clone(), format!("http://{}", liar.addr))].into();
    late.start().await;
    let status = bring(&late, &alone.model, &[(liar.hotkey.clone(), 9)]).await;
    assert_eq!((status.state.as_str(), status.reason.as_str()), ("failed", "nobody_honest"));
    assert_eq!(blamed(&status), [(liar.hotkey.as_str(), "wrong_list")].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_signs_other_files_is_proven_a_liar_however_much_stake_it_has() {
    let mut stage = Stage::new().await;
    // Its manifest tells the hash that is wanted, its files are another model's.
    let other = stage.dir.path().join("other");
    publish(&other, 100, 2);
    std::fs::copy(stage.folder().join("manifest.json"), other.join("manifest.json")).unwrap();
    let liar = Holder::start(1, &other, NEW_VERSION, Deed::Honest).await;
    let honest = stage.holder(2, Deed::Honest).await;
    stage.start(&[&liar, &honest]).await;
    let status = stage.bring(&[(&liar, 100), (&honest, 1)]).await;
    stage.assert_brought(&status, "models/406");
    assert_eq!(blamed(&status), [(liar.hotkey.as_str(), "wrong_model_hash")].into());

    // What it has signed convinces whoever has the files.
    let folder = stage.late.dir.path().join("data/peer/resync/evidence");
    let path = folder.join(&stage.model.model_hash).join(format!("{}.json", liar.hotkey));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let words = json["holdings"].as_array().unwrap();
    let word = words.iter().find(|word| word["hotkey"] == liar.hotkey.as_str()).unwrap();
    let bytes = |name: &str| hex::decode(word[name].as_str().unwrap()).unwrap();
    let said = Holdings::open(&bytes("body"), &bytes("signature")).unwrap();
    assert_eq!(said.envelope.sender, liar.hotkey);
    assert_eq!(said.model.to_hex(), stage.model.model_hash);
    assert_eq!(said.files, files(&other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_or_a_momentum_that_does_not_belong_to_the_model_is_found_too() {
    let mut stage = Stage::new().await;
    let (shared, momentum) = (stage.dir.path().join("shared"), stage.dir.path().join("momentum"));
    // The group's slice is right, the parameters that nobody trains are not the manifest's.
    publish(&shared, 1, 3);
    std::fs::copy(stage.folder().join("manifest.json"), shared.join("manifest.json")).unwrap();
    publish(&momentum, 1, 2);
    std::fs::write(momentum.join("optimizer_0.safetensors"), b"no momentum").unwrap();
    let liars = [
        Holder::start(1, &shared, NEW_VERSION, Deed::Honest).await,
        Holder::start(2, &momentum, NEW_VERSION, Deed::Honest).await,
        Holder::start(3, &shared, NEW_VERSION - 1, Deed::Honest).await,
    ];
    let honest = stage.holder(4, Deed::Honest).await;
    stage.start(&[&liars[0], &liars[1], &liars[2], &honest]).await;
    let stakes = [(&liars[0], 40), (&liars[1], 30), (&liars[2], 20), (&honest, 1)];
    let status = stage.bring(&stakes).await;
    stage.assert_brought(&status, "models/406");
    let name = |n: usize| liars[n].hotkey.as_str();
    let expected =
        [(name(0), "bad_manifest"), (name(1), "bad_optimizer"), (name(2), "bad_manifest")];
    assert_eq!(blamed(&status), expected.into());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_nothing_that_has_come_is_asked_for_again() {
    let mut stage = Stage::new().await;
    stage.late.config.call_timeout = Duration::from_secs(60);
    let holder = stage.holder(1, Deed::Stalls(6)).await;
    stage.start(&[&holder]).await;
    let holders = [(holder.hotkey.clone(), 1)];
    let asked = request(&stage.late, &stage.model, &holders);
    resyncs(&stage.late).start_resync(asked).await.unwrap();
    // Everything that was given is on the disk: six chunks, the manifest is one of them.
    until(&stage.late, &stage.model, |status| {
        status.bytes > 0 && status.bytes == holder.served() && status.bytes > 4 << 20
    })
    .await;
    stage.late.kill().await;

    stage.late.start().await;
    let unknown = GetResyncRequest { model_hash: stage.model.model_hash.clone() };
    assert_refused(
        resyncs(&stage.late).get_resync(unknown).await,
        Code::NotFound,
        "unknown_resync",
    );
    holder.go_on();
    let status = bring(&stage.late, &stage.model, &holders).await;
    stage.assert_brought(&status, "models/406");
    let total: u64 = files(&stage.folder()).iter().map(|file| file.len).sum();
    assert_eq!((status.bytes, status.total), (total, total));
    // Streams that were cut off by the kill may have had a chunk each on the way.
    assert!(holder.served() >= total, "{} of {total}", holder.served());
    let twice = holder.served() - total;
    assert!(twice <= 2 << 20, "{twice} bytes were given twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_nobody_has_is_a_failure_that_says_so() {
    let mut all = members(&[1, 2, LATE]).await;
    join_all(all.iter_mut().map(Member::start)).await;
    all[1].kill().await;
    let late = &all[2];
    // The first one knows the late validator, and has another model only.
    name(&all[0], &all[0].base, &[hotkey(LATE)]).await;
    let model = ModelRef {
        global_version: NEW_VERSION,
        model_hash: "ab".repeat(24),
        prefix: format!("models/{NEW_VERSION}"),
    };
    let holders: Vec<_> = [1, 2].map(|seed| (hotkey(seed), 1)).into();
    let mut asked = request(late, &model, &holders);
    asked.deadline_ms = 2000;
    resyncs(late).start_resync(asked).await.unwrap();
    let status = until(late, &model, |status| status.state != "running").await;
    assert_eq!((status.state.as_str(), status.reason.as_str()), ("failed", "nobody_has_it"));
    for (seed, reason) in [(1, "no_model"), (2, "not_reached")] {
        let said = format!("{} ({reason})", hotkey(seed));
        assert!(status.detail.contains(&said), "{said} in {}", status.detail);
    }
    assert_eq!(status.model, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_another_model_is_already_the_right_one_goes_beside_it() {
    let mut stage = Stage::new().await;
    publish(&stage.late.artifacts().join("models/406"), 50, 2);
    let holder = stage.holder(1, Deed::Honest).await;
    stage.start(&[&holder]).await;
    let status = stage.bring(&[(&holder, 1)]).await;
    let beside = format!("models/406/{}", &stage.model.model_hash[..12]);
    stage.assert_brought(&status, &beside);
    assert!(stage.late.artifacts().join("models/406/manifest.json").exists());
    let manifest = Manifest::read(&stage.late.artifacts().join(beside)).unwrap();
    assert_eq!(manifest.model_hash.to_hex(), stage.model.model_hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_rotted_on_the_disk_is_never_signed_for() {
    let mut all = members(&[1, LATE]).await;
    let model = publish(&all[0].artifacts().join("models/406"), 1, 2);
    let full = all[0].artifacts().join("models/406/model_full.safetensors");
    let mut bytes = std::fs::read(&full).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&full, bytes).unwrap();
    join_all(all.iter_mut().map(Member::start)).await;
    name(&all[0], &model, &[hotkey(LATE)]).await;
    let mut asked = request(&all[1], &model, &[(hotkey(1), 1)]);
    asked.deadline_ms = 10_000;
    resyncs(&all[1]).start_resync(asked).await.unwrap();
    let status = until(&all[1], &model, |status| status.state != "running").await;
    assert_eq!(status.reason, "nobody_has_it", "{status:?}");
    assert!(status.blamed.is_empty() && status.detail.contains("no_model"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_validator_forges_replays_or_asks_beyond_the_end_is_refused() {
    let mut all = members(&[1, 2]).await;
    let model = publish(&all[0].artifacts().join("models/406"), 1, 2);
    join_all(all.iter_mut().map(Member::start)).await;
    let url = all[0].url();
    let client = || ModelServiceClient::new(kit::channel(&url, &Tls::default()).unwrap());
    let ask = async |by: u8, signed: u8, nonce: u8, round: u64, receiver: u8| {
        let envelope = Envelope {
            round: RoundId(round),
            sender: hotkey(by),
            receiver: hotkey(receiver),
            nonce: [nonce; 16],
            in_reply_to: None,
        };
        let (group, model) = (ExpertGroup(0), model.model_hash.parse().unwrap());
        let (body, signature) = sealed(signed, &HoldingsRequest { envelope, group, model });
        client().get_holdings(v2::SignedMessage { body, signature }).await
    };
    assert_refused(ask(2, 2, 1, ROUND, 1).await, Code::Unavailable, "not_started");
    name(&all[0], &model, &[hotkey(2)]).await;
    assert_refused(ask(3, 3, 1, ROUND, 1).await, Code::PermissionDenied, "not_a_validator");
    assert_refused(ask(2, 3, 1, ROUND, 1).await, Code::Unauthenticated, "bad_signature");
    assert_refused(ask(2, 2, 1, ROUND - 1, 1).await, Code::FailedPrecondition, "old_round");
    assert_refused(ask(2, 2, 1, ROUND, 3).await, Code::PermissionDenied, "wrong_receiver");
    // Digests are computed on the first question; each needs a nonce of its own.
    let mut nonce = 10;
    let holdings = loop {
        match ask(2, 2, nonce, ROUND, 1).await {
            Ok(answer) => break answer.into_inner(),
            Err(status) => assert_refused(Err::<(), _>(status), Code::Unavailable, "not_ready"),
        }
        nonce += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_refused(ask(2, 2, nonce, ROUND, 1).await, Code::PermissionDenied, "replayed");
    let holdings = Holdings::open(&holdings.body, &holdings.signature).unwrap();
    assert_eq!(holdings.envelope.sender, hotkey(1));
    assert_eq!(holdings.version, GlobalVersion(NEW_VERSION));
    assert_eq!(holdings.files, files(&all[0].artifacts().join("models/406")));

    let shard = async |name: &str, first: u32, count: u32, nonce: u8| {
        let envelope = Envelope { nonce: [nonce; 16], ..asker() };
        let (name, model) = (name.to_owned(), model.model_hash.parse().unwrap());
        let (body, signature) = sealed(2, &ShardRequest { envelope, model, name, first, count });
        client().get_shard(v2::SignedMessage { body, signature }).await
    };
    let full = "model_full.safetensors";
    assert_refused(shard(full, 12, 2, 200).await, Code::InvalidArgument, "malformed");
    assert_refused(shard(full, u32::MAX, 2, 201).await, Code::InvalidArgument, "malformed");
    assert_refused(shard("roster.json", 0, 1, 202).await, Code::NotFound, "no_model");
    // As many streams as are given at once, and one more.
    let mut open = Vec::new();
    for n in 0..4 {
        open.push(shard(full, 0, 13, 210 + n).await.unwrap());
    }
    assert_refused(shard(full, 0, 13, 220).await, Code::ResourceExhausted, "too_many");
    let mut chunks = open.pop().unwrap().into_inner();
    let first = chunks.message().await.unwrap().unwrap();
    let Some(v2::chunk::Part::Data(bytes)) = first.part else { panic!("{first:?}") };
    let file = std::fs::read(all[0].artifacts().join("models/406").join(full)).unwrap();
    assert!(bytes[..] == file[..1 << 20]);
}

fn asker() -> Envelope {
    Envelope {
        round: RoundId(ROUND),
        sender: hotkey(2),
        receiver: hotkey(1),
        nonce: [0; 16],
        in_reply_to: None,
    }
}
