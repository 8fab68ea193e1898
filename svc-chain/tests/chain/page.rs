//! The commands of the operator's page, `docs/chain-service.md`, as they stand there: `grpcurl`
//! against a service on a development chain, with the token, and with TLS.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use devchain::Genesis;
use kit::{Common, Tls};
use proto::chain::v1::{self, IntentState};
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use store::Store;
use svc_chain::Config;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::{sleep, timeout},
};

use crate::rig::{self, PATIENCE, Running};

const PAGE: &str = include_str!("../../../docs/chain-service.md");
/// What the page has where an operator puts his own.
const ADDRESS: &str = "127.0.0.1:50051";
const BLOCK: &str = "5300808";
const TOKEN_FILE: &str = "/var/lib/connito/data/internal.token";
const OPEN: &str = "-plaintext";
const TLS: &str = "-cacert ca.pem -cert host.pem -key host.key";

/// Where `make setup` has put the tool; nothing where it did not.
fn grpcurl() -> Option<PathBuf> {
    let python = std::env::var_os("CONNITO_PYTHON").map(PathBuf::from);
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../.venv/bin").into();
    let folders = python.and_then(|python| Some(python.parent()?.to_owned())).into_iter();
    folders.chain([own]).find(|folder| folder.join("grpcurl").is_file())
}

/// The commands in the page's fenced blocks, in order, each on one line.
fn commands() -> Vec<String> {
    let blocks = PAGE.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    let joined = blocks.map(|block| block.replace("\\\n", " ")).collect::<Vec<_>>().join("\n");
    joined.lines().filter(|line| line.starts_with("grpcurl")).map(str::to_owned).collect()
}

