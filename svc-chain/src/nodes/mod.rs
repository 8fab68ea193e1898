//! The nodes of the chain that may be asked: several endpoints, ranked, each with a connection and a
//! health of its own.
//!
//! A call goes to the endpoint in use and, where that fails, to the next one at once, unless it
//! hands over an extrinsic: such a call is made once, as a node that did not answer may have taken
//! it. [`board`] holds the rules, [`connection`] the sockets, [`monitor`] asks every endpoint how the
//! chain stands, and [`client`] is what `subxt` sees. What is said is not understood here.

mod board;
mod breaker;
mod client;
mod connection;
mod health;
mod monitor;

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use backon::{BackoffBuilder as _, ConstantBuilder, ExponentialBuilder};
use subxt::rpcs::{
    self, RpcClient,
    client::{RawRpcSubscription, RawValue},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::info;

pub(crate) use self::{
    board::{Board, News},
    connection::Genesis,
    health::{Health, State},
};
use self::{
    client::{Only, Routed},
    connection::{Call, Connection, Failure, Request, Subscribe},
};
use crate::{
    degradations::{Degradations, Kind},
    metrics,
};

/// Failures in a row after which an endpoint is left alone.
const FAILURES: u32 = 3;
/// It is left alone for a random part of the first, and of up to the second in the end.
const REST: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// A preferred endpoint is taken again after it was well for this many probes.
const WELL_PROBES: u32 = 5;
/// A call that every endpoint failed is made again this often, after a pause that grows.
const RETRIES: usize = 3;
const PAUSE: Duration = Duration::from_millis(50);

/// Why no endpoint answered. Its text is known to [`is_unreachable`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no chain endpoint can be reached: {0}")]
pub(crate) struct Unreachable(String);

/// Whether an error of `subxt`, which only its text is told of, came from here.
pub(crate) fn is_unreachable(text: &str) -> bool {
    text.contains("no chain endpoint can be reached")
}

/// How the nodes are to be treated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) request_timeout: Duration,
    pub(crate) probe_interval: Duration,
    pub(crate) max_lag: u64,
    /// Whether these are the ones that keep every past state, asked only for what was missed.
    pub(crate) archive: bool,
}

/// See the module. Clones share everything.
#[derive(Clone)]
pub(crate) struct Nodes(Arc<Inner>);

struct Inner {
    connections: Vec<Connection>,
    board: watch::Sender<Board>,
    genesis: Genesis,
    started: Instant,
    settings: Settings,
    degradations: Degradations,
}

impl Nodes {
    pub(crate) fn new(
        urls: Vec<String>,
        genesis: Genesis,
        settings: Settings,
        degradations: Degradations,
    ) -> Self {
        let policy = board::Policy {
            max_lag: settings.max_lag,
            return_after: settings.probe_interval * WELL_PROBES,
            breaker: breaker::Policy {
                failures: FAILURES,
                rest: REST,
                trial: settings.request_timeout * 2,
            },
        };
        let connect = |url| Connection::new(url, Arc::clone(&genesis), settings.request_timeout);
        Self(Arc::new(Inner {
            board: watch::Sender::new(Board::new(urls.len(), policy)),
            connections: urls.into_iter().map(connect).collect(),
            genesis,
            started: Instant::now(),
            settings,
            degradations,
        }))
    }

    /// The genesis hash to insist on, settled later where it is not known.
    pub(crate) fn genesis_of(known: Option<[u8; 32]>) -> Genesis {
        let genesis = OnceLock::new();
        if let Some(known) = known {
            genesis.get_or_init(|| known);
        }
        Arc::new(genesis)
    }

    /// The genesis hash, once it is settled.
    pub(crate) fn genesis(&self) -> Option<[u8; 32]> {
        self.0.genesis.get().copied()
    }

    /// How many endpoints there are.
    pub(crate) fn count(&self) -> usize {
        self.0.connections.len()
    }

    /// Address of an endpoint.
    pub(crate) fn url(&self, rank: usize) -> &str {
        self.0.connections.get(rank).map_or("", |connection| &connection.url)
    }

    /// How the endpoints stand, and every change of it.
    pub(crate) fn board(&self) -> watch::Receiver<Board> {
        self.0.board.subscribe()
    }

    /// Endpoints that may be asked now, best first.
    pub(crate) fn order(&self) -> Vec<usize> {
        self.0.board.borrow().order(self.now())
    }

    /// A client whose calls go to the endpoint in use, or to another one if that fails.
    pub(crate) fn client(&self) -> RpcClient {
        RpcClient::new(Routed(self.clone()))
    }

