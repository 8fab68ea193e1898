use super::*;

fn parsed(variables: &[(&str, &str)]) -> anyhow::Result<Config> {
    kit::config::load_with(None, "chain", |name| {
        variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

#[test]
fn the_defaults_of_the_code_are_the_defaults_of_the_template() {
    let mut from_template = parsed(&[]).unwrap();
    from_template.wallet_password = None; // the environment of the test may hold one
    assert_eq!(format!("{from_template:?}"), format!("{:?}", Config::defaults()));
    from_template.check().unwrap();
}

#[test]
fn a_named_network_brings_its_endpoints_and_its_genesis() {
    let config = parsed(&[("CONNITO_CHAIN_NETWORK", "finney")]).unwrap();
    assert_eq!(config.urls().unwrap(), ["wss://entrypoint-finney.opentensor.ai:443"]);
    assert_eq!(config.genesis().unwrap().unwrap()[..2], [0x2f, 0x05]);
    let own = parsed(&[
        ("CONNITO_CHAIN_NETWORK", "finney"),
        ("CONNITO_CHAIN_ENDPOINTS", "[\"ws://10.0.0.1:9944\"]"),
    ])
    .unwrap();
    assert_eq!(own.urls().unwrap(), ["ws://10.0.0.1:9944"]);
    assert!(own.genesis().unwrap().is_some(), "own endpoints must be of the named network");
}

#[test]
fn the_password_is_never_shown() {
    let config = Config { wallet_password: Some("hunter2".into()), ..Config::defaults() };
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn what_means_nothing_is_refused_by_name() {
    let defaults = Config::defaults();
    let config = Config { mortality: 33, ..defaults.clone() };
    assert_eq!(config.check(), Err(ConfigError::Mortality(33)));
    let config = Config { genesis_hash: Some("0x12".to_owned()), ..defaults.clone() };
    assert_eq!(config.check(), Err(ConfigError::GenesisHash("0x12".to_owned())));
    let config = Config { endpoints: vec!["http://a".to_owned()], ..defaults.clone() };
    assert_eq!(config.check(), Err(ConfigError::Endpoint("http://a".to_owned())));
    let config = Config { netuid: 4096, ..defaults.clone() };
    assert_eq!(config.check(), Err(ConfigError::NetUid(4096)));
    let config = Config { lease_ttl: Duration::ZERO, ..defaults.clone() };
    assert_eq!(config.check(), Err(ConfigError::LeaseTtl));
    let config = Config { round_signatures_per_minute: 0, ..defaults.clone() };
    let none = ConfigError::NoSignatures("round_signatures_per_minute");
    assert_eq!(config.check(), Err(none));
    let config = Config { max_attempts: 0, ..defaults.clone() };
    assert_eq!(config.check(), Err(ConfigError::MaxAttempts));
    let config = Config { max_lag: 0, ..defaults.clone() };
    assert_eq!(config.check(), Err(ConfigError::MaxLag));
    let config = Config { probe_interval: Duration::ZERO, ..defaults.clone() };
    assert_eq!(config.check(), Err(ConfigError::ProbeInterval));
    let config = Config { endpoints: vec!["ws://a".to_owned(); 2], ..defaults };
    assert_eq!(config.check(), Err(ConfigError::SameEndpoint("ws://a".to_owned())));
}

#[test]
fn two_endpoints_must_agree_unless_told_otherwise_and_no_more_than_there_are() {
    let with = |endpoints: &[&str], quorum| Config {
        endpoints: endpoints.iter().map(|url| (*url).to_owned()).collect(),
        quorum,
        ..Config::defaults()
    };
    assert_eq!(with(&[], None).quorum(), Ok(1));
    assert_eq!(with(&["ws://a", "ws://b", "ws://c"], None).quorum(), Ok(2));
    assert_eq!(with(&["ws://a", "ws://b", "ws://c"], Some(3)).quorum(), Ok(3));
    for quorum in [0, 3] {
        let error = with(&["ws://a", "ws://b"], Some(quorum)).check().unwrap_err();
        assert_eq!(error, ConfigError::Quorum { quorum, endpoints: 2 });
        let text = error.to_string();
        assert!(text.contains(&quorum.to_string()) && text.contains('2'), "{text}");
    }
}

#[test]
fn finney_is_recovered_from_its_archive_nodes_and_own_endpoints_from_own_ones() {
    let finney = Config { network: Network::Finney, ..Config::defaults() };
    let archive = ["wss://archive.chain.opentensor.ai:443"];
    assert_eq!(finney.archive_urls().unwrap(), archive);
    let own = Config { endpoints: vec!["ws://a".to_owned()], ..finney };
    assert_eq!(own.archive_urls().unwrap(), Vec::<String>::new());
    let own = Config { archive_endpoints: vec!["ws://b".to_owned()], ..own };
    assert_eq!(own.archive_urls().unwrap(), ["ws://b"]);
}
