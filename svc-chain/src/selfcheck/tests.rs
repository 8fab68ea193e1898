use devchain::with_renamed;

use super::*;

/// The metadata with one name in it changed for another of the same length.
fn renamed(from: &str, to: &str) -> Metadata {
    Metadata::decode_from(&with_renamed(devchain::METADATA, from, to).unwrap()).unwrap()
}

#[test]
fn the_metadata_of_the_development_chain_has_all_that_is_used() {
    assert_eq!(missing(&Metadata::decode_from(devchain::METADATA).unwrap()), Vec::<String>::new());
}

#[test]
fn a_renamed_field_call_entry_or_method_is_named() {
    for (from, to, named) in [
        ("set_commitment", "put_commitment", "call Commitments.set_commitment"),
        ("ServingRateLimit", "ServingRateLimix", "storage SubtensorModule.ServingRateLimit"),
        ("StakeThreshold", "StakeThresholx", "storage SubtensorModule.StakeThreshold and"),
        ("ip_type", "ip_kind", "field `ip_type` of storage SubtensorModule.Axons"),
        ("placeholder2", "placeholder3", "call SubtensorModule.serve_axon("),
    ] {
        let missing = missing(&renamed(from, to));
        assert!(missing.iter().any(|name| name.contains(named)), "{from}: {missing:?}");
    }
}

#[test]
fn one_road_to_the_metagraph_is_enough_and_both_are_named_when_neither_is_there() {
    let (api, storage) = ("get_selective_metagraph", "BlockAtRegistration");
    for (from, to) in [
        (api, "get_selective_metagrapx"),
        ("incentives", "incentivea"),
        (storage, "BlockAtRegistratiox"),
    ] {
        let metadata = renamed(from, to);
        assert_eq!(missing(&metadata), Vec::<String>::new(), "{from}");
        assert_eq!(has_selective_metagraph(&metadata), from == storage, "{from}");
    }
    let neither = with_renamed(devchain::METADATA, api, "get_selective_metagrapx").unwrap();
    let neither = with_renamed(&neither, storage, "BlockAtRegistratiox").unwrap();
    let missing = missing(&Metadata::decode_from(&neither).unwrap());
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert!(missing[0].contains(api) && missing[0].contains(storage), "{missing:?}");
}

#[test]
fn the_older_call_for_weights_is_enough() {
    let metadata = renamed("set_mechanism_weights", "set_mechanism_weightz");
    assert_eq!(missing(&metadata), Vec::<String>::new());
    assert!(!has_mechanism_weights(&metadata));
}

#[test]
fn the_calls_for_one_subnet_serve_where_those_for_a_mechanism_are_missing() {
    let whole = Metadata::decode_from(devchain::METADATA).unwrap();
    let timelock = ("commit_timelocked_mechanism_weights", true);
    assert_eq!(timelock_call(&whole), Some(timelock));
    let hash = (["commit_mechanism_weights", "reveal_mechanism_weights"], true);
    assert_eq!(hash_calls(&whole), Some(hash));
    let older =
        renamed("commit_timelocked_mechanism_weights", "commit_timelocked_mechanism_weightz");
    assert_eq!(timelock_call(&older), Some(("commit_timelocked_weights", false)));
    let older = renamed("reveal_mechanism_weights", "reveal_mechanism_weightz");
    assert_eq!(hash_calls(&older), Some((["commit_weights", "reveal_weights"], false)));
}

#[test]
fn a_renamed_entry_of_a_road_of_weights_or_of_the_epochs_is_named() {
    for (from, to) in [
        ("WeightCommits", "WeightCommitz"),
        ("TimelockedWeightCommits", "TimelockedWeightCommitz"),
        ("BeaconConfig", "BeaconConfix"),
        ("RevealPeriodEpochs", "RevealPeriodEpochz"),
        ("MaxWeightsLimit", "MaxWeightsLimix"),
    ] {
        let missing = missing(&renamed(from, to));
        assert!(missing.iter().any(|name| name.ends_with(from)), "{from}: {missing:?}");
    }
    let missing = missing(&renamed("public_key", "publik_key"));
    assert_eq!(missing, ["field `public_key` of storage Drand.BeaconConfig"]);
}

#[test]
fn a_renamed_entry_of_stateful_epochs_is_named() {
    let Some(folder) = std::env::var_os("CONNITO_METADATA_DIR") else {
        eprintln!("skipped: CONNITO_METADATA_DIR is not set");
        return;
    };
    let file = std::path::Path::new(&folder).join("subtensor_finney_spec424_v16.scale");
    let newer = std::fs::read(file).unwrap();
    assert!(has_stateful_epochs(&Metadata::decode_from(&newer).unwrap()));
    let newer = with_renamed(&newer, "PendingEpochAt", "PendingEpochAx").unwrap();
    let missing = missing(&Metadata::decode_from(&newer).unwrap());
    assert_eq!(missing, ["storage SubtensorModule.PendingEpochAt"]);
}

#[test]
fn every_saved_metadata_has_all_that_is_used() {
    let Some(folder) = std::env::var_os("CONNITO_METADATA_DIR") else {
        eprintln!("skipped: CONNITO_METADATA_DIR is not set");
        return;
    };
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".scale") {
            let metadata = Metadata::decode_from(&std::fs::read(&path).unwrap()).unwrap();
            assert_eq!(missing(&metadata), Vec::<String>::new(), "{name}");
            checked += 1;
        }
    }
    assert!(checked > 0);
}
