//! For tests: validators' keys, and a chain service that only signs.

use domain::Hotkey;
use kit::{GrpcServer, Shutdown, Tls};
use merge::{Said, Signature, Signed, Verified};
use proto::chain::v1::{
    self as chain,
    chain_service_server::{ChainService, ChainServiceServer},
};
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey};
use tonic::{Request, Response, Status};

use crate::{
    message::{self, Keys},
    signer::Signer,
};

fn keypair(seed: u8) -> Keypair {
    MiniSecretKey::from_bytes(&[seed; 32]).unwrap().expand_to_keypair(ExpansionMode::Ed25519)
}

/// The hotkey of a validator.
pub(crate) fn hotkey(seed: u8) -> Hotkey {
    Hotkey::from_public_key(keypair(seed).public.to_bytes())
}

/// Its signature over the digest of a message or a statement.
pub(crate) fn sign(seed: u8, digest: &[u8; 32]) -> [u8; 64] {
    keypair(seed).sign_simple(b"substrate", &message::signed_bytes(digest)).to_bytes()
}

/// A statement of the validator, signed.
pub(crate) fn verified(seed: u8, said: Said) -> Verified {
    let signature = Signature(sign(seed, &said.digest().0));
    Verified::new(Signed { said, signature }, &Keys).unwrap()
}

/// A signer for the validator, at a chain service that ends with `shutdown`.
pub(crate) async fn signer(seed: u8, shutdown: &Shutdown) -> Signer {
    let addr = "127.0.0.1:0".parse().unwrap();
    let server = GrpcServer::bind(addr, &Tls::default()).await.unwrap();
    let url = format!("http://{}", server.local_addr());
    let server = server.add(ChainServiceServer::new(Signing { seed }));
    let stop = shutdown.clone();
    shutdown.spawn(async move { kit::serve(server, stop).await.unwrap() });
    Signer::new(kit::channel(&url, &Tls::default()).unwrap())
}

struct Signing {
    seed: u8,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ChainService for Signing {
    type WatchBlocksStream = futures::stream::Empty<Result<chain::ChainEvent, Status>>;

    async fn sign(&self, request: Request<chain::SignRequest>) -> Answer<chain::SignResponse> {
        let Some(chain::sign_request::Purpose::PeerDigest(digest)) = request.into_inner().purpose
        else {
            return Err(Status::invalid_argument("another purpose"));
        };
        let digest = digest[..].try_into().map_err(|_| Status::invalid_argument("no digest"))?;
        let signature = sign(self.seed, &digest).to_vec().into();
        Ok(Response::new(chain::SignResponse { signature }))
    }

    async fn get_identity(
        &self,
        _: Request<chain::GetIdentityRequest>,
    ) -> Answer<chain::GetIdentityResponse> {
        let hotkey = hotkey(self.seed).to_string();
        Ok(Response::new(chain::GetIdentityResponse { hotkey, ..Default::default() }))
    }

    async fn watch_blocks(
        &self,
        _: Request<chain::WatchBlocksRequest>,
    ) -> Answer<Self::WatchBlocksStream> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_status(
        &self,
        _: Request<chain::GetStatusRequest>,
    ) -> Answer<chain::GetStatusResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn list_intents(
        &self,
        _: Request<chain::ListIntentsRequest>,
    ) -> Answer<chain::ListIntentsResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_block(
        &self,
        _: Request<chain::GetBlockRequest>,
    ) -> Answer<chain::GetBlockResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_metagraph(
        &self,
        _: Request<chain::GetMetagraphRequest>,
    ) -> Answer<chain::Metagraph> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_weights(
        &self,
        _: Request<chain::GetWeightsRequest>,
    ) -> Answer<chain::GetWeightsResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_commitments(
        &self,
        _: Request<chain::GetCommitmentsRequest>,
    ) -> Answer<chain::GetCommitmentsResponse> {
        Err(Status::unimplemented("not here"))
    }

    async fn submit_intent(&self, _: Request<chain::SubmitIntentRequest>) -> Answer<chain::Intent> {
        Err(Status::unimplemented("not here"))
    }

    async fn get_intent(&self, _: Request<chain::GetIntentRequest>) -> Answer<chain::Intent> {
        Err(Status::unimplemented("not here"))
    }
}
