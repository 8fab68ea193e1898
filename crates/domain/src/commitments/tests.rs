use proptest::{option, prelude::*};

use super::*;

const HASH: &str = "0eee7f1a5039bef07ec2347f066ed08f5dc7512447e34043";

fn hashes() -> impl Strategy<Value = ModelHash> {
    any::<[u8; 24]>().prop_map(ModelHash)
}

fn miners() -> impl Strategy<Value = MinerCommitment> {
    (
        option::of(any::<u32>()),
        option::of(0u32..100),
        option::of(hashes()),
        option::of(0u64..100_000_000),
        option::of(0u64..1000),
        option::of("[a-z/]{1,8}"),
        option::of("[0-9a-f]{7}"),
    )
        .prop_map(|(block, group, model_hash, version, inner_step, repo, revision)| {
            MinerCommitment {
                block: block.map(|block| BlockNumber(block.into())),
                group: group.map(ExpertGroup),
                signature: None,
                model_hash,
                version: version.map(GlobalVersion),
                inner_step,
                repo,
                revision,
            }
        })
}

fn validators() -> impl Strategy<Value = ValidatorCommitment> {
    (
        option::of(hashes()),
        option::of(0u64..100_000_000),
        option::of(0u32..100),
        option::of(any::<u32>()),
        option::of("[a-z/]{1,10}"),
        option::of("[0-9a-f]{7}"),
    )
        .prop_map(|(model_hash, version, group, seed, repo, revision)| ValidatorCommitment {
            model_hash,
            version: version.map(GlobalVersion),
            group: group.map(ExpertGroup),
            seed: seed.map(u64::from),
            repo,
            revision,
        })
}

