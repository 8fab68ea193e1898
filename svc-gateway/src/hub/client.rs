//! Asks the hub: without the token first, with redirects followed only where they may lead, and not before
//! the hub said to come back.
//!
//! Knows no file and no miner.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{
    RequestBuilder, Response, StatusCode, Url,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, HeaderMap, HeaderName, HeaderValue,
        IF_RANGE, LOCATION, RANGE, RETRY_AFTER,
    },
    redirect,
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    Failure, Fault, HubConfig, Trouble,
    place::Place,
    reach::{Reach, literal},
    waits::{LONGEST_WAIT, Waits},
};

/// Redirects that are followed for one request.
const MOST_REDIRECTS: usize = 5;

/// Why the hub refuses, in its own word.
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");

/// One hub, for all files.
#[derive(Debug)]
pub(crate) struct Client {
    base: Url,
    /// To the hub itself.
    own: reqwest::Client,
    /// To where it redirects.
    elsewhere: reqwest::Client,
    reach: Reach,
    token: Option<SecretString>,
    timeout: Duration,
    tries: u32,
    backoff: Duration,
    /// The hub asked not to be asked before.
    hold: Mutex<Option<Instant>>,
}

/// Which part of a file is asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    /// Its first byte.
    pub(crate) from: u64,
    /// The state of the file that it must be of, if the server named one.
    pub(crate) of: Option<HeaderValue>,
}

/// An answer, and what the hub said on the way to it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// Headers of the hub's own answers, the first one first.
    pub(crate) hub: Vec<HeaderMap>,
}

/// The address of a hub.
pub(crate) fn base(url: &str) -> anyhow::Result<Url> {
    let base: Url = url.parse()?;
    let web = matches!(base.scheme(), "http" | "https") && base.host_str().is_some();
    anyhow::ensure!(web, "`{url}` is not the address of a web server");
    Ok(base)
}

impl Client {
    /// Asks the hub at `base`.
    pub(crate) fn new(base: Url, config: &HubConfig) -> Result<Self, reqwest::Error> {
        let host = base.host_str().unwrap_or_default().to_owned();
        kit::install_crypto();
        let reach = Reach::of(host.trim_start_matches('[').trim_end_matches(']'));
        let builder = || {
            let builder = reqwest::Client::builder()
                .redirect(redirect::Policy::none())
                .user_agent(concat!("connito/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(config.timeout);
            let local = literal(&host).is_some_and(|address| address.is_loopback());
            if local || host == "localhost" { builder.no_proxy() } else { builder }
        };
        Ok(Self {
            own: builder().build()?,
            elsewhere: builder().dns_resolver(Arc::new(reach.clone())).build()?,
            base,
            reach,
            token: config.token.clone(),
            timeout: config.timeout,
            tries: config.tries.max(1),
            backoff: config.backoff,
            hold: Mutex::default(),
        })
    }

    /// An address below the hub's: each of `parts` may hold slashes.
    pub(crate) fn url(&self, parts: &[&str]) -> Result<Url, Failure> {
        let mut url = self.base.clone();
        let segments = parts.iter().flat_map(|part| part.split('/'));
        match url.path_segments_mut() {
            Ok(mut path) => {
                path.pop_if_empty().extend(segments);
            }
            Err(()) => return Err(Failure::answer("the hub's address has no path")),
        }
        Ok(url)
    }

    /// Whether `url` is on the hub's own host, which alone may see the token.
    pub(crate) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// How long to wait for an answer, and for each next piece of it.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Waits before the next of several tries.
    pub(crate) fn waits(&self) -> Waits {
        Waits::new(self.tries, self.backoff)
    }

    /// Where a redirect leads, if it may be followed.
    async fn next(&self, at: &Url, response: &Response) -> Result<Url, Failure> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let next = location.and_then(|location| at.join(location).ok());
        let next = next.ok_or_else(|| Failure::answer("a redirect to nowhere"))?;
        let safe = match next.scheme() {
            "https" => true,
            "http" => self.base.scheme() == "http",
            _ => false,
        };
        let Some(host) = next.host_str().filter(|_| safe) else {
            return Err(Failure::answer("a redirect to an address that is not safe"));
        };
        // Names are looked at when they are connected to, so that they can't change in between.
        if !self.is_own(&next) && literal(host).is_some() {
            self.reach.find(host).await.map_err(Failure::answer)?;
        }
        Ok(next)
    }

    /// Waits as long as the hub asked everybody to.
    async fn hold(&self) {
        let until = *self.hold.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = until {
            sleep_until(until).await;
        }
    }

    fn hold_for(&self, wait: Duration) {
        let until = Instant::now() + wait.min(LONGEST_WAIT);
        let mut hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner);
        *hold = Some(hold.map_or(until, |earlier| earlier.max(until)));
    }
}

/// What is asked of one repository: it is told the token once it has refused without.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub(crate) client: &'a Client,
    place: &'a Place,
    with_token: bool,
}

impl<'a> Session<'a> {
    pub(crate) fn new(client: &'a Client, place: &'a Place) -> Self {
        Self { client, place, with_token: false }
    }

