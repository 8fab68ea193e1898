use super::*;

#[test]
fn one_thing_has_one_name_whichever_road_it_comes_by() {
    for (dispatch, custom, reason) in [
        ("SubtensorModule::SettingWeightsTooFast", 6, "rate_limited"),
        ("SubtensorModule::ServingRateLimitExceeded", 12, "rate_limited"),
        ("SubtensorModule::NotEnoughStakeToSetWeights", 1, "stake_too_low"),
        ("SubtensorModule::SubnetNotExists", 3, "no_such_subnet"),
        ("SubtensorModule::HotKeyNotRegisteredInSubNet", 10, "not_registered"),
        ("SubtensorModule::InvalidIpAddress", 11, "bad_address"),
        ("SubtensorModule::InvalidPort", 13, "bad_port"),
        ("SubtensorModule::WeightVecNotEqualSize", 18, "lengths_differ"),
        ("SubtensorModule::UidVecContainInvalidOne", 19, "no_such_uid"),
        ("SubtensorModule::InvalidRevealRound", 15, "reveal_round"),
        ("SubtensorModule::NoWeightsCommitFound", 16, "reveal"),
        ("SubtensorModule::RevealTooEarly", 17, "reveal_too_early"),
    ] {
        let after = Failure::from_dispatch(dispatch);
        let before =
            Failure::from_pool(1010, "Invalid Transaction", &format!("Custom error: {custom}"));
        assert_eq!(Some(&after), before.as_ref());
        assert_eq!(after.reason(), reason);
    }
}

#[test]
fn the_pools_own_refusals_are_told_apart() {
    let data = |data| Failure::from_pool(1010, "Invalid Transaction", data).unwrap();
    assert_eq!(data("Transaction is outdated"), Failure::StaleNonce);
    assert_eq!(data("Transaction will be valid in the future"), Failure::FutureNonce);
    assert_eq!(data("Transaction has a bad signature").reason(), "bad_proof");
    assert_eq!(data("Transaction has an ancient birth block").reason(), "bad_proof");
    assert_eq!(data("Custom error: 255").reason(), "bad_request");
    assert_eq!(data("\"Custom error: 6\"").reason(), "rate_limited");
    assert_eq!(data("something new").reason(), "bad_request");
    let code = |code| Failure::from_pool(code, "", "").map(|failure| failure.reason());
    assert_eq!(code(1012), Some("banned"));
    assert_eq!(code(1013), Some("already_known"));
    assert_eq!(code(1014), Some("low_priority"));
    assert_eq!(code(1016), Some("pool_full"));
    assert_eq!(code(-32000), None);
}

#[test]
fn an_error_without_a_case_of_its_own_keeps_its_name_and_is_final() {
    let failure = Failure::from_dispatch("SubtensorModule::SomethingOfNextYear");
    assert_eq!(failure.reason(), "other");
    assert_eq!(failure.to_string(), "SubtensorModule::SomethingOfNextYear");
    assert_eq!(failure.advice(), Advice::Never);
}

#[test]
fn a_rate_limit_waits_and_a_lost_extrinsic_is_signed_again() {
    assert_eq!(Failure::RateLimited.advice(), Advice::WhenAllowed);
    assert_eq!(Failure::Expired.advice(), Advice::Resign { after: 0 });
    assert_eq!(Failure::AlreadyKnown.advice(), Advice::Follow);
    assert_eq!(Failure::NotRegistered.advice(), Advice::Never);
}

#[test]
fn a_failure_survives_the_store() {
    for failure in [
        Failure::RateLimited,
        Failure::Other { name: "A::B".to_owned() },
        Failure::Superseded { by: "7/weights".to_owned() },
    ] {
        let json = serde_json::to_string(&failure).unwrap();
        assert_eq!(serde_json::from_str::<Failure>(&json).unwrap(), failure, "{json}");
    }
}
