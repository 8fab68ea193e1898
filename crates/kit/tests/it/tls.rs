//! Mutual TLS: who may talk to whom.

use std::{fs, path::PathBuf};

use kit::{GrpcServer, Shutdown, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use testkit::{TempDir, tempdir};
use tonic::Status;

use crate::fake::{Fake, Handler, call};

#[derive(Debug, Clone)]
struct Open;

#[tonic::async_trait]
impl Handler for Open {
    async fn say(&self, word: String) -> Result<String, Status> {
        Ok(word)
    }
}

/// An authority, and a host's files signed by it.
pub(crate) struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let folder = tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { folder, issuer }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes the files of a host that is called `name`.
    pub(crate) fn host(&self, name: &str) -> Tls {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.file("cert.pem"), cert.pem()).unwrap();
        fs::write(self.file("key.pem"), key.serialize_pem()).unwrap();
        Tls {
            cert: Some(self.file("cert.pem")),
            key: Some(self.file("key.pem")),
            ca: Some(self.file("ca.pem")),
        }
    }
}

/// Serves with `tls` and returns the port.
async fn serve(tls: &Tls) -> u16 {
    let addr = "127.0.0.1:0".parse().unwrap();
    let server = GrpcServer::bind(addr, tls).await.unwrap().add(Fake(Open));
    let port = server.local_addr().port();
    tokio::spawn(kit::serve(server, Shutdown::default()));
    port
}

async fn says(url: &str, tls: &Tls) -> Result<String, Status> {
    call(kit::channel(url, tls).unwrap(), "/test.Fake/Say", "hello").await
}

#[tokio::test]
async fn hosts_of_one_authority_talk_and_all_others_are_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (own, foreign) = (ours.host("localhost"), theirs.host("localhost"));
    let port = serve(&own).await;
    let url = format!("https://localhost:{port}");
    assert_eq!(says(&url, &own).await.unwrap(), "hello");

    // Neither side trusts the other.
    assert!(says(&url, &foreign).await.is_err());
    // The client trusts the server, but shows a certificate of another authority.
    let impostor = Tls { ca: own.ca.clone(), ..foreign.clone() };
    assert!(says(&url, &impostor).await.is_err());
    // The client is one of ours, but takes the server for one of theirs.
    let misled = Tls { ca: foreign.ca.clone(), ..own.clone() };
    assert!(says(&url, &misled).await.is_err());
    // Plain text.
    let plain = format!("http://127.0.0.1:{port}");
    assert!(says(&plain, &Tls::default()).await.is_err());
    // The certificate is for another name.
    assert!(says(&format!("https://127.0.0.1:{port}"), &own).await.is_err());

    assert_eq!(says(&url, &own).await.unwrap(), "hello", "the server has survived them all");
}

#[tokio::test]
async fn tls_by_halves_is_refused_at_both_ends() {
    let full = Authority::new();
    let tls = full.host("localhost");
    let addr = "127.0.0.1:0".parse().unwrap();
    for half in [
        Tls { ca: None, ..tls.clone() },
        Tls { key: None, ..tls.clone() },
        Tls { cert: None, ..tls.clone() },
        Tls { key: Some("missing.pem".into()), ..tls.clone() },
    ] {
        let server = GrpcServer::bind(addr, &half).await.unwrap_err();
        let client = kit::channel("https://localhost:1", &half).unwrap_err();
        assert_eq!(format!("{server:#}"), format!("{client:#}"));
    }
}

#[tokio::test]
async fn a_url_and_the_configuration_must_agree_about_tls() {
    let authority = Authority::new();
    let tls = authority.host("localhost");
    let error = kit::channel("http://localhost:1", &tls).unwrap_err();
    assert!(format!("{error:#}").contains("not https"), "nothing goes out in the clear: {error:#}");
    let error = kit::channel("https://localhost:1", &Tls::default()).unwrap_err();
    assert!(format!("{error:#}").contains("no TLS is configured"), "{error:#}");
    assert!(kit::channel("not a url", &Tls::default()).is_err());
}
