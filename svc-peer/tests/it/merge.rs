//! Merges among honest validators: the same bits for all, in time, honest about their outcome.

use checkpoint::{
    Contribution, Limits, OuterSgd, PseudoGradient, PublishedModel, TensorSource as _,
};
use domain::ExpertGroup;
use futures::future::join_all;
use proto::peer::v1::GetMergeRequest;
use tonic::Code;

use crate::network::{
    BASE_VERSION, GOOD, Member, NEW_VERSION, ROUND, assert_same_model, dropped, hash, hotkey,
    hotkeys, introduce, members, miner, outcome, vectors,
};

/// The pseudo-gradient of these miners against the member's base, by the checkpoint crate alone.
fn gradient(member: &Member, miners: &[(u8, &str, f64)]) -> Vec<f32> {
    let folder = member.artifacts().join(format!("models/{BASE_VERSION}"));
    let base = PublishedModel::open(&folder).unwrap();
    let layout = base.manifest().layout(ExpertGroup(0)).unwrap();
    let contribution = |(seed, file, weight): &(u8, &str, f64)| Contribution {
        hotkey: hotkey(*seed),
        weight: *weight,
        path: vectors().join("model").join(file),
        model_hash: None,
    };
    let contributions = miners.iter().map(contribution).collect();
    let mean = PseudoGradient::new(&base, &layout, contributions, Limits::default()).unwrap();
    mean.iter().flat_map(|tensor| tensor.unwrap().1).collect()
}

/// The mean of the gradients in the order of the members, value by value.
fn naive_mean(gradients: &[Vec<f32>]) -> Vec<f32> {
    let mean = |i| {
        let sum: f64 = gradients.iter().map(|gradient| f64::from(gradient[i])).sum();
        (sum / gradients.len() as f64) as f32
    };
    (0..gradients[0].len()).map(mean).collect()
}

/// Checks the group's tensors of the model `to` against one step from `from`, bit for bit, and
/// that all others are the same.
fn assert_one_step(member: &Member, from: u64, to: u64, gradient: &[f32]) {
    let folder = |version: u64| member.artifacts().join(format!("models/{version}"));
    let open = |version| PublishedModel::open(&folder(version)).unwrap();
    let (before, after) = (open(from), open(to));
    let momentum = |version: u64| {
        let path = folder(version).join("optimizer_0.safetensors");
        path.exists().then(|| checkpoint::open(&path, Limits::trusted()).unwrap())
    };
    let (old, new) = (momentum(from), momentum(to).unwrap());
    let layout = before.manifest().layout(ExpertGroup(0)).unwrap();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let mut rest = gradient;
    for (name, spec) in before.specs() {
        if !layout.tensors.contains_key(name) {
            assert_eq!(before.bytes(name).unwrap(), after.bytes(name).unwrap(), "{name}");
            continue;
        }
        let (gradient, after_it) = rest.split_at(spec.elements());
        rest = after_it;
        let master = format!("master/{name}");
        let momentum = format!("momentum/{name}");
        let before = |name: &str| old.as_ref().and_then(|old| old.to_f32(name).ok());
        let published = || open(from).to_f32(name).unwrap();
        let mut param = before(&master).unwrap_or_else(published);
        let mut velocity = before(&momentum).unwrap_or_else(|| vec![0.0; param.len()]);
        OuterSgd::default().step(&mut param, &mut velocity, gradient).unwrap();
        let encoded = checkpoint::encode_f32(spec.dtype, &param).unwrap();
        assert_eq!(encoded, *after.bytes(name).unwrap(), "{name}");
        assert_eq!(bits(&velocity), bits(&new.to_f32(&momentum).unwrap()), "momentum of {name}");
    }
    assert!(rest.is_empty());
    assert_eq!(after.manifest().parent, Some(before.manifest().model_hash));
}

