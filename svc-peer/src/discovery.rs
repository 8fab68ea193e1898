//! Finding another validator's peer service: what its axon says of itself.
//!
//! The axon's address is from the chain, and what answers there is hostile: it gets little time and
//! few bytes, no redirects, and is only believed to be a place where a signed hello may be tried.

use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;

/// Why a validator's peer service was not found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiscoveryError {
    #[error("it has announced no axon")]
    NoAxon,
    #[error("its axon `{axon}` is not `ip:port`")]
    BadAxon { axon: String },
    #[error("its axon does not answer: {0}")]
    Http(#[from] reqwest::Error),
    #[error("its axon answers with {0}")]
    Answer(reqwest::StatusCode),
    #[error("its axon answers with more than {MAX_BODY} bytes")]
    TooLong,
    #[error("its axon's answer is not understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error("its axon tells no usable peer URL")]
    NoUrl,
}

const MAX_BODY: usize = 64 * 1024;
const MAX_URL: usize = 512;

#[derive(Deserialize)]
struct Root {
    #[serde(default)]
    endpoints: Endpoints,
}

#[derive(Default, Deserialize)]
struct Endpoints {
    #[serde(default)]
    peer: Option<String>,
}

/// Asks axons.
#[derive(Debug, Clone)]
pub(crate) struct Discovery {
    http: reqwest::Client,
}

impl Discovery {
    /// Every axon gets `timeout` to answer whole.
    pub(crate) fn new(timeout: Duration) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(timeout)
            .build()?;
        Ok(Self { http })
    }

    /// The URL of the peer service of the validator with this axon (`ip:port`).
    pub(crate) async fn find(&self, axon: &str) -> Result<String, DiscoveryError> {
        if axon.is_empty() {
            return Err(DiscoveryError::NoAxon);
        }
        let addr: SocketAddr = axon
            .parse()
            .map_err(|_| DiscoveryError::BadAxon { axon: axon.chars().take(64).collect() })?;
        let mut response = self.http.get(format!("http://{addr}/")).send().await?;
        if !response.status().is_success() {
            return Err(DiscoveryError::Answer(response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(DiscoveryError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        let url = serde_json::from_slice::<Root>(&body)?.endpoints.peer;
        url.filter(|url| usable(url)).ok_or(DiscoveryError::NoUrl)
    }
}

fn usable(url: &str) -> bool {
    let web = url.starts_with("http://") || url.starts_with("https://");
    web && url.len() <= MAX_URL && url.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use kit::Shutdown;
    use tokio::net::TcpListener;

    use super::*;

    async fn ask(body: impl Into<String>) -> Result<String, DiscoveryError> {
        kit::install_crypto();
        let body: String = body.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let axon = listener.local_addr().unwrap().to_string();
        let shutdown = Shutdown::default();
        let router = Router::new().route("/", get(async move || body));
        shutdown.spawn(async move { axum::serve(listener, router).await });
        Discovery::new(Duration::from_secs(20)).unwrap().find(&axon).await
    }

    #[tokio::test]
    async fn the_axon_tells_where_the_peer_service_is() {
        let url = ask(r#"{"service":"x","endpoints":{"peer":"http://1.2.3.4:50056","http":"y"}}"#);
        assert_eq!(url.await.unwrap(), "http://1.2.3.4:50056");
    }

    #[tokio::test]
    async fn what_is_no_answer_is_named() {
        assert!(matches!(ask("not json").await, Err(DiscoveryError::Json(_))));
        assert!(matches!(ask("{}").await, Err(DiscoveryError::NoUrl)));
        let file = ask(r#"{"endpoints":{"peer":"file:///etc/passwd"}}"#).await;
        assert!(matches!(file, Err(DiscoveryError::NoUrl)));
        assert!(matches!(ask("x".repeat(70_000)).await, Err(DiscoveryError::TooLong)));
    }

    #[tokio::test]
    async fn an_axon_that_is_not_an_address_is_never_asked() {
        kit::install_crypto();
        let discovery = Discovery::new(Duration::from_secs(1)).unwrap();
        assert!(matches!(discovery.find("").await, Err(DiscoveryError::NoAxon)));
        let host = discovery.find("localhost:80/admin").await;
        assert!(matches!(host, Err(DiscoveryError::BadAxon { .. })));
    }
}
