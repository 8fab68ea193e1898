//! The numeric contract: how far half precision may be from float32, that the same job gives the same
//! bits whatever ran before, and that nothing that is not finite goes unseen.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use checkpoint::{ExpertGroups, HubModel, Limits, MemoryTensors, TensorSource};
use data::Batch;
use domain::{ExpertGroup, Seed};
use model::{
    Device, GroupExperts, LanguageModel, LoadOptions, ModelError, WeightType,
    init::{self, GenerateOptions, Width},
    single_threaded,
};
use serde_json::json;

fn vectors() -> PathBuf {
    std::env::var_os("CONNITO_VECTORS").map_or_else(
        || concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors").into(),
        Into::into,
    )
}

/// Where the models of these tests run: the processor, unless `CONNITO_DEVICE` names another device.
fn device() -> Device {
    std::env::var("CONNITO_DEVICE").map_or(Device::Cpu, |name| name.parse().unwrap())
}

fn options(weights: WeightType) -> LoadOptions {
    single_threaded();
    LoadOptions { weights, device: device(), ..LoadOptions::default() }
}

fn hub() -> HubModel {
    HubModel::open(&vectors().join("model/base")).unwrap()
}

fn group() -> GroupExperts {
    let json = std::fs::read(vectors().join("model/expert_groups.json")).unwrap();
    let groups: ExpertGroups = serde_json::from_slice(&json).unwrap();
    groups.0[&ExpertGroup(0)].clone()
}

fn partial(weights: WeightType) -> LanguageModel {
    let hub = hub();
    LanguageModel::load(hub.config(), &[&hub], Some(&group()), options(weights)).unwrap()
}

fn miner(n: usize) -> checkpoint::Checkpoint {
    let path = vectors().join(format!("model/miner{n}_g0.safetensors"));
    checkpoint::open(&path, Limits::default()).unwrap()
}

/// `rows` of ids without pattern, below 250.
fn batch(seed: u64, rows: usize, length: usize) -> Batch {
    let mut state = seed;
    let mut id = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as i64 % 250
    };
    let ids: Vec<i64> = (0..rows * length).map(|_| id()).collect();
    Batch::new(length, ids.clone(), ids).unwrap()
}

/// As [`batch`], with the last third of every row padded by `pad`.
fn padded(seed: u64, rows: usize, length: usize, pad: i64) -> Batch {
    let plain = batch(seed, rows, length);
    let (mut ids, mut labels) = (plain.ids().to_vec(), plain.labels().to_vec());
    for n in 0..ids.len() {
        if n % length >= length * 2 / 3 {
            (ids[n], labels[n]) = (pad, data::IGNORED_LABEL);
        }
    }
    Batch::new(length, ids, labels).unwrap()
}

/// A tensor source with some tensors changed.
fn changed(source: &dyn TensorSource, change: impl Fn(&str, &mut [f32])) -> MemoryTensors {
    let mut tensors = MemoryTensors::default();
    for (name, spec) in source.specs() {
        let mut values = source.to_f32(name).unwrap();
        change(name, &mut values);
        tensors.insert_f32(name, spec.shape.clone(), &values).unwrap();
    }
    tensors
}

fn write(folder: &Path, shard_bytes: Option<u64>, weights: WeightType) {
    let options = GenerateOptions { weights, shard_bytes };
    init::generate(folder, &init::demo_config(), &Seed([3; 32]), &options).unwrap();
}

#[test]
fn half_precision_stays_within_two_hundredths_of_float32() {
    let batches = [batch(1, 2, 64), padded(2, 3, 48, 1), batch(3, 1, 300)];
    for n in 0..3 {
        let losses = |weights| {
            let mut model = partial(weights);
            model.overlay(&miner(n)).unwrap();
            model.losses(&batches).unwrap()
        };
        let full = losses(WeightType::Float32);
        for weights in [WeightType::BFloat16, WeightType::Float16] {
            let half = losses(weights);
            for (full, half) in full.iter().zip(&half) {
                assert!((full - half).abs() < 2e-2, "miner {n}, {weights:?}: {half} for {full}");
            }
            assert_ne!(half, full, "{weights:?} is another precision");
        }
    }
}