    /// One GET, with redirects followed: 200, or 206 where a part was asked for.
    pub(crate) async fn get(&mut self, url: &Url, part: &Part) -> Result<Answer, Trouble> {
        let mut at = url.clone();
        let mut hub = Vec::new();
        for _ in 0..=MOST_REDIRECTS {
            let own = self.client.is_own(&at);
            let response = if own {
                self.own(&at, part).await?
            } else {
                self.send(&self.client.elsewhere, &at, part, None).await?
            };
            if own {
                hub.push(response.headers().clone());
            }
            if response.status().is_redirection() {
                at = self.client.next(&at, &response).await?;
                continue;
            }
            if !response.status().is_success() {
                return Err(self.refused(&response, own));
            }
            let encoding = response.headers().get(CONTENT_ENCODING);
            if encoding.is_some_and(|encoding| encoding != "identity") {
                return Err(Failure::answer("it is compressed").into());
            }
            return Ok(Answer { response, hub });
        }
        Err(Failure::answer("too many redirects").into())
    }

    /// One request to the hub itself; a second one with the token where the first was refused.
    async fn own(&mut self, url: &Url, part: &Part) -> Result<Response, Failure> {
        self.client.hold().await;
        let token = self.client.token.as_ref();
        let first = token.filter(|_| self.with_token);
        let response = self.send(&self.client.own, url, part, first).await?;
        let hidden = match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => true,
            StatusCode::NOT_FOUND => matches!(code(&response), "" | "RepoNotFound"),
            _ => false,
        };
        if !hidden || self.with_token || token.is_none() {
            return Ok(response);
        }
        self.with_token = true;
        self.send(&self.client.own, url, part, token).await
    }

    async fn send(
        &self,
        http: &reqwest::Client,
        url: &Url,
        part: &Part,
        token: Option<&SecretString>,
    ) -> Result<Response, Failure> {
        let mut request: RequestBuilder =
            http.get(url.clone()).header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if part.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", part.from));
            if let Some(of) = &part.of {
                request = request.header(IF_RANGE, of.clone());
            }
        }
        if let Some(token) = token {
            let value = format!("Bearer {}", token.expose_secret());
            let mut value = HeaderValue::try_from(value).map_err(|_| Failure::Token)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let answer = timeout(self.client.timeout, request.send()).await;
        answer
            .map_err(|_| Failure::passing("no answer in time"))?
            .map_err(|error| Failure::passing(told(&error)))
    }

    /// What an answer means that brings nothing.
    fn refused(&self, response: &Response, own: bool) -> Trouble {
        let status = response.status();
        let after = retry_after(response);
        let passing = || Failure::Passing { why: format!("status {}", status.as_u16()), after };
        if !own {
            // A link that was signed may have run out: the hub gives a new one.
            return passing().into();
        }
        let missing = || Fault::Missing { repo: self.place.repo.clone() };
        match (status, code(response)) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, "RepoNotFound" | "GatedRepo") => {
                missing().into()
            }
            // Without a token the hub says so of what is not there, and of what is not for everyone.
            (StatusCode::UNAUTHORIZED, _) if !self.with_token => missing().into(),
            (StatusCode::UNAUTHORIZED, _) => Failure::Token.into(),
            (StatusCode::NOT_FOUND | StatusCode::GONE, "RevisionNotFound") => {
                Fault::NoCommit { repo: self.place.repo.clone(), digits: self.place.digits.clone() }
                    .into()
            }
            (StatusCode::NOT_FOUND | StatusCode::GONE, "EntryNotFound") => {
                Failure::answer("it lists a file that it does not have").into()
            }
            (
                StatusCode::NOT_FOUND
                | StatusCode::GONE
                | StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS,
                _,
            ) => missing().into(),
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _) => {
                if let Some(wait) = after {
                    self.client.hold_for(wait);
                }
                passing().into()
            }
            _ if status.is_server_error() || matches!(status.as_u16(), 408 | 416 | 425) => {
                passing().into()
            }
            _ => Failure::answer(format!("status {}", status.as_u16())).into(),
        }
    }
}

/// The hub's word for why it refuses.
fn code(response: &Response) -> &str {
    response.headers().get(ERROR_CODE).and_then(|code| code.to_str().ok()).unwrap_or_default()
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What failed, down to the cause; without the address, which may be a signed link.
pub(crate) fn told(error: &reqwest::Error) -> String {
    let mut text = if error.is_connect() { "not connected" } else { "broken off" }.to_owned();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> Client {
        Client::new(base("http://127.0.0.1:1").unwrap(), &HubConfig::default()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_hub_asks_for_time_everybody_waits_but_not_for_ever() {
        let client = client();
        let begin = Instant::now();
        client.hold().await;
        assert_eq!(begin.elapsed().as_secs(), 0);
        client.hold_for(Duration::from_secs(30));
        // Who is asked for less does not shorten it.
        client.hold_for(Duration::from_secs(1));
        tokio::join!(client.hold(), client.hold());
        assert_eq!(begin.elapsed().as_secs(), 30);
        client.hold_for(Duration::from_secs(1_000_000));
        client.hold().await;
        assert_eq!(begin.elapsed().as_secs(), 90);
    }

    #[test]
    fn an_address_of_the_hub_has_only_the_parts_that_it_is_given() {
        let client = Client { base: base("https://hub.example/root/").unwrap(), ..client() };
        let url = client.url(&["a/b", "resolve", "c", "d e/f?g#h%2f.pt"]).unwrap();
        assert_eq!(url.as_str(), "https://hub.example/root/a/b/resolve/c/d%20e/f%3Fg%23h%252f.pt");
        assert!(base("ftp://hub").is_err() && base("hub").is_err());
    }
}
