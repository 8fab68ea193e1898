use std::time::Duration;

use checkpoint::{HubModel, Publication};
use data::Batch;
use domain::{ExpertGroup, GlobalVersion, RoundId, Seed};
use model::{LoadOptions, init};
use store::Artifacts;

use super::*;
use crate::{
    fetch::Fetcher,
    job::{Batches, Job, ModelRef, Work},
    round_data::JobBatches,
};

const GROUP: ExpertGroup = ExpertGroup(0);

/// A job on the demonstration's model, and the folder that its files are in.
async fn prepared() -> (Prepared, tempfile::TempDir) {
    model::single_threaded();
    let dir = tempfile::tempdir().unwrap();
    let config = init::demo_config();
    init::generate(&dir.path().join("hub"), &config, &Seed([1; 32]), &Default::default()).unwrap();
    let publication = Publication {
        global_version: GlobalVersion(1),
        expert_group: GROUP,
        parent: None,
        groups: init::demo_groups(&config, 2).unwrap(),
        config,
    };
    let hub = HubModel::open(&dir.path().join("hub")).unwrap();
    let folder = dir.path().join("artifacts/model");
    let manifest = checkpoint::publish_model(&folder, &hub, publication).unwrap();
    let url = format!("file:{}", dir.path().join("artifacts").display());
    let artifacts = Artifacts::open(&url, &dir.path().join("cache")).unwrap();
    let job = Job {
        id: "baseline".to_owned(),
        round: RoundId(1),
        fence: 1,
        attempt: 1,
        work: Work::Baseline,
        model: ModelRef {
            version: GlobalVersion(1),
            hash: manifest.model_hash,
            prefix: "model".to_owned(),
        },
        group: GROUP,
        batches: Batches { seed: Seed([2; 32]), count: 1, size: 1, length: 4 },
        traceparent: String::new(),
        lease: Duration::from_secs(1),
        deadline: None,
    };
    let model = Fetcher::new(artifacts).model(&job).await.unwrap();
    let batches = vec![Batch::new(4, vec![5, 6, 7, 8], vec![5, 6, 7, 8]).unwrap()];
    let drawn = Drawn {
        digest: data::digest(&batches),
        batches: batches.into(),
        sources_digest: "sources".to_owned(),
        picks: Vec::new(),
    };
    let batches = JobBatches { round: Some(drawn.into()), ..JobBatches::default() };
    (Prepared { job, model, batches, candidate: None }, dir)
}

fn again(prepared: &Prepared) -> Prepared {
    Prepared {
        job: prepared.job.clone(),
        model: prepared.model.clone(),
        batches: JobBatches { round: prepared.batches.round.clone(), ..JobBatches::default() },
        candidate: None,
    }
}

fn bench() -> (Bench, watch::Receiver<Loaded>) {
    let (loaded, view) = watch::channel(Loaded::default());
    let setup = Setup { options: LoadOptions::default(), memory_limit: None };
    (Bench::new(setup, loaded), view)
}

#[tokio::test]
async fn a_base_that_a_run_has_changed_is_found_and_its_result_is_not_told() {
    let (prepared, _dir) = prepared().await;
    let ((mut bench, loaded), lease) = (bench(), LeaseWatch::quiet());
    let first = bench.measure(again(&prepared), &lease).unwrap();
    assert_eq!(first.baseline.len(), 1);
    assert_eq!(loaded.borrow().on_device.base, Some(prepared.job.model.hash));

    // As if a run had written to it.
    let digest = "0".repeat(32);
    bench.base.as_mut().unwrap().digest.clone_from(&digest);
    let failure = bench.measure(again(&prepared), &lease).unwrap_err();
    assert!(failure.spoils_the_device() && failure.fault() == "validator", "{failure}");
    assert!(failure.to_string().contains(&digest), "{failure}");

    // The device's thread takes everything off; the next job loads anew and gets the same bits.
    bench.clear();
    assert!(loaded.borrow().on_device.base.is_none() && loaded.borrow().stager.is_none());
    assert_eq!(bench.measure(prepared, &lease).unwrap(), first);
}

#[tokio::test]
async fn the_bases_losses_are_measured_once_for_one_set_of_batches() {
    let (prepared, _dir) = prepared().await;
    let ((mut bench, _), lease) = (bench(), LeaseWatch::quiet());
    let first = bench.measure(again(&prepared), &lease).unwrap();
    let kept = bench.remembered.values_mut().next().unwrap();
    assert_eq!(*kept, first.baseline);
    // What is remembered is what is told.
    kept[0] = 42.0;
    assert_eq!(bench.measure(prepared, &lease).unwrap().baseline, [42.0]);
}