#[test]
fn the_same_job_gives_the_same_bits_whatever_ran_before() {
    for weights in [WeightType::Float32, WeightType::BFloat16, WeightType::Float16] {
        let job = [batch(1, 2, 70), padded(2, 2, 40, 1)];
        let run = |model: &mut LanguageModel| {
            model.overlay(&miner(0)).unwrap();
            let losses = model.losses(&job).unwrap();
            model.restore();
            losses.into_iter().map(f64::to_bits).collect::<Vec<_>>()
        };
        let mut model = partial(weights);
        let (expected, digest) = (run(&mut model), model.digest().unwrap());
        // Another submission, other shapes.
        model.overlay(&miner(1)).unwrap();
        model.losses(&[batch(9, 5, 33), batch(9, 1, 600), padded(4, 3, 21, 7)]).unwrap();
        assert_eq!(run(&mut model), expected, "{weights:?}");
        // A submission that is refused in its last tensor, and one whose run fails.
        let last = miner(2).specs().keys().last().unwrap().clone();
        let broken = changed(&miner(2), |name, values| {
            if name == last {
                values[0] = f32::NAN;
            }
        });
        model.overlay(&broken).unwrap_err();
        assert_eq!(run(&mut model), expected, "{weights:?}");
        let wild = changed(&miner(2), |_, values| {
            values.iter_mut().for_each(|x| *x = x.signum() * 6e4);
        });
        model.overlay(&wild).unwrap();
        let _ = model.losses(&job);
        assert_eq!(run(&mut model), expected, "{weights:?}");
        assert_eq!(model.digest().unwrap(), digest, "{weights:?}");
        // A new model, and one that ran the batches the other way round.
        let mut fresh = partial(weights);
        assert_eq!(fresh.digest().unwrap(), digest, "{weights:?}");
        fresh.losses(&[job[1].clone(), job[0].clone()]).unwrap();
        assert_eq!(run(&mut fresh), expected, "{weights:?}");
    }
}

#[test]
fn one_weight_that_overflows_is_seen_in_every_expert_that_a_token_goes_to() {
    let (mut model, batches) = (partial(WeightType::Float32), [batch(1, 4, 64)]);
    let plain = miner(0);
    let losses = |model: &mut LanguageModel, change: &dyn Fn(&str, &mut [f32])| {
        model.overlay(&changed(&plain, change)).unwrap();
        model.losses(&batches)
    };
    let expected = losses(&mut model, &|_, _| ()).unwrap();
    let (mut seen, mut idle) = (0, 0);
    for changed in plain.specs().keys() {
        let used = losses(&mut model, &|name, values| {
            if name == changed {
                values.iter_mut().for_each(|x| *x *= 2.0);
            }
        });
        let wild = losses(&mut model, &|name, values| {
            if name == changed {
                // The first row: of `gate_up_proj` it is the gate's, of `down_proj` the output's.
                let row = values.len() / plain.specs()[name].shape[0];
                values[..row].fill(3e38);
            }
        });
        if used.unwrap() == expected {
            idle += 1;
            assert_eq!(wild.unwrap(), expected, "{changed}: no token went there");
        } else {
            seen += 1;
            assert!(matches!(wild, Err(ModelError::NonFinite { .. })), "{changed}: {wild:?}");
        }
    }
    assert!(seen > 2 * idle, "{seen} of {}", seen + idle);
}

#[test]
fn one_row_that_overflows_is_seen_in_every_shared_parameter() {
    let (hub, batches) = (hub(), [batch(1, 4, 64)]);
    let names = hub.specs().iter().filter(|(name, spec)| {
        !name.contains(".mlp.experts.") && spec.shape.len() == 2 && !name.contains("embed")
    });
    let mut count = 0;
    for (wild, spec) in names {
        let tensors = changed(&hub, |name, values| {
            if name == wild {
                values[..spec.shape[1]].fill(3e38);
            }
        });
        let load = options(WeightType::Float32);
        let model = LanguageModel::load(hub.config(), &[&tensors], None, load).unwrap();
        let error = model.losses(&batches).unwrap_err();
        assert!(matches!(error, ModelError::NonFinite { .. }), "{wild}: {error}");
        assert!(model.logits(&batches[0]).is_err(), "{wild}");
        count += 1;
    }
    assert!(count > 20, "{count}");
}