#[tokio::test(flavor = "multi_thread")]
async fn four_validators_end_with_the_same_bits_and_one_of_them_had_nothing_to_give() {
    let mut all = members(&[1, 2, 3, 4]).await;
    let validators = hotkeys(&all);
    for member in &mut all {
        member.start().await;
    }
    let gives = [
        vec![miner(11, GOOD.0, 1.0)],
        vec![miner(12, GOOD.1, 3.0)],
        vec![],
        vec![miner(11, GOOD.0, 1.0), miner(12, GOOD.1, 2.0)],
    ];
    let merges = all
        .iter()
        .zip(&gives)
        .map(|(member, miners)| async { member.merge(member.request(&validators, miners)).await });
    let ended = join_all(merges).await;

    let mut givers = [&all[0], &all[1], &all[3]];
    givers.sort_by(|a, b| a.hotkey.cmp(&b.hotkey));
    for status in &ended {
        assert_eq!(outcome(status), "merged", "{}", status.detail);
        assert_eq!((&status.digest, &status.model), (&ended[0].digest, &ended[0].model));
        let names: Vec<String> = givers.iter().map(|member| member.hotkey.to_string()).collect();
        assert_eq!(status.members, names);
        assert_ne!(hash(status), all[0].base.model_hash);
    }
    all[1..].iter().for_each(|other| assert_same_model(&all[0], other, NEW_VERSION));

    let of = |member: &&Member| match member.seed {
        1 => gradient(member, &[(11, GOOD.0, 1.0)]),
        2 => gradient(member, &[(12, GOOD.1, 3.0)]),
        _ => gradient(member, &[(11, GOOD.0, 1.0), (12, GOOD.1, 2.0)]),
    };
    let mean = naive_mean(&givers.iter().map(of).collect::<Vec<_>>());
    assert_eq!(dropped(&ended[0]), [format!("{} (no_gradient)", all[2].hotkey)]);
    assert_one_step(&all[2], BASE_VERSION, NEW_VERSION, &mean);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_without_others_steps_alone_and_the_next_round_uses_its_momentum() {
    let mut me = Member::new(1, 0.0).await;
    me.start().await;
    let first = me.merge(me.request(&[], &[miner(11, GOOD.0, 1.0)])).await;
    assert_eq!(outcome(&first), "solo", "{}", first.detail);
    assert_eq!(first.members, [me.hotkey.to_string()]);
    let step = gradient(&me, &[(11, GOOD.0, 1.0)]);
    assert_one_step(&me, BASE_VERSION, NEW_VERSION, &step);

    let mut next = me.request(&[], &[miner(12, GOOD.1, 1.0)]);
    next.round_id = ROUND + 472;
    next.base = first.model.clone();
    next.new_version = NEW_VERSION + 472;
    let second = me.merge(next).await;
    assert_eq!(outcome(&second), "solo", "{}", second.detail);
    let new_base = PublishedModel::open(&me.artifacts().join(format!("models/{NEW_VERSION}")));
    let new_base = new_base.unwrap();
    let old_base = me.artifacts().join(format!("models/{BASE_VERSION}"));
    let old_base = PublishedModel::open(&old_base).unwrap();
    // The same miner against the newer base: gradients differ by what the base moved.
    let layout = old_base.manifest().layout(ExpertGroup(0)).unwrap();
    let miner = checkpoint::open(&vectors().join("model").join(GOOD.1), Limits::default()).unwrap();
    let step: Vec<f32> = layout
        .tensors
        .keys()
        .flat_map(|name| {
            let (base, miner) = (new_base.to_f32(name).unwrap(), miner.to_f32(name).unwrap());
            base.into_iter().zip(miner).map(|(b, m)| b - m).collect::<Vec<_>>()
        })
        .collect();
    assert_one_step(&me, NEW_VERSION, NEW_VERSION + 472, &step);

    let old = me.merges().get_merge(GetMergeRequest { round_id: ROUND }).await.unwrap();
    assert_eq!(old.into_inner(), first, "the report of an older round is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_submissions_are_skipped_by_name_and_the_rest_weigh_as_if_they_were_never_there() {
    let mut me = Member::new(1, 0.0).await;
    me.start().await;
    let bad = |seed, file| (seed, file, "00".repeat(24), 5.0);
    let miners = [
        miner(11, GOOD.0, 1.0),
        bad(13, "hostile_nan.pt"),
        bad(14, "hostile_exec.pt"),
        bad(15, "miner2_g0.pt"),
        miner(12, GOOD.1, 3.0),
    ];
    let mut request = me.request(&[], &miners);
    let missing = request.contributions[1].submission.as_mut().unwrap();
    missing.hotkey = hotkey(16).to_string();
    missing.key = "submissions/336/nobody/nothing.pt".to_owned();
    let status = me.merge(request).await;
    assert_eq!(outcome(&status), "solo");
    for (seed, reason) in [(14, "forbidden_pickle"), (15, "hash_mismatch"), (16, "not_stored")] {
        let skipped = format!("{} ({reason}: ", hotkey(seed));
        assert!(status.detail.contains(&skipped), "{skipped} is not in {}", status.detail);
    }
    let step = gradient(&me, &[(11, GOOD.0, 1.0), (12, GOOD.1, 3.0)]);
    assert_one_step(&me, BASE_VERSION, NEW_VERSION, &step);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_gradient_the_merge_fails_and_the_model_stays() {
    let mut all = members(&[1, 2]).await;
    let validators = hotkeys(&all);
    for member in &mut all {
        member.start().await;
    }
    let merges = all.iter().map(|member| member.merge(member.request(&validators, &[])));
    for (status, member) in join_all(merges).await.iter().zip(&all) {
        assert_eq!(outcome(status), "failed");
        assert_eq!(status.reason, "no_gradients", "{}", status.detail);
        assert_eq!(status.model.as_ref(), Some(&member.base));
        assert!(!member.artifacts().join(format!("models/{NEW_VERSION}")).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_come_is_named_and_the_others_merge_within_the_deadline() {
    let mut all = members(&[1, 2, 3]).await;
    let validators = hotkeys(&all);
    for member in &mut all[..2] {
        member.start().await;
    }
    let merges = all[..2].iter().map(|member| {
        let mut request = member.request(&validators, &[miner(11, GOOD.0, 1.0)]);
        request.deadline_ms = 20_000;
        member.merge(request)
    });
    let ended = join_all(merges).await;
    for status in &ended {
        assert_eq!(outcome(status), "merged", "{}", status.detail);
        assert_eq!(dropped(status), [format!("{} (not_reached)", all[2].hotkey)]);
    }
    assert_same_model(&all[0], &all[1], NEW_VERSION);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_is_found_by_what_its_axon_says() {
    let mut all = members(&[1, 2]).await;
    let validators = hotkeys(&all);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let axon = listener.local_addr().unwrap().to_string();
    let said = format!(r#"{{"endpoints":{{"peer":"{}"}}}}"#, all[1].url());
    let router = axum::Router::new().route("/", axum::routing::get(async move || said));
    let shutdown = kit::Shutdown::default();
    let serving = shutdown.spawn(async move { axum::serve(listener, router).await });

    all[0].config.peer_urls.clear();
    for member in &mut all {
        member.start().await;
    }
    let mut finds = all[0].request(&validators, &[miner(11, GOOD.0, 1.0)]);
    finds.validators[0].axon = axon;
    let told = all[1].request(&validators, &[]);
    let ended = join_all([all[0].merge(finds), all[1].merge(told)]).await;
    for status in &ended {
        assert_eq!(outcome(status), "merged", "{}", status.detail);
    }
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn left_alone_a_validator_steps_only_if_the_policy_says_so() {
    for (allow_solo, expected) in [(false, "failed"), (true, "solo")] {
        let mut me = Member::new(1, 0.0).await;
        me.start().await;
        let mut request = me.request(&[hotkey(2)], &[miner(11, GOOD.0, 1.0)]);
        (request.deadline_ms, request.allow_solo) = (3_000, allow_solo);
        let status = me.merge(request).await;
        assert_eq!(outcome(&status), expected);
        assert_eq!(dropped(&status), [format!("{} (not_reached)", hotkey(2))]);
        assert_eq!(hash(&status) == me.base.model_hash, !allow_solo);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_with_another_base_is_left_out_at_once() {
    let mut all =
        vec![Member::new(1, 0.0).await, Member::new(2, 0.5).await, Member::new(3, 0.0).await];
    introduce(&mut all);
    let validators = hotkeys(&all);
    for member in &mut all {
        member.start().await;
    }
    // Nobody waits for the deadline: that would take ten minutes.
    let merges = all.iter().map(|member| {
        let mut request = member.request(&validators, &[miner(11, GOOD.0, 1.0)]);
        request.deadline_ms = 600_000;
        member.merge(request)
    });
    let ended = join_all(merges).await;
    for at in [0, 2] {
        assert_eq!(outcome(&ended[at]), "merged", "{}", ended[at].detail);
        let named = format!("{} (other_base)", all[1].hotkey);
        assert!(dropped(&ended[at]).contains(&named), "{:?}", ended[at].dropped);
    }
    assert_same_model(&all[0], &all[2], NEW_VERSION);
    assert_eq!(outcome(&ended[1]), "failed");
    assert!(ended[1].detail.starts_with("left alone"), "{}", ended[1].detail);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_makes_no_sense_is_refused_by_field() {
    let mut me = Member::new(1, 0.0).await;
    me.start().await;
    let good = me.request(&[hotkey(2)], &[miner(11, GOOD.0, 1.0)]);
    let unknown = me.merges().get_merge(GetMergeRequest { round_id: 1 }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let mut bad = vec![good.clone(); 6];
    bad[0].hotkey.clear();
    bad[1].contributions[0].weight = f64::NAN;
    bad[2].deadline_ms = 0;
    bad[3].base = None;
    bad[4].validators.push(good.validators[0].clone());
    bad[5].contributions.push(good.contributions[0].clone());
    let fields = [
        "hotkey",
        "contributions.weight",
        "deadline_ms",
        "base",
        "validators.hotkey",
        "contributions",
    ];
    for (bad, field) in bad.into_iter().zip(fields) {
        let status = me.merges().start_merge(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(&format!("`{field}")), "{}", status.message());
    }
}
