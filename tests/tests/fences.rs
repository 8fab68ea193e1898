//! Which crate may stand on which: arrows point one way, and heavy crates stay in their room.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// Direct, ordinary dependencies by package, from `cargo metadata`.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    packages
        .iter()
        .map(|package| {
            let found = package["dependencies"].as_array().unwrap().iter();
            let ordinary = found.filter(|dependency| dependency["kind"].is_null());
            (name(package), ordinary.map(name).collect())
        })
        .collect()
}

#[test]
fn no_service_depends_on_another_service() {
    for (package, uses) in dependencies().iter().filter(|(package, _)| package.starts_with("svc-"))
    {
        let services: Vec<_> = uses.iter().filter(|name| name.starts_with("svc-")).collect();
        assert!(services.is_empty(), "{package} depends on {services:?}");
    }
}

#[test]
fn the_domain_is_pure() {
    let allowed = ["blake2", "bs58", "hex", "serde", "serde_json", "sha2", "thiserror"];
    let domain = &dependencies()["domain"];
    let foreign: Vec<_> = domain.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
    assert!(foreign.is_empty(), "domain depends on {foreign:?}");
}

#[test]
fn the_agreement_of_a_merge_is_pure() {
    let allowed = ["blake3", "domain", "serde", "thiserror"];
    let merge = &dependencies()["merge"];
    let foreign: Vec<_> = merge.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
    assert!(foreign.is_empty(), "merge depends on {foreign:?}");
}

#[test]
fn libtorch_and_timelock_are_named_in_one_crate_and_the_chain_client_in_two() {
    for (fenced, allowed) in [
        ("tch", ["model"].as_slice()),
        ("timelock", ["drand"].as_slice()),
        ("subxt", ["svc-chain", "devchain"].as_slice()),
    ] {
        for (package, uses) in dependencies() {
            let free = allowed.contains(&package.as_str());
            assert!(free || !uses.iter().any(|name| name == fenced), "{package} names {fenced}");
        }
    }
}

#[test]
fn shared_crates_stand_on_the_domain_and_not_on_services() {
    let all = dependencies();
    for package in [
        "domain",
        "checkpoint",
        "client",
        "data",
        "drand",
        "merge",
        "model",
        "kit",
        "store",
        "proto",
        "devchain",
        "testkit",
    ] {
        let up: Vec<_> = all[package]
            .iter()
            .filter(|name| name.starts_with("svc-") || *name == "connito")
            .collect();
        assert!(up.is_empty(), "{package} depends on {up:?}");
    }
}

#[test]
fn the_miners_client_knows_no_service_kit_and_no_heavy_crate() {
    let client = &dependencies()["client"];
    for heavy in ["kit", "model", "proto", "store", "tonic", "subxt", "tch", "indicatif"] {
        assert!(!client.iter().any(|name| name == heavy), "client depends on {heavy}");
    }
}

#[test]
fn nobody_but_the_demonstration_uses_the_testkit_outside_tests() {
    for (package, uses) in dependencies() {
        let uses_it = uses.iter().any(|name| name == "testkit");
        assert!(!uses_it || package == "connito", "{package} uses testkit outside its tests");
    }
}