    /// A client whose calls go to one endpoint and to no other.
    pub(crate) fn only(&self, rank: usize) -> RpcClient {
        RpcClient::new(Only(self.clone(), rank))
    }

    /// What an endpoint said cannot be true: it is left alone for a while.
    pub(crate) fn lied(&self, rank: usize, what: &str) {
        let url = self.url(rank);
        self.note(Kind::EndpointLies, format!("{url}: {what}"));
        self.hear(rank, News::Lied { why: what.to_owned() });
    }

    /// A subscription of an endpoint failed.
    pub(crate) async fn failed(&self, rank: usize, why: String) {
        if let Some(connection) = self.0.connections.get(rank) {
            connection.close().await;
        }
        self.hear(rank, News::Failed { why });
    }

    /// An endpoint told of a new head.
    pub(crate) fn head(&self, rank: usize, number: u64) {
        self.hear(rank, News::Head(number));
    }

    /// Asks every endpoint how the chain stands, again and again, until `shutdown`.
    pub(crate) async fn monitor(self, shutdown: kit::Shutdown) {
        monitor::run(self, shutdown).await;
    }

    /// Waits until an endpoint is in use, or every one of them was asked in vain.
    pub(crate) async fn reach(&self) -> Result<(), Unfit> {
        let probes = (0..self.count()).map(|rank| monitor::probe(self, rank));
        let probes = futures::future::join_all(probes);
        let mut board = self.board();
        tokio::select! {
            _ = probes => {}
            _ = board.wait_for(|board| board.current().is_some()) => return Ok(()),
        }
        let errors = Unreachable(self.errors());
        let board = self.0.board.borrow();
        if board.current().is_some() {
            return Ok(());
        }
        Err(if board.all_foreign() { Unfit::Foreign(errors) } else { Unfit::Unreachable(errors) })
    }

    fn now(&self) -> Duration {
        self.0.started.elapsed()
    }

    fn note(&self, kind: Kind, detail: String) {
        let board = self.0.board.borrow();
        let best = board.endpoints().iter().map(|health| health.best).max().unwrap_or_default();
        drop(board);
        self.0.degradations.note(kind, detail, domain::BlockNumber(best));
    }

    fn hear(&self, rank: usize, news: News) {
        let now = self.now();
        let (mut switch, mut first) = (None, None);
        self.0.board.send_if_modified(|board| {
            // Latencies change at every call: that alone wakes nobody.
            let shown =
                |board: &Board| (board.current(), board.told(), board.state(rank), board.lag(rank));
            let before = shown(board);
            switch = board.hear(rank, news, now, chance());
            if before.0.is_none() {
                first = board.current();
            }
            let changed = shown(board) != before;
            if changed {
                metrics::endpoint(self.label(rank), board.state(rank), board.lag(rank));
            }
            changed
        });
        if let Some(rank) = first {
            info!(url = self.url(rank), rank, "endpoint in use");
            self.count_in_use(rank);
        }
        if let Some(switch) = switch {
            let (from, to) = (self.url(switch.from), self.url(switch.to));
            metrics::endpoint_switched();
            self.count_in_use(switch.to);
            self.note(Kind::EndpointSwitched, format!("from {from} to {to}: {}", switch.why));
        }
    }

    /// How an endpoint is named in metrics.
    fn label(&self, rank: usize) -> String {
        if self.0.settings.archive { format!("archive-{rank}") } else { rank.to_string() }
    }

    fn count_in_use(&self, rank: usize) {
        if !self.0.settings.archive {
            metrics::endpoint_in_use(rank);
        }
    }

    /// Makes a call to one endpoint, and keeps the book on it.
    async fn ask<R: Request>(&self, rank: usize, request: &R) -> Result<R::Answer, Failure> {
        let Some(connection) = self.0.connections.get(rank) else {
            return Err(Failure::NotSent("there is no such endpoint".to_owned()));
        };
        let mut admitted = false;
        let now = self.now();
        self.0.board.send_if_modified(|board| {
            admitted = board.admit(rank, now);
            false
        });
        if !admitted {
            return Err(Failure::NotSent(format!("{} is left alone for a while", connection.url)));
        }
        let asked = Instant::now();
        let answer = request.make(connection).await;
        if connection.was_made() {
            metrics::connected(self.label(rank));
        }
        if connection.was_replaced() {
            self.hear(rank, News::Reconnected);
        }
        match &answer {
            Ok(_) | Err(Failure::Refused(_)) => {
                self.hear(rank, News::Answered { latency: asked.elapsed() });
            }
            Err(Failure::WrongGenesis(why)) => {
                self.hear(rank, News::WrongGenesis { why: why.clone() });
            }
            Err(Failure::NotSent(why) | Failure::NotAnswered(why)) => {
                self.hear(rank, News::Failed { why: why.clone() });
            }
        }
        answer
    }

