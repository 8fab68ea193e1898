//! The client's end of gRPC: a channel that takes the current trace along, and the token where the
//! other end asks who calls.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tonic::{
    body::Body,
    transport::{self, Endpoint},
};
use tower::Service;

use crate::{auth::Token, config::Tls, tls, trace};

pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Connects to `url` when the first call is made, and again whenever the connection was lost.
///
/// An answer may take a minute, of which a stream needs only its first header: a stream itself has
/// no end. See [`channel_with`] for other times.
///
/// # Errors
///
/// When `url` is malformed, when it is `https` and no TLS is configured or the reverse, or when a
/// file of `tls` can't be read. Not when nothing listens there: that is an error of the call.
pub fn channel(url: &str, tls: &Tls) -> anyhow::Result<Channel> {
    channel_with(url, tls, ANSWER_TIMEOUT)
}

/// As [`channel`], with the time that an answer (or the begin of a stream) may take.
///
/// # Errors
///
/// As [`channel`].
pub fn channel_with(url: &str, tls: &Tls, answer: Duration) -> anyhow::Result<Channel> {
    let mut endpoint = endpoint(url)?.timeout(answer);
    let secure = endpoint.uri().scheme_str() == Some("https");
    match tls::client(tls)? {
        Some(config) => {
            ensure!(secure, "TLS is configured, but `{url}` is not https");
            endpoint = endpoint.tls_config(config).context("configure TLS of the client")?;
        }
        None => ensure!(!secure, "`{url}` is https, but no TLS is configured"),
    }
    Ok(Channel::lazy(&endpoint))
}

/// What all connections have in common.
pub(crate) fn endpoint(url: &str) -> anyhow::Result<Endpoint> {
    Ok(Endpoint::from_shared(url.to_owned())
        .with_context(|| format!("`{url}` is not a URL"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true))
}

/// A connection to one server, for generated clients. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Channel {
    inner: transport::Channel,
    token: Option<Token>,
}

impl Channel {
    pub(crate) fn lazy(endpoint: &Endpoint) -> Self {
        Self { inner: endpoint.connect_lazy(), token: None }
    }

    /// Sends `token` with every call, as `authorization: Bearer …`. Only for channels to services
    /// of the own validator: whoever serves the other end learns the secret.
    #[must_use]
    pub fn with_token(self, token: Token) -> Self {
        Self { token: Some(token), ..self }
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = transport::Error;
    type Future = transport::channel::ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        trace::inject_headers(request.headers_mut());
        // A token is a valid header by its construction.
        if let Some(Ok(value)) = self.token.as_ref().map(Token::header) {
            request.headers_mut().insert(http::header::AUTHORIZATION, value);
        }
        self.inner.call(request)
    }
}