#[test]
fn keys_are_written_compactly_in_the_order_of_the_protocol() {
    let miner = MinerCommitment {
        block: Some(BlockNumber(331)),
        group: Some(ExpertGroup(1)),
        signature: None,
        model_hash: Some(HASH.parse().unwrap()),
        version: Some(GlobalVersion(7)),
        inner_step: Some(12),
        repo: Some("a/b".to_owned()),
        revision: Some("0123abc".to_owned()),
    };
    assert_eq!(
        miner.to_json().unwrap(),
        format!(r#"{{"b":331,"e":1,"h":"{HASH}","v":7,"i":12,"r":"a/b","rv":"0123abc"}}"#)
    );
    let validator = ValidatorCommitment {
        model_hash: Some(HASH.parse().unwrap()),
        version: Some(GlobalVersion(7)),
        group: Some(ExpertGroup(1)),
        seed: Some(99),
        ..ValidatorCommitment::default()
    };
    assert_eq!(validator.to_json().unwrap(), format!(r#"{{"h":"{HASH}","v":7,"e":1,"s":99}}"#));
}

#[test]
fn a_signature_of_64_bytes_fits() {
    let signed = SignedHashCommitment { signature: Some("A".repeat(86)) };
    assert_eq!(signed.to_json().unwrap().len(), 94);
}

#[test]
fn what_the_chain_would_not_take_is_not_written() {
    let signed = SignedHashCommitment { signature: Some("A".repeat(121)) };
    assert_eq!(signed.to_json(), Err(CommitmentError::TooLong { bytes: 129 }));
    let miner = MinerCommitment { repo: Some("x".repeat(33)), ..MinerCommitment::default() };
    assert_eq!(miner.to_json().unwrap_err().kind(), "bad_field");
    let miner = MinerCommitment { revision: Some("abc".into()), ..MinerCommitment::default() };
    assert_eq!(miner.to_json().unwrap_err().to_string(), "`rv` is not 7 hex digits");
}

#[test]
fn garbage_is_named_by_what_is_wrong_with_it() {
    let cases: [(&[u8], &str); 12] = [
        (&[b' '; 129], "too_long"),
        (b"\xff{}", "not_utf8"),
        (b"", "not_an_object"),
        (b"{\"h\":", "not_an_object"),
        (b"[1,2]", "not_an_object"),
        (b"42", "not_an_object"),
        (b"{}", "foreign"),
        (br#"{"hello":"world"}"#, "foreign"),
        (br#"{"v":null}"#, "foreign"),
        (br#"{"v":-1}"#, "bad_field"),
        (br#"{"e":4294967296}"#, "bad_field"),
        (br#"{"h":"0EEE7F1A5039BEF07EC2347F066ED08F5DC7512447E34043"}"#, "bad_field"),
    ];
    for (bytes, kind) in cases {
        let error = MinerCommitment::parse(bytes).unwrap_err();
        assert_eq!(error.kind(), kind, "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn numbers_that_are_not_whole_or_too_large_are_refused() {
    for json in [r#"{"s":1.5}"#, r#"{"s":"7"}"#, r#"{"s":true}"#, r#"{"s":99999999999999999999}"#] {
        let error = ValidatorCommitment::parse(json.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "`s` is not a whole number");
    }
}

#[test]
fn unknown_keys_and_spaces_are_ignored() {
    let parsed = ValidatorCommitment::parse(br#"{ "s" : 5, "new": [1] }"#).unwrap();
    assert_eq!(parsed, ValidatorCommitment { seed: Some(5), ..ValidatorCommitment::default() });
}

#[test]
fn a_validators_commitment_can_be_read_as_a_miners() {
    let json = format!(r#"{{"h":"{HASH}","v":7,"e":1,"s":99}}"#);
    let miner = MinerCommitment::parse(json.as_bytes()).unwrap();
    assert_eq!(miner.model_hash, Some(HASH.parse().unwrap()));
    assert_eq!((miner.version, miner.group), (Some(GlobalVersion(7)), Some(ExpertGroup(1))));
}

#[test]
fn a_kind_is_told_by_the_keys_and_garbage_by_its_reason() {
    for (text, kind) in [
        (r#"{"m":"c2ln"}"#, Ok("signed_hash")),
        (r#"{"m":"c2ln","x":1,"h":null}"#, Ok("signed_hash")),
        (r#"{"v":7,"e":1,"s":9}"#, Ok("validator")),
        (r#"{"r":"a/b"}"#, Ok("validator")),
        (r#"{"b":100,"e":1,"v":7}"#, Ok("miner")),
        (r#"{"e":1,"m":"c2ln","v":7}"#, Ok("miner")),
        (r#"{"i":100,"m":"c2ln"}"#, Ok("miner")),
        (r#"{"m":7}"#, Err("bad_field")),
        (r#"{"b":-1}"#, Err("bad_field")),
        (r#"{"h":"AB"}"#, Err("bad_field")),
        (r#"{"price":1}"#, Err("foreign")),
        ("[1]", Err("not_an_object")),
        ("", Err("not_an_object")),
    ] {
        let of = CommitmentKind::of(text.as_bytes());
        let of = of.map(CommitmentKind::as_str).map_err(|error| error.kind());
        assert_eq!(of, kind, "{text}");
    }
    assert_eq!(CommitmentKind::of(b"\xff").unwrap_err().kind(), "not_utf8");
    assert_eq!(CommitmentKind::of(&[b'x'; 129]).unwrap_err().kind(), "too_long");
}

proptest! {
    #[test]
    fn what_a_miner_writes_is_read_back(miner in miners()) {
        prop_assume!(miner != MinerCommitment::default());
        match miner.to_json() {
            Ok(json) => {
                prop_assert!(json.len() <= MAX_COMMITMENT_BYTES && !json.contains(' '));
                prop_assert_eq!(MinerCommitment::parse(json.as_bytes()).unwrap(), miner);
            }
            Err(error) => prop_assert_eq!(error.kind(), "too_long"),
        }
    }

    #[test]
    fn what_a_validator_writes_is_read_back(validator in validators()) {
        prop_assume!(validator != ValidatorCommitment::default());
        match validator.to_json() {
            Ok(json) => {
                prop_assert!(json.len() <= MAX_COMMITMENT_BYTES && !json.contains(' '));
                prop_assert_eq!(ValidatorCommitment::parse(json.as_bytes()).unwrap(), validator);
            }
            Err(error) => prop_assert_eq!(error.kind(), "too_long"),
        }
    }

    #[test]
    fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
        let too_long = bytes.len() > MAX_COMMITMENT_BYTES;
        prop_assert!(!too_long || SignedHashCommitment::parse(&bytes).is_err());
        prop_assert!(!too_long || ValidatorCommitment::parse(&bytes).is_err());
        prop_assert!(!too_long || MinerCommitment::parse(&bytes).is_err());
    }

    #[test]
    fn anything_that_is_nearly_json_gives_a_value_or_an_error(
        text in r#"[\{\}\[\]",:mhvesrbi0-9\.\-ntrue\\ ]{0,128}"#,
    ) {
        if let Ok(miner) = MinerCommitment::parse(text.as_bytes()) {
            prop_assert!(miner != MinerCommitment::default());
        }
    }

    /// A kind is given exactly where the bytes can be read as that kind.
    #[test]
    fn what_has_a_kind_can_be_read_as_that_kind(
        text in r#"\{("[mhvesrbi]":("a"|7|null)){1}(,"[mhvesrbi]":("a"|7|null)){0,3}\}"#,
    ) {
        let bytes = text.as_bytes();
        match CommitmentKind::of(bytes) {
            Ok(CommitmentKind::SignedHash) => prop_assert!(SignedHashCommitment::parse(bytes).is_ok()),
            Ok(CommitmentKind::Validator) => prop_assert!(ValidatorCommitment::parse(bytes).is_ok()),
            Ok(CommitmentKind::Miner) => prop_assert!(MinerCommitment::parse(bytes).is_ok()),
            Err(error) => prop_assert!(matches!(error.kind(), "bad_field" | "foreign"), "{}", text),
        }
    }
}
