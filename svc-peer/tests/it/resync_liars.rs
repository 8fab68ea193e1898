//! Holders of models that lie, disks that rot, and askers that have no business: found, and named.

use std::time::Duration;

use domain::{ExpertGroup, GlobalVersion, RoundId};
use futures::future::join_all;
use kit::Tls;
use proto::peer::v2::{self, model_service_client::ModelServiceClient};
use svc_peer::{
    message::{Body, Envelope},
    resync::message::{Holdings, HoldingsRequest, ShardRequest},
};
use tonic::Code;

use crate::{
    holder::{Deed, Holder, files},
    network::{Member, NEW_VERSION, ROUND, hotkey, members},
    sealing::{assert_refused, sealed},
    stage::{LATE, Stage, blamed, bring, name, publish, request, resyncs, until},
};

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
