//! Against the official client and the real beacon.

use drand::{Beacon, open, seal};
use serde_json::Value;

fn vector() -> Value {
    serde_json::from_str(include_str!("../vectors/quicknet.json")).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

#[test]
fn the_signature_of_a_real_round_verifies_for_that_round_only() {
    let vector = vector();
    let (round, signature) = (vector["round"].as_u64().unwrap(), bytes(&vector["signature"]));
    let quicknet = Beacon::quicknet();
    assert!(quicknet.verify(round, &signature));
    assert!(!quicknet.verify(round + 1, &signature));
}

#[test]
fn what_the_official_client_sealed_opens() {
    let vector = vector();
    let signature = bytes(&vector["signature"]);
    let sealed = vector["sealed"].as_array().unwrap();
    assert_eq!(sealed.len(), 3);
    for sealed in sealed {
        let opened = open(&bytes(&sealed["bytes"]), &signature).unwrap();
        assert_eq!(opened, bytes(&sealed["message"]));
    }
}

#[test]
fn what_is_sealed_to_a_real_round_opens_with_its_real_signature() {
    let vector = vector();
    let sealed = seal(&Beacon::quicknet(), 123, b"sealed here", [3; 32]).unwrap();
    assert_eq!(open(&sealed, &bytes(&vector["signature"])).unwrap(), b"sealed here");
    // The layout has no choices: the same message is as long as the official client makes it.
    let official = &vector["sealed"][1];
    let message = bytes(&official["message"]);
    let sealed = seal(&Beacon::quicknet(), 123, &message, [3; 32]).unwrap();
    assert_eq!(sealed.len(), bytes(&official["bytes"]).len());
}
