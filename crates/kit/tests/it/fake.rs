//! A service without a `.proto`: its messages are strings.

use std::{convert::Infallible, future::Future, pin::Pin};

use kit::Channel;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{http, tokio_stream::Stream},
    server::NamedService,
};
use tonic_prost::ProstCodec;
use tower::Service;

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// A stream of words.
pub(crate) type Words = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

/// What the fake does with a word.
#[tonic::async_trait]
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    /// Answers at `/test.Fake/Say`.
    async fn say(&self, word: String) -> Result<String, Status>;

    /// As [`Self::say`], for those who look at more than the word.
    async fn asked(&self, request: Request<String>) -> Result<String, Status> {
        self.say(request.into_inner()).await
    }

    /// Answers at `/test.Fake/Tell`.
    async fn tell(&self, word: String) -> Result<Words, Status> {
        Err(Status::unimplemented(word))
    }
}

/// The gRPC face of a [`Handler`].
#[derive(Debug, Clone)]
pub(crate) struct Fake<H>(pub(crate) H);

impl<H> NamedService for Fake<H> {
    const NAME: &'static str = "test.Fake";
}

#[derive(Clone)]
struct Method<H>(H);

impl<H: Handler> tonic::server::UnaryService<String> for Method<H> {
    type Response = String;
    type Future = Answer<Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let handler = self.0.clone();
        Box::pin(async move { handler.asked(request).await.map(Response::new) })
    }
}

impl<H: Handler> tonic::server::ServerStreamingService<String> for Method<H> {
    type Response = String;
    type ResponseStream = Words;
    type Future = Answer<Result<Response<Words>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let handler = self.0.clone();
        Box::pin(async move { handler.tell(request.into_inner()).await.map(Response::new) })
    }
}

impl<H: Handler> Service<http::Request<Body>> for Fake<H> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Method(self.0.clone());
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            Ok(match request.uri().path() {
                "/test.Fake/Say" => grpc.unary(method, request).await,
                "/test.Fake/Tell" => grpc.server_streaming(method, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

/// Calls `path` of the server behind `channel`.
pub(crate) async fn call(
    channel: Channel,
    path: &'static str,
    word: &str,
) -> Result<String, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(path);
    let codec: ProstCodec<String, String> = ProstCodec::default();
    grpc.unary(Request::new(word.to_owned()), path, codec).await.map(Response::into_inner)
}

/// Opens the stream of `Tell`.
pub(crate) async fn listen(channel: Channel, word: &str) -> Result<Streaming<String>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static("/test.Fake/Tell");
    let codec: ProstCodec<String, String> = ProstCodec::default();
    grpc.server_streaming(Request::new(word.to_owned()), path, codec)
        .await
        .map(Response::into_inner)
}