    /// Asks one endpoint after the other until one of them answers what helps.
    async fn ask_any(&self, call: &Call<'_>) -> Result<Box<RawValue>, Failure> {
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(PAUSE)
            .with_max_times(RETRIES)
            .with_jitter()
            .build();
        loop {
            let (mut failed, mut unhelpful) = (None, None);
            for rank in self.order() {
                match self.ask(rank, call).await {
                    Ok(answer) if answers(call.method, &answer) => return Ok(answer),
                    Err(Failure::Refused(error)) if refuses(&error) => {
                        return Err(Failure::Refused(error));
                    }
                    Ok(answer) => {
                        unhelpful.get_or_insert(Ok(answer));
                    }
                    Err(Failure::Refused(error)) => {
                        unhelpful.get_or_insert(Err(Failure::Refused(error)));
                    }
                    Err(failure) => failed = Some(failure),
                }
            }
            // The endpoint that is preferred speaks for all that have nothing better to say.
            if let Some(answer) = unhelpful {
                return answer;
            }
            match pauses.next() {
                Some(pause) => sleep(pause).await,
                None => return Err(failed.unwrap_or_else(|| self.all_rest())),
            }
        }
    }

    /// Hands over what must not be handed over twice: only what surely was not sent is sent to
    /// another endpoint.
    async fn ask_once<R: Request>(&self, request: &R) -> Result<R::Answer, Failure> {
        let mut failure = None;
        for rank in self.order() {
            match self.ask(rank, request).await {
                Err(not_sent @ (Failure::NotSent(_) | Failure::WrongGenesis(_))) => {
                    failure.get_or_insert(not_sent);
                }
                answer => return answer,
            }
        }
        Err(failure.unwrap_or_else(|| self.all_rest()))
    }

    fn all_rest(&self) -> Failure {
        Failure::NotSent(format!("every endpoint is left alone for a while: {}", self.errors()))
    }

    /// The last error of each endpoint.
    fn errors(&self) -> String {
        let board = self.0.board.borrow();
        let errors = board.endpoints().iter().map(|health| health.last_error.as_str());
        errors.filter(|error| !error.is_empty()).collect::<Vec<_>>().join("; ")
    }

    async fn call(&self, call: Call<'_>) -> Result<Box<RawValue>, rpcs::Error> {
        let answer = if is_submission(call.method) {
            self.ask_once(&call).await
        } else {
            self.ask_any(&call).await
        };
        answer.map_err(lost)
    }

    async fn subscribe(&self, subscribe: Subscribe<'_>) -> Result<RawRpcSubscription, rpcs::Error> {
        self.ask_once(&subscribe).await.map_err(lost)
    }
}

/// Whether a call hands over an extrinsic.
fn is_submission(method: &str) -> bool {
    method.starts_with("author_")
}

/// Whether an answer says something. One that knows no such block may be of an endpoint that is
/// behind another one.
fn answers(method: &str, answer: &RawValue) -> bool {
    !method.starts_with("chain_get") || answer.get() != "null"
}

/// Whether a refusal is about the question. One that is about a block or its state may be of an
/// endpoint that is behind another one, or keeps less.
fn refuses(error: &rpcs::UserError) -> bool {
    let data = error.data.as_ref().map(|data| data.get()).unwrap_or_default();
    let has = |part| error.message.contains(part) || data.contains(part);
    !(has("State already discarded") || has("UnknownBlock") || has("Unknown block"))
}

fn lost(failure: Failure) -> rpcs::Error {
    match failure {
        Failure::Refused(error) => rpcs::Error::User(error),
        Failure::NotSent(why) | Failure::WrongGenesis(why) | Failure::NotAnswered(why) => {
            rpcs::Error::Client(Box::new(Unreachable(why)))
        }
    }
}

/// No endpoint can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error(transparent)]
    Unreachable(Unreachable),
    /// Every one of them is of another chain.
    #[error(transparent)]
    Foreign(Unreachable),
}

/// A random number in 0..1, from the generator of the back-off.
fn chance() -> f64 {
    let jitter = ConstantBuilder::default().with_delay(Duration::from_secs(1)).with_jitter();
    let delay = jitter.build().next().unwrap_or_default();
    delay.as_secs_f64().fract()
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls: Vec<&str> = self.0.connections.iter().map(|c| c.url.as_str()).collect();
        f.debug_struct("Nodes").field("urls", &urls).finish_non_exhaustive()
    }
}
