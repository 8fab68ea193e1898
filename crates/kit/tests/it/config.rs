//! Configuration: what wins, and what is refused, by name.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use kit::{
    Common, LogFormat,
    config::{load_with, template},
};
use testkit::{TempDir, tempdir};

/// A service, for tests.
#[derive(Debug, PartialEq, confique::Config)]
struct Example {
    /// Address of the gRPC server.
    #[config(default = "127.0.0.1:50052")]
    grpc_addr: SocketAddr,

    /// Something that has no default.
    count: u32,

    /// Something that is a list.
    #[config(default = ["a"])]
    names: Vec<String>,

    /// Limits.
    #[config(nested)]
    limits: Limits,
}

/// Limits.
#[derive(Debug, PartialEq, confique::Config)]
struct Limits {
    /// How long an upload may take.
    #[config(
        default = "15s",
        deserialize_with = humantime_serde::deserialize,
        validate(!upload.is_zero(), "must not be zero")
    )]
    upload: Duration,

    /// How many there may be.
    parallel: Option<usize>,
}

struct File {
    _folder: TempDir,
    path: PathBuf,
}

fn file(text: &str) -> File {
    let folder = tempdir().unwrap();
    let path = folder.path().join("connito.toml");
    fs::write(&path, text).unwrap();
    File { _folder: folder, path }
}

fn load(text: &str, env: &[(&str, &str)]) -> anyhow::Result<Example> {
    load_with(Some(&file(text).path), "scheduler", |name| {
        env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    })
}

fn refusal(text: &str, env: &[(&str, &str)]) -> String {
    format!("{:#}", load(text, env).unwrap_err())
}

fn no_env(_: &str) -> Option<String> {
    None
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
    let text = "
        [common]
        namespace = 'mine'
        [scheduler]
        count = 1
        names = ['x', 'y']
        [scheduler.limits]
        upload = '2m'
        [gateway]
        whatever = 'is not checked by the scheduler'
    ";
    let from_file = load(text, &[]).unwrap();
    assert_eq!(from_file.grpc_addr, "127.0.0.1:50052".parse().unwrap());
    assert_eq!((from_file.count, from_file.names.len()), (1, 2));
    let limits = Limits { upload: Duration::from_secs(120), parallel: None };
    assert_eq!(from_file.limits, limits);

    let env = [
        ("CONNITO_SCHEDULER_GRPC_ADDR", "0.0.0.0:1"),
        ("CONNITO_SCHEDULER_COUNT", "7"),
        ("CONNITO_SCHEDULER_NAMES", "['z']"),
        ("CONNITO_SCHEDULER_LIMITS_UPLOAD", "90s"),
        ("CONNITO_SCHEDULER_LIMITS_PARALLEL", "3"),
    ];
    let from_env = load(text, &env).unwrap();
    assert_eq!(
        from_env,
        Example {
            grpc_addr: "0.0.0.0:1".parse().unwrap(),
            count: 7,
            names: vec!["z".to_owned()],
            limits: Limits { upload: Duration::from_secs(90), parallel: Some(3) },
        }
    );
}

#[test]
fn a_text_that_looks_like_a_number_stays_a_text() {
    let common: Common = load_with(None, "common", |name| {
        (name == "CONNITO_NAMESPACE" || name == "CONNITO_INSTANCE").then(|| "102".to_owned())
    })
    .unwrap();
    assert_eq!((common.namespace.as_str(), common.instance.as_str()), ("102", "102"));
}

#[test]
fn an_unknown_key_is_refused_by_name_and_file_at_any_depth() {
    let error = refusal("[scheduler]\ncount = 1\ngrpc_adr = '127.0.0.1:1'", &[]);
    assert!(error.contains("`scheduler.grpc_adr`") && error.contains("connito.toml"), "{error}");
    assert!(error.contains("grpc_addr"), "what is known is told: {error}");
    let error = refusal("[scheduler]\ncount = 1\n[scheduler.limits]\nuplod = '1s'", &[]);
    assert!(error.contains("`scheduler.limits.uplod`"), "{error}");
    let error = refusal("[scheduler]\nlimits = 3", &[]);
    assert!(error.contains("`scheduler.limits` must be a table"), "{error}");
}

