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