/// Nothing looks at what padding computes: its keys are masked and its logits have no label.
#[test]
fn what_overflows_only_at_padding_is_seen_nevertheless() {
    let (hub, pad) = (hub(), 255);
    let width = hub.specs()["model.embed_tokens.weight"].shape[1];
    let row = pad as usize * width..(pad as usize + 1) * width;
    let of = |value: f32| {
        let tensors = changed(&hub, |name, values| {
            if name == "model.embed_tokens.weight" {
                values[row.clone()].fill(value);
            }
        });
        let load = options(WeightType::Float32);
        LanguageModel::load(hub.config(), &[&tensors], None, load).unwrap()
    };
    let batches = [padded(1, 2, 30, pad)];
    let [one, other] = [0.5, 1.5].map(|value| of(value).losses(&batches).unwrap());
    // It may go to other experts, and a GPU rounds by how many rows come together.
    let close = if device() == Device::Cpu { 0.0 } else { 1e-6 };
    assert!((one[0] - other[0]).abs() <= close, "padding changes no loss: {one:?} {other:?}");
    // Its square is infinite, and the norm would make zeros of it.
    let error = of(1e30).losses(&batches).unwrap_err();
    assert!(matches!(error, ModelError::NonFinite { .. }), "{error}");
}

#[test]
fn float16_refuses_a_weight_that_it_cannot_hold() {
    let mut model = partial(WeightType::Float16);
    let large = changed(&miner(0), |_, values| values[5] = 65_520.0);
    let error = model.overlay(&large).unwrap_err();
    assert_eq!(error.submission_reason(), Some("non_finite"), "{error}");
    partial(WeightType::BFloat16).overlay(&large).unwrap();
}

#[test]
fn a_model_in_shards_is_the_same_as_in_one_file_in_every_type() {
    let batches = [batch(5, 2, 32)];
    for weights in [WeightType::Float32, WeightType::BFloat16, WeightType::Float16] {
        let digest = |shard_bytes| {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), shard_bytes, weights);
            let model = LanguageModel::from_hub(dir.path(), None, options(weights)).unwrap();
            (model.digest().unwrap(), model.losses(&batches).unwrap())
        };
        assert_eq!(digest(None), digest(Some(200_000)), "{weights:?}");
    }
}

#[test]
fn a_shard_that_is_missing_or_lies_elsewhere_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), Some(200_000), WeightType::Float32);
    let open = || LanguageModel::from_hub(dir.path(), None, options(WeightType::Float32));
    open().unwrap();
    let (index, shard) = ("model.safetensors.index.json", "model-00002-of-");
    let path = dir.path().join(index);
    let text = std::fs::read_to_string(&path).unwrap();
    for elsewhere in ["../model-00002-of-", "/tmp/model-00002-of-", "a/../model-00002-of-"] {
        std::fs::write(&path, text.replace(shard, elsewhere)).unwrap();
        let error = open().unwrap_err().to_string();
        assert!(error.contains(index) && error.contains(elsewhere), "{error}");
    }
    std::fs::write(&path, text.replace(shard, "model-99999-of-")).unwrap();
    let error = open().unwrap_err().to_string();
    assert!(error.contains("model-99999-of-"), "{error}");
}

#[test]
fn routing_groups_compute_the_same_as_greedy_where_all_may_be_chosen() {
    let (hub, batches) = (hub(), [batch(1, 2, 64)]);
    let losses = |groups: u32, chosen: u32, group: Option<&GroupExperts>| {
        let mut config = hub.config().clone();
        config["topk_method"] = "group_limited_greedy".into();
        (config["n_group"], config["topk_group"]) = (json!(groups), json!(chosen));
        let load = options(WeightType::Float32);
        LanguageModel::load(&config, &[&hub], group, load).unwrap().losses(&batches).unwrap()
    };
    let greedy = |group: Option<&GroupExperts>| {
        let load = options(WeightType::Float32);
        LanguageModel::load(hub.config(), &[&hub], group, load).unwrap().losses(&batches).unwrap()
    };
    for group in [None, Some(&group())] {
        let plain = greedy(group);
        assert_eq!(losses(4, 4, group), plain);
        assert_eq!(losses(1, 1, group), plain);
        assert_ne!(losses(4, 1, group), plain, "one routing group of two experts");
    }
}

#[test]
fn the_widths_of_the_presets_can_be_loaded_and_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = init::deepseek_config(Width::Small);
    // All of the structure but the depth, which takes long in a build that is not optimised.
    config["num_hidden_layers"] = 2.into();
    let write = GenerateOptions { weights: WeightType::BFloat16, shard_bytes: Some(4 << 20) };
    init::generate(dir.path(), &config, &Seed([4; 32]), &write).unwrap();
    let model = LanguageModel::from_hub(dir.path(), None, options(WeightType::Float32)).unwrap();
    // A random model knows nothing: the logarithm of the vocabulary, roughly.
    for loss in model.losses(&[batch(1, 1, 300)]).unwrap() {
        assert!((loss - 12_800f64.ln()).abs() < 1.0, "{loss}");
    }
}
