//! A chain service that only signs.

use kit::{GrpcServer, Shutdown, Tls};
use proto::chain::v1::{
    self as chain,
    chain_service_server::{ChainService, ChainServiceServer},
};
use tonic::{Request, Response, Status};

use crate::network::{hotkey, sign};

/// A chain service that signs for one hotkey.
struct Signing {
    seed: u8,
}

type Answer<T> = Result<Response<T>, Status>;

fn unused<T>() -> Answer<T> {
    Err(Status::unimplemented("not here"))
}

#[tonic::async_trait]
impl ChainService for Signing {
    type WatchBlocksStream = futures::stream::Empty<Result<chain::ChainEvent, Status>>;

    async fn sign(&self, request: Request<chain::SignRequest>) -> Answer<chain::SignResponse> {
        if !request.metadata().contains_key("authorization") {
            return Err(Status::unauthenticated("no header `authorization`"));
        }
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
        unused()
    }

    async fn get_status(
        &self,
        _: Request<chain::GetStatusRequest>,
    ) -> Answer<chain::GetStatusResponse> {
        unused()
    }

    async fn list_intents(
        &self,
        _: Request<chain::ListIntentsRequest>,
    ) -> Answer<chain::ListIntentsResponse> {
        unused()
    }

    async fn get_block(
        &self,
        _: Request<chain::GetBlockRequest>,
    ) -> Answer<chain::GetBlockResponse> {
        unused()
    }

    async fn get_metagraph(
        &self,
        _: Request<chain::GetMetagraphRequest>,
    ) -> Answer<chain::Metagraph> {
        unused()
    }

    async fn get_weights(
        &self,
        _: Request<chain::GetWeightsRequest>,
    ) -> Answer<chain::GetWeightsResponse> {
        unused()
    }

    async fn get_commitments(
        &self,
        _: Request<chain::GetCommitmentsRequest>,
    ) -> Answer<chain::GetCommitmentsResponse> {
        unused()
    }

    async fn submit_intent(&self, _: Request<chain::SubmitIntentRequest>) -> Answer<chain::Intent> {
        unused()
    }

    async fn get_intent(&self, _: Request<chain::GetIntentRequest>) -> Answer<chain::Intent> {
        unused()
    }
}

/// A chain service on a free port.
pub(crate) struct Chain {
    pub(crate) url: String,
    shutdown: Shutdown,
}

impl Chain {
    pub(crate) async fn start(seed: u8) -> Self {
        let server =
            GrpcServer::bind("127.0.0.1:0".parse().unwrap(), &Tls::default()).await.unwrap();
        let url = format!("http://{}", server.local_addr());
        let signing = Signing { seed };
        let server = server.add(ChainServiceServer::new(signing));
        let shutdown = Shutdown::default();
        let stop = shutdown.clone();
        shutdown.spawn(async move { kit::serve(server, stop).await.unwrap() });
        Self { url, shutdown }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
