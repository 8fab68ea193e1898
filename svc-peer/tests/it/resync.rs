//! Models from other validators: whole, whoever dies in the middle of it, or by name why not.

use std::time::Duration;

use checkpoint::Manifest;
use futures::future::join_all;
use proto::{common::v1::ModelRef, peer::v1::GetResyncRequest};
use tonic::Code;

use crate::{
    holder::{Deed, files},
    network::{
        GOOD, Member, NEW_VERSION, assert_same_model, hotkey, hotkeys, members, miner, model_files,
        outcome,
    },
    sealing::assert_refused,
    stage::{LATE, Stage, bring, name, publish, request, resyncs, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_that_missed_a_merge_gets_the_very_files_of_those_that_made_it() {
    let mut all = members(&[1, 2, LATE]).await;
    let merging = hotkeys(&all[..2]);
    join_all(all.iter_mut().map(Member::start)).await;
    let merges = all[..2].iter().map(|m| {
        let mut request = m.request(&merging, &[miner(11, GOOD.0, 1.0)]);
        request.absent = vec![hotkey(LATE).to_string()];
        m.merge(request)
    });
    let merged = join_all(merges).await;
    assert_eq!(outcome(&merged[0]), "merged", "{}", merged[0].detail);
    let model = merged[0].model.clone().unwrap();

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
async fn a_holder_that_stands_still_is_waited_for_by_nobody() {
    let mut stage = Stage::new().await;
    stage.late.config.call_timeout = Duration::from_secs(3600);
    let still = [stage.holder(1, Deed::Stalls(0)).await, stage.holder(2, Deed::Stalls(3)).await];
    let honest = stage.holder(3, Deed::Honest).await;
    stage.start(&[&still[0], &still[1], &honest]).await;
    let status = stage.bring(&[(&still[0], 1), (&still[1], 1), (&honest, 1)]).await;
    stage.assert_brought(&status, "models/406");
    assert_eq!(still[0].served(), 0);
    assert!(status.blamed.is_empty(), "{status:?}");
}
