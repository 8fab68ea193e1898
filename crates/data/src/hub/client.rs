use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use reqwest::{
    Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER},
    redirect,
};
use secrecy::{ExposeSecret as _, SecretString};

use crate::{DataError, HubSettings};

/// Redirects that are followed for one request.
const MOST_REDIRECTS: usize = 5;
/// The longest wait between two tries, whatever the hub asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Asks the hub, and knows when to ask again.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<SecretString>,
    /// The hub has refused a request without the token.
    wants_token: AtomicBool,
    timeout: Duration,
    tries: usize,
    backoff: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The next try may succeed, after this wait at least.
    Again { why: String, after: Option<Duration> },
    /// It would fail again.
    For(DataError),
}

impl Failed {
    pub(crate) fn again(why: impl std::fmt::Display) -> Self {
        Self::Again { why: why.to_string(), after: None }
    }
}

impl From<DataError> for Failed {
    fn from(error: DataError) -> Self {
        Self::For(error)
    }
}

impl Client {
    pub(crate) fn new(settings: &HubSettings) -> Result<Self, DataError> {
        let bad = |why: String| DataError::Config { why: format!("hub `{}`: {why}", settings.url) };
        let base: Url = settings.url.parse().map_err(|error| bad(format!("{error}")))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(bad("it is not the address of a web server".to_owned()));
        }
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(bad("no TLS provider is installed in this process".to_owned()));
        }
        let mut builder = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .user_agent(concat!("connito/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.timeout)
            .read_timeout(settings.timeout);
        if matches!(base.host_str(), Some("127.0.0.1" | "localhost" | "[::1]")) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| bad(told(&error)))?;
        Ok(Self {
            http,
            base,
            token: settings.token.clone(),
            wants_token: AtomicBool::new(false),
            timeout: settings.timeout,
            tries: settings.tries.max(1),
            backoff: settings.backoff,
        })
    }

    /// An address below the hub's: each of `parts` may hold slashes, and so may `path`.
    pub(crate) fn url<const N: usize>(
        &self,
        parts: [&str; N],
        path: &str,
    ) -> Result<Url, DataError> {
        let mut url = self.base.clone();
        let segments = parts.iter().flat_map(|part| part.split('/'));
        match url.path_segments_mut() {
            Ok(mut place) => {
                let path = path.split('/').filter(|part| !part.is_empty());
                place.pop_if_empty().extend(segments.chain(path));
            }
            Err(()) => {
                return Err(DataError::Config { why: format!("hub `{}`", self.base) });
            }
        }
        Ok(url)
    }

    /// Whether `url` is on the hub's own host, which alone may see the token.
    pub(crate) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// Runs `work` until it succeeds, fails for good, or has made no progress in the configured
    /// number of tries. It is given the number of the try, and says through the flag that it got
    /// further.
    pub(crate) async fn retry<T>(
        &self,
        url: &Url,
        mut work: impl AsyncFnMut(&mut bool) -> Result<T, Failed>,
    ) -> Result<T, DataError> {
        let waits = || {
            ExponentialBuilder::default()
                .with_min_delay(self.backoff)
                .with_max_delay(LONGEST_WAIT)
                .with_factor(2.0)
                .with_max_times(self.tries.saturating_sub(1))
                .with_jitter()
                .build()
        };
        let mut left = waits();
        loop {
            let mut progress = false;
            let (why, after) = match work(&mut progress).await {
                Ok(value) => return Ok(value),
                Err(Failed::For(error)) => return Err(error),
                Err(Failed::Again { why, after }) => (why, after),
            };
            if progress {
                left = waits();
            }
            let Some(wait) = left.next() else {
                let (url, tries) = (shown(url), self.tries);
                return Err(DataError::HubUnreachable { url, tries, why });
            };
            tracing::debug!(%url, why, "asking the hub again");
            let wait = wait.max(after.unwrap_or_default()).min(LONGEST_WAIT);
            tokio::time::sleep(wait).await;
        }
    }

    /// One GET from the byte `from` on, with redirects followed. The answer is 200 or, where `from`
    /// is not zero, perhaps 206.
    pub(crate) async fn get(&self, url: &Url, from: u64) -> Result<Response, Failed> {
        let mut at = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let response = self.get_authorised(&at, from).await?;
            let status = response.status();
            if !status.is_redirection() {
                return self.judge(&at, response);
            }
            let unusable =
                |why: &str| DataError::HubAnswer { url: shown(&at), why: why.to_owned() };
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| at.join(location).ok());
            let next = next.ok_or_else(|| unusable("a redirect to nowhere"))?;
            match (at.scheme(), next.scheme()) {
                (_, "https") | ("http", "http") => at = next,
                (_, _) => return Err(unusable("a redirect to an unsafe address").into()),
            }
        }
        Err(DataError::HubAnswer { url: shown(url), why: "too many redirects".to_owned() }.into())
    }

    /// One request; a second one with the token where the first was refused.
    async fn get_authorised(&self, url: &Url, from: u64) -> Result<Response, Failed> {
        let token = self.token.as_ref().filter(|_| self.is_own(url));
        let wanted = self.wants_token.load(Ordering::Relaxed);
        let response = self.request(url, from, token.filter(|_| wanted)).await?;
        let refused = matches!(
            response.status(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
        );
        if !refused || wanted || token.is_none() {
            return Ok(response);
        }
        let response = self.request(url, from, token).await?;
        if response.status().is_success() || response.status().is_redirection() {
            self.wants_token.store(true, Ordering::Relaxed);
        }
        Ok(response)
    }

    async fn request(
        &self,
        url: &Url,
        from: u64,
        token: Option<&SecretString>,
    ) -> Result<Response, Failed> {
        let mut request = self.http.get(url.clone());
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        if let Some(token) = token {
            let value = format!("Bearer {}", token.expose_secret());
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| DataError::Config { why: "the hub's token is malformed".into() })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        // `read_timeout` is of the body; the head has its own.
        let answer = tokio::time::timeout(self.timeout, request.send()).await;
        answer
            .map_err(|_| Failed::again("no answer in time"))?
            .map_err(|error| Failed::again(told(&error)))
    }

    fn judge(&self, url: &Url, response: Response) -> Result<Response, Failed> {
        let status = response.status();
        let code = status.as_u16();
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            // Other hosts are named by links that may have expired.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.is_own(url) => {
                Err(DataError::HubRefused { url: shown(url), status: code }.into())
            }
            StatusCode::NOT_FOUND | StatusCode::GONE if self.is_own(url) => {
                Err(DataError::HubMissing { url: shown(url), status: code }.into())
            }
            _ if status.is_server_error()
                || matches!(code, 408 | 416 | 425 | 429)
                || !self.is_own(url) =>
            {
                let after = response.headers().get(RETRY_AFTER);
                let seconds = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
                let after = seconds.map(Duration::from_secs);
                Err(Failed::Again { why: format!("status {code}"), after })
            }
            _ => {
                Err(DataError::HubAnswer { url: shown(url), why: format!("status {code}") }.into())
            }
        }
    }
}

/// An address for people, without what a signed link carries.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}

/// What failed, down to the cause; without the address, which may be a signed link.
pub(crate) fn told(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "no answer in time".to_owned()
    } else if error.is_connect() {
        "not connected".to_owned()
    } else {
        "broken off".to_owned()
    };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
