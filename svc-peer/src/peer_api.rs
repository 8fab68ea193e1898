//! The gRPC face for other validators.

use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use anyhow::bail;
use futures::{Stream, StreamExt as _};
use kit::{Certificate, Fingerprint, GrpcServer};
use proto::peer::v2::{
    Chunk, PushPart, PushReceipt, SignedMessage,
    peer_service_server::{PeerService, PeerServiceServer},
    push_part,
};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    config::Config, desk::Desk, error::Refused, message::MAX_MESSAGE, part::Part, transfer::Brought,
};

/// A push is answered at its end. What stalls ends by itself.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Binds the server for other validators, and tells the fingerprint of the certificate that they
/// see there.
pub(crate) async fn bind(
    config: &Config,
    addr: SocketAddr,
) -> anyhow::Result<(GrpcServer, Option<Fingerprint>)> {
    let (certificate, seen) = match (config.peer_tls, &config.peer_tls_cert, &config.peer_tls_key) {
        (true, None, None) => own(Certificate::self_signed()?),
        (true, Some(cert), Some(key)) => own(Certificate::read(cert, key)?),
        (true, Some(_), None) | (true, None, Some(_)) => {
            bail!("[peer] needs both of peer_tls_cert and peer_tls_key, or neither")
        }
        (false, Some(cert), None) => (None, Some(Certificate::fingerprint_of(cert)?)),
        (false, None, None) => (None, None),
        (false, _, Some(_)) => bail!("[peer] has a peer_tls_key, but peer_tls is off"),
    };
    let server = GrpcServer::bind_public(addr, certificate.as_ref()).await?;
    Ok((server, seen))
}

fn own(certificate: Certificate) -> (Option<Certificate>, Option<Fingerprint>) {
    let fingerprint = certificate.fingerprint();
    (Some(certificate), Some(fingerprint))
}

/// Serves `desk` on `server`.
pub(crate) fn add(server: GrpcServer, desk: Arc<Desk>) -> GrpcServer {
    let service = PeerServiceServer::new(PeerHandler { desk })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    server.timeout(LONGEST).add(service)
}

/// For the peer services of other validators.
#[derive(Debug)]
pub(crate) struct PeerHandler {
    desk: Arc<Desk>,
}

type Chunks = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for PeerHandler {
    type FetchStream = Chunks;

    async fn exchange(
        &self,
        request: Request<SignedMessage>,
    ) -> Result<Response<SignedMessage>, Status> {
        let SignedMessage { body, signature } = request.into_inner();
        let (body, signature) = self.desk.exchange((body, signature)).await?;
        Ok(Response::new(SignedMessage { body, signature }))
    }

    async fn fetch(&self, request: Request<SignedMessage>) -> Result<Response<Chunks>, Status> {
        let SignedMessage { body, signature } = request.into_inner();
        let parts = self.desk.fetch((body, signature)).await?;
        let chunks = parts.map(|part| part.map(Part::into_wire).map_err(Status::from));
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn push(
        &self,
        request: Request<Streaming<PushPart>>,
    ) -> Result<Response<PushReceipt>, Status> {
        let brought =
            request.into_inner().map(|part| brought(part.map_err(|_| Refused::CutShort)?));
        let held = self.desk.push(brought.boxed()).await?;
        Ok(Response::new(PushReceipt { held }))
    }
}

fn brought(part: PushPart) -> Result<Brought, Refused> {
    match proto::convert::required("part", part.part)? {
        push_part::Part::Request(SignedMessage { body, signature }) => {
            Ok(Brought::Request((body, signature)))
        }
        push_part::Part::Chunk(chunk) => Ok(Brought::Part(Part::from_wire(chunk)?)),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use kit::{Line, Shutdown};
    use testkit::{TempDir, tempdir};

    use super::*;

    fn config(change: impl FnOnce(&mut Config)) -> Config {
        let mut config = kit::config::load_with(None, "peer", |_| None).unwrap();
        change(&mut config);
        config
    }

    fn anywhere() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    /// A certificate and its key as an operator has them.
    fn files() -> (TempDir, PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(["validator.example".to_owned()]).unwrap();
        let folder = tempdir().unwrap();
        let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        fs::write(&cert, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (folder, cert, key)
    }

    /// What a caller is shown by a server of this configuration, and what the server is told that
    /// callers see.
    async fn shown(config: Config, scheme: &str) -> (Option<Fingerprint>, Option<Fingerprint>) {
        let (server, named) = bind(&config, anywhere()).await.unwrap();
        let line = Line::open(&format!("{scheme}://{}", server.local_addr())).unwrap();
        let shutdown = Shutdown::default();
        let stop = shutdown.clone();
        shutdown.spawn(async move { kit::serve(server, stop).await.unwrap() });
        let mut client =
            proto::peer::v2::peer_service_client::PeerServiceClient::new(line.channel());
        let answer = client.exchange(SignedMessage::default()).await.unwrap_err();
        assert_eq!(answer.code(), tonic::Code::Unimplemented, "it is reached: {answer:?}");
        shutdown.cancel();
        (line.shown(), named)
    }

    #[tokio::test]
    async fn others_see_the_certificate_that_the_server_is_told_they_see() {
        let (made, named) = shown(config(|_| {}), "https").await;
        assert!(made.is_some());
        assert_eq!(made, named);

        let (_folder, cert, key) = files();
        let of_file = Certificate::fingerprint_of(&cert).unwrap();
        let own = |config: &mut Config| {
            config.peer_tls_cert = Some(cert.clone());
            config.peer_tls_key = Some(key.clone());
        };
        assert_eq!(shown(config(own), "https").await, (Some(of_file), Some(of_file)));

        let plain = |config: &mut Config| config.peer_tls = false;
        assert_eq!(shown(config(plain), "http").await, (None, None));
        // Others see a proxy's.
        let behind = |config: &mut Config| {
            config.peer_tls = false;
            config.peer_tls_cert = Some(cert.clone());
        };
        assert_eq!(shown(config(behind), "http").await, (None, Some(of_file)));
    }

    #[tokio::test]
    async fn tls_by_halves_is_refused() {
        let (_folder, cert, key) = files();
        for (tls, cert, key) in [
            (true, Some(cert.clone()), None),
            (true, None, Some(key.clone())),
            (false, Some(cert), Some(key.clone())),
            (false, None, Some(key)),
        ] {
            let half = config(|config| {
                config.peer_tls = tls;
                config.peer_tls_cert = cert;
                config.peer_tls_key = key;
            });
            let error = bind(&half, anywhere()).await.unwrap_err();
            assert!(error.to_string().contains("peer_tls"), "{error:#}");
        }
    }
}
