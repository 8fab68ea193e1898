//! Who calls: the token of a host, the certificate of a service, and what strangers are told.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Barrier,
};

use kit::{
    Channel, Common, GrpcServer, Shutdown, Tls,
    auth::{self, Caller, Guard, Token},
    config::load_with,
};
use testkit::tempdir;
use tonic::{Code, Request, Status, metadata::MetadataValue};

use crate::{
    fake::{Fake, Handler, call},
    tls::Authority,
};

const SECRET: &str = "a-secret-that-nobody-ever-writes-down";

fn host(folder: &Path) -> Common {
    Common { data_dir: folder.join("data"), ..Common::default() }
}

fn with_secret(secret: &str) -> Common {
    Common { token: Some(secret.into()), data_dir: "/nowhere".into(), ..Common::default() }
}

/// A call with this header, as a server sees it.
fn with_header(value: &str) -> Request<()> {
    let mut request = Request::new(());
    let value: MetadataValue<_> = value.parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

fn opened(common: &Common) -> String {
    format!("{:#}", Token::open(common).unwrap_err())
}

#[test]
fn services_that_start_at_once_make_one_token_and_nobody_else_may_read_it() {
    const SERVICES: usize = 16;
    let folder = tempdir().unwrap();
    let (common, all) = (host(folder.path()), Barrier::new(SERVICES));
    let guards: Vec<Guard> = std::thread::scope(|scope| {
        let start = |_| {
            scope.spawn(|| {
                all.wait();
                Guard::new(Some(Token::open(&common).unwrap()), false)
            })
        };
        let threads: Vec<_> = (0..SERVICES).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let path = common.data_dir.join("internal.token");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(hex::decode(text.trim_end()).unwrap().len(), 32);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let request = with_header(&format!("Bearer {}", text.trim_end()));
    assert!(guards.iter().all(|guard| guard.caller(&request).unwrap() == Caller::Token));
    let left: Vec<_> = fs::read_dir(&common.data_dir).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing but the token is left: {left:?}");

    // Another host has another one.
    let other = tempdir().unwrap();
    let other = Guard::open(&host(other.path())).unwrap();
    assert_eq!(other.caller(&request).unwrap_err().code(), Code::Unauthenticated);
}

#[test]
fn a_file_that_others_may_read_is_refused_with_the_command_that_mends_it() {
    let folder = tempdir().unwrap();
    let common = host(folder.path());
    Token::open(&common).unwrap();
    let path = common.data_dir.join("internal.token");
    for mode in [0o644, 0o640, 0o604, 0o660] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = opened(&common);
        assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    Token::open(&common).unwrap();
}

#[test]
fn what_is_no_token_is_refused_by_where_it_was_found_and_not_shown() {
    for secret in
        ["", "too-short", &"x".repeat(300), &format!("{SECRET} {SECRET}"), "ä".repeat(20).as_str()]
    {
        let error = opened(&with_secret(secret));
        assert!(error.contains("CONNITO_TOKEN") && error.contains("openssl rand"), "{error}");
        assert!(secret.is_empty() || !error.contains(secret), "{error}");
    }
    let folder = tempdir().unwrap();
    let file = folder.path().join("mine");
    let common = Common { token_file: Some(file.clone()), ..host(folder.path()) };
    for content in ["", "\n", "short\n", &format!("{SECRET}\n{SECRET}\n")] {
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(opened(&common).contains(&file.display().to_string()));
    }
    fs::write(&file, [0xff; 64]).unwrap();
    assert!(opened(&common).contains(&file.display().to_string()));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(opened(&common).contains("not a file"));
    let common = Common { token_file: Some(PathBuf::from("/dev/null/token")), ..common };
    assert!(opened(&common).contains("/dev/null/token"));
}

#[test]
fn the_environment_wins_over_the_file_and_then_no_file_is_made() {
    let folder = tempdir().unwrap();
    let common = Common { token: Some(SECRET.into()), ..host(folder.path()) };
    let guard = Guard::open(&common).unwrap();
    assert_eq!(guard.caller(&with_header(&format!("bearer {SECRET}"))).unwrap(), Caller::Token);
    assert!(!common.data_dir.exists());
    // A file of one's own may end with a line.
    let file = folder.path().join("mine");
    fs::write(&file, format!("{SECRET}\r\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let guard = Guard::open(&Common { token: None, token_file: Some(file), ..common }).unwrap();
    assert_eq!(guard.caller(&with_header(&format!("Bearer {SECRET}"))).unwrap(), Caller::Token);
}

#[test]
fn the_secret_is_taken_from_the_environment_only_and_never_shown() {
    let env = |name: &str| (name == "CONNITO_TOKEN").then(|| SECRET.to_owned());
    let common: Common = load_with(None, "common", env).unwrap();
    let (token, guard) = (Token::open(&common).unwrap(), Guard::open(&common).unwrap());
    for shown in [format!("{common:?}"), format!("{token:?}"), format!("{guard:?}")] {
        assert!(!shown.contains(SECRET), "{shown}");
    }

    let folder = tempdir().unwrap();
    let file = folder.path().join("connito.toml");
    fs::write(&file, format!("[common]\ntoken = '{SECRET}'\n")).unwrap();
    let error = format!("{:#}", load_with::<Common>(Some(&file), "common", |_| None).unwrap_err());
    assert!(error.contains("`common.token`") && error.contains("CONNITO_TOKEN"), "{error}");
    assert!(!error.contains(SECRET), "{error}");
}

#[test]
fn a_stranger_is_told_what_is_missing_and_never_the_secret() {
    let guard = Guard::open(&with_secret(SECRET)).unwrap();
    let nearly = format!("Bearer {}x", &SECRET[..SECRET.len() - 1]);
    for (request, hint) in [
        (Request::new(()), "no header `authorization: Bearer TOKEN`"),
        (with_header(SECRET), "not of the form"),
        (with_header("Basic eDp5"), "not of the form"),
        (with_header(""), "not of the form"),
        (with_header("Bearer"), "not of the form"),
        (with_header("Bearer "), "not this service's"),
        (with_header(&nearly), "not this service's"),
        (with_header(&format!("Bearer {SECRET}{SECRET}")), "not this service's"),
    ] {
        let status = guard.caller(&request).unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains(hint), "{hint}: {}", status.message());
        assert!(!status.message().contains(SECRET));
    }
    let missing = guard.caller(&Request::new(())).unwrap_err();
    assert!(missing.message().contains("CONNITO_TOKEN"), "{}", missing.message());
    // Who has neither knows nobody, whatever is shown.
    let blind = Guard::new(None, false);
    let status = blind.caller(&with_header(&format!("Bearer {SECRET}"))).unwrap_err();
    assert!(status.message().contains("neither TLS nor a token"), "{}", status.message());
    // A token is no certificate.
    let strict = Guard::new(Some(Token::open(&with_secret(SECRET)).unwrap()), true);
    let status = strict.caller(&with_header(&format!("Bearer {SECRET}"))).unwrap_err();
    assert!(status.message().contains("no client certificate"), "{}", status.message());
}

/// Answers with who calls.
#[derive(Debug, Clone)]
struct Asks(Guard);

#[tonic::async_trait]
impl Handler for Asks {
    async fn say(&self, _: String) -> Result<String, Status> {
        unreachable!("it looks at the request")
    }

    async fn asked(&self, request: Request<String>) -> Result<String, Status> {
        Ok(format!("{:?}", self.0.caller(&request)?))
    }
}

/// Serves what [`Asks`], and returns the port.
async fn serve(guard: Guard, tls: &Tls) -> u16 {
    let addr = "127.0.0.1:0".parse().unwrap();
    let server = GrpcServer::bind(addr, tls).await.unwrap().add(Fake(Asks(guard)));
    let port = server.local_addr().port();
    tokio::spawn(kit::serve(server, Shutdown::default()));
    port
}

async fn who(channel: Channel) -> Result<String, Status> {
    call(channel, "/test.Fake/Say", "who am I?").await
}

#[tokio::test]
async fn a_channel_shows_the_token_of_its_host_and_any_other_channel_shows_nothing() {
    let folder = tempdir().unwrap();
    let common = host(folder.path());
    let port = serve(Guard::open(&common).unwrap(), &Tls::default()).await;
    let url = format!("http://127.0.0.1:{port}");
    let own = auth::channel(&url, &common).unwrap();
    for _ in 0..2 {
        assert_eq!(who(own.clone()).await.unwrap(), "Token", "every call shows it");
    }
    assert!(
        !format!("{own:?}")
            .contains(&fs::read_to_string(common.data_dir.join("internal.token")).unwrap())
    );
    let bare = who(kit::channel(&url, &Tls::default()).unwrap()).await.unwrap_err();
    assert_eq!(bare.code(), Code::Unauthenticated);
    assert!(bare.message().contains("no header"), "{}", bare.message());
    let foreign = who(auth::channel(&url, &with_secret(SECRET)).unwrap()).await.unwrap_err();
    assert!(foreign.message().contains("not this service's"), "{}", foreign.message());
}

#[tokio::test]
async fn with_tls_the_certificate_says_who_calls_and_no_token_is_made() {
    let (authority, folder) = (Authority::new(), tempdir().unwrap());
    let server = Common { tls: authority.host("localhost"), ..host(folder.path()) };
    let port = serve(Guard::open(&server).unwrap(), &server.tls).await;
    let url = format!("https://localhost:{port}");
    let channel = auth::channel(&url, &server).unwrap();
    assert_eq!(who(channel).await.unwrap(), r#"Certificate { name: "localhost" }"#);
    // A certificate without a DNS name is known by its fingerprint.
    let client = Common { tls: authority.host("127.0.0.1"), ..server.clone() };
    let told = who(auth::channel(&url, &client).unwrap()).await.unwrap();
    let name = told.strip_prefix(r#"Certificate { name: "sha256:"#).unwrap();
    assert_eq!(name.trim_end_matches("\" }").len(), 16, "{told}");
    assert!(!server.data_dir.exists(), "nobody has made a token");
}