#[test]
fn an_unknown_section_or_a_key_outside_of_sections_is_refused() {
    let error = refusal("[scheduler]\ncount = 1\n[schedular]\ncount = 1", &[]);
    assert!(error.contains("`schedular`") && error.contains("connito.toml"), "{error}");
    let error = refusal("count = 1", &[]);
    assert!(error.contains("`count`"), "{error}");
    let error = refusal("scheduler = 1", &[]);
    assert!(error.contains("must be a section"), "{error}");
}

#[test]
fn a_value_of_the_wrong_kind_is_refused_by_key_or_variable() {
    for (text, key) in [
        ("[scheduler]\ncount = 'many'", "`scheduler.count`"),
        ("[scheduler]\ncount = -1", "`scheduler.count`"),
        ("[scheduler]\ncount = 1\ngrpc_addr = 'localhost'", "`scheduler.grpc_addr`"),
        ("[scheduler]\ncount = 1\n[scheduler.limits]\nupload = 15", "`scheduler.limits.upload`"),
        ("[scheduler]\ncount = 1\n[scheduler.limits]\nupload = '0s'", "must not be zero"),
    ] {
        let error = refusal(text, &[]);
        assert!(error.contains(key) && error.contains("connito.toml"), "{error}");
    }
    let error = refusal("", &[("CONNITO_SCHEDULER_COUNT", "many")]);
    assert!(error.contains("CONNITO_SCHEDULER_COUNT"), "{error}");
}

#[test]
fn a_required_key_that_nobody_gives_is_named() {
    let error = refusal("[common]", &[]);
    assert!(error.contains("count"), "{error}");
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_named() {
    let missing = tempdir().unwrap().path().join("missing.toml");
    let error = load_with::<Example>(Some(&missing), "scheduler", no_env).unwrap_err();
    assert!(format!("{error:#}").contains("missing.toml"), "{error:#}");
    let error = refusal("[scheduler\n", &[]);
    assert!(error.contains("connito.toml") && error.contains("line 1"), "{error}");
}

#[test]
fn without_file_and_environment_common_is_its_default() {
    let loaded: Common = load_with(None, "common", no_env).unwrap();
    assert_eq!(format!("{loaded:?}"), format!("{:?}", Common::default()));
}

#[test]
fn the_template_is_the_default_once_its_comments_are_taken_off() {
    let text = template::<Common>("common");
    assert!(text.contains("\n[common]\n") && text.contains("\n[common.tls]\n"), "{text}");
    assert!(text.contains("CONNITO_STORE_URL"), "{text}");

    // As it is, it changes nothing; with all defaults taken in, neither.
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if key.contains(" = ") && !key.starts_with(' ') => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(text, uncommented);
    for text in [text, uncommented] {
        let loaded: Common = load_with(Some(&file(&text).path), "common", no_env).unwrap();
        assert_eq!(format!("{loaded:?}"), format!("{:?}", Common::default()), "{text}");
    }
}

#[test]
fn a_template_of_two_sections_is_one_file() {
    let text = kit::Cli::template::<Example>("scheduler");
    let path = file(&text).path.clone();
    assert!(!path.exists(), "the folder went with its handle");
    let file = file(&text);
    let env = |name: &str| (name == "CONNITO_SCHEDULER_COUNT").then(|| "1".to_owned());
    let example: Example = load_with(Some(&file.path), "scheduler", env).unwrap();
    assert_eq!(example.limits.upload, Duration::from_secs(15));
    assert!(text.contains("[scheduler.limits]"), "{text}");
}

#[test]
fn the_log_format_is_one_of_three_words() {
    let load = |value: &'static str| {
        load_with::<Common>(None, "common", move |name| {
            (name == "CONNITO_LOG_FORMAT").then(|| value.to_owned())
        })
    };
    assert_eq!(load("json").unwrap().log_format, LogFormat::Json);
    let error = format!("{:#}", load("yaml").unwrap_err());
    assert!(error.contains("CONNITO_LOG_FORMAT") && error.contains("human"), "{error}");
}