/// The fields that the page's table says each call answers.
fn promised() -> BTreeMap<&'static str, Vec<&'static str>> {
    let (_, table) = PAGE.split_once("| call | answers | who may |\n").unwrap();
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let ticked = |row: &'static str| row.split('`').skip(1).step_by(2).collect::<Vec<_>>();
    rows.map(ticked).map(|names| (names[0], names[1..].to_vec())).collect()
}

fn method(command: &str) -> &str {
    command.rsplit('/').next().unwrap().trim()
}

/// One host: a service, and where its operator types.
struct Host<'a> {
    addr: SocketAddr,
    folder: &'a Path,
    tools: &'a Path,
    tls: bool,
    /// The newest block.
    block: u64,
}

impl Host<'_> {
    /// The command as this operator types it.
    fn shell(&self, command: &str) -> Command {
        let token = self.folder.join("internal.token");
        let mut line = command
            .replace(ADDRESS, &self.addr.to_string())
            .replace(BLOCK, &self.block.to_string())
            .replace(TOKEN_FILE, token.to_str().unwrap());
        if self.tls {
            assert!(line.contains(OPEN) && PAGE.contains(TLS), "the page says how");
            line = line.replace(OPEN, TLS);
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).current_dir(self.folder);
        shell.env("PATH", format!("{}:{path}", self.tools.display())).kill_on_drop(true);
        shell
    }

    async fn run(&self, command: &str) -> Output {
        timeout(PATIENCE, self.shell(command).output()).await.expect("it ends").unwrap()
    }

    /// What a command that ends well prints.
    async fn answer(&self, command: &str) -> Value {
        let output = self.run(command).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}\n{errors}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{command}: {e}"))
    }

    /// The first thing that a command prints which goes on for ever.
    async fn first(&self, command: &str) -> Value {
        // In a group of its own, so that the tool ends with its shell.
        let mut child = self
            .shell(&format!("exec timeout 60 {command}"))
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut text = String::new();
        let read = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                text.push_str(&line);
                if line == "}" {
                    break;
                }
            }
        };
        timeout(PATIENCE, read).await.expect("something comes");
        child.kill().await.unwrap();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{command}: {e}: {text}"))
    }

    /// Waits until the service answers.
    async fn ready(&self) {
        let identity = commands().into_iter().find(|command| method(command) == "GetIdentity");
        let identity = identity.unwrap();
        let ready = async {
            while !self.run(&identity).await.status.success() {
                sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        timeout(PATIENCE, ready).await.expect("the service gets ready");
    }

    /// Runs every command of the page, and what it started to its end.
    async fn run_all(&self) {
        let promised = promised();
        let mut seen: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        let commands = commands();
        for command in &commands {
            let method = method(command);
            let answer = match method {
                "WatchBlocks" => self.first(command).await,
                "GetIntent" => self.done(command).await,
                _ => self.answer(command).await,
            };
            let fields = answer.as_object().unwrap().keys().cloned();
            seen.entry(method).or_default().extend(fields);
        }
        // What was written can be read now.
        let block = self.newest().await;
        let later = Host { block, ..*self };
        for command in commands.iter().filter(|c| c.contains(r#"{"at": "#)) {
            let fields = later.answer(command).await;
            let fields = fields.as_object().unwrap().keys().cloned();
            seen.entry(method(command)).or_default().extend(fields);
        }
        let shown: BTreeSet<&str> = seen.keys().copied().collect();
        assert_eq!(shown, promised.keys().copied().collect(), "every call is shown");
        for (method, fields) in promised {
            // What went wrong is told where something did.
            let fields = fields.into_iter().filter(|field| {
                method != "WatchBlocks" || !matches!(*field, "reorganisation" | "degradation")
            });
            for field in fields {
                assert!(seen[method].contains(field), "{method} answers no {field}: {seen:?}");
            }
        }
    }

    /// Height of the newest block.
    async fn newest(&self) -> u64 {
        let command = commands().into_iter().find(|command| method(command) == "GetBlock");
        let answer = self.answer(&command.unwrap()).await;
        answer["block"]["number"].as_str().unwrap().parse().unwrap()
    }

    /// Asks for an intent until it is done.
    async fn done(&self, command: &str) -> Value {
        let wait = async {
            loop {
                let answer = self.answer(command).await;
                match answer["state"].as_str().unwrap() {
                    "INTENT_STATE_DONE" => return answer,
                    "INTENT_STATE_FAILED" => panic!("{command}: {answer:#}"),
                    _ => sleep(std::time::Duration::from_millis(100)).await,
                }
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{command} is never done"))
    }
}

/// No limit is in the way of what an operator writes by hand.
fn genesis() -> Genesis {
    Genesis { rate_limit: 1, ..rig::genesis() }
}

#[tokio::test]
async fn every_command_of_the_page_does_what_the_page_says() {
    let Some(tools) = grpcurl() else {
        eprintln!("skipped: there is no grpcurl; `make setup` brings one");
        return;
    };
    let chain = rig::start(genesis()).await;
    let folder = testkit::tempdir().unwrap();
    let common = Common { data_dir: folder.path().to_owned(), ..Common::default() };
    let store = Store::in_memory();
    let mut service = Running::launch_with(rig::config(&chain), common, &store).await;
    service.ready().await;
    let block = u64::from(chain.wait_for_block(3).await.unwrap().number);
    let host = Host { addr: service.addr, folder: folder.path(), tools: &tools, tls: false, block };
    let stranger = commands().into_iter().find(|command| method(command) == "Sign").unwrap();
    let stranger = stranger.replace("Bearer", "Bear");
    let refused = host.run(&stranger).await;
    assert!(!refused.status.success(), "whoever shows no token is refused");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Unauthenticated"), "{refused:?}");
    host.run_all().await;
    let intents = service.client.list_intents(v1::ListIntentsRequest::default()).await.unwrap();
    for intent in intents.into_inner().intents {
        assert_eq!(intent.state(), IntentState::Done, "{intent:?}");
    }
    let calls: Vec<_> = chain.extrinsics().await.unwrap().into_iter().map(|e| e.call).collect();
    assert_eq!(calls.len(), 3, "each was written once: {calls:?}");
    service.stop().await;
}

#[tokio::test]
async fn every_command_of_the_page_goes_over_tls_as_the_page_says() {
    let Some(tools) = grpcurl() else {
        eprintln!("skipped: there is no grpcurl; `make setup` brings one");
        return;
    };
    let chain = rig::start(genesis()).await;
    let folder = testkit::tempdir().unwrap();
    let tls = certificates(folder.path());
    let common = Common { data_dir: folder.path().to_owned(), tls, ..Common::default() };
    let config: Config = rig::config(&chain);
    let service = Running::launch_with(config, common, &Store::in_memory()).await;
    // The commands name a token file: with TLS nobody looks at what is in it.
    std::fs::write(folder.path().join("internal.token"), "of nobody").unwrap();
    let block = u64::from(chain.wait_for_block(3).await.unwrap().number);
    let host = Host { addr: service.addr, folder: folder.path(), tools: &tools, tls: true, block };
    host.ready().await;
    let open = commands().into_iter().next().unwrap();
    let refused = Host { tls: false, ..host }.run(&open).await;
    assert!(!refused.status.success(), "nobody gets in without a certificate");
    Host { tls: true, ..host }.run_all().await;
    service.stop().await;
}

/// An authority and a host's files signed by it, as `deploy/README.md` makes them.
fn certificates(folder: &Path) -> Tls {
    let file = |name: &str| folder.join(name);
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let host = params.signed_by(&key, &authority).unwrap();
    std::fs::write(file("ca.pem"), authority.pem()).unwrap();
    std::fs::write(file("host.pem"), host.pem()).unwrap();
    std::fs::write(file("host.key"), key.serialize_pem()).unwrap();
    Tls { cert: Some(file("host.pem")), key: Some(file("host.key")), ca: Some(file("ca.pem")) }
}
