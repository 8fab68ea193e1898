//! The HTTP server: connections, their limits, and a polite end of them.
//!
//! Knows no route. Each connection has a place (see [`crate::places`]), a limit on the time and size of a request's
//! header and on how long it may take nothing of an answer, or too little; what a client still sends after it was
//! answered is read on for a moment, so that it sees the answer and not a reset.

use std::{
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request};
use bytes::Bytes;
use futures::FutureExt as _;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use kit::Shutdown;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tower::ServiceExt as _;
use tracing::{debug, warn};

use crate::{
    Config,
    error::Error,
    limits::counted_as,
    metrics,
    outgoing::Outgoing,
    pace::Taking,
    places::{Place, Places},
    round_robin::RoundRobin,
    wire::{Lane, Wire},
};

/// Most header lines of a request.
const MAX_HEADERS: usize = 64;
/// Most bytes of a body that are read at a time: with less, waking up is what an upload costs. A header has a limit of
/// its own.
const READ: usize = 128 << 10;
/// How long, and how many bytes, a body is read on after its request was answered.
const LINGER: (Duration, u64) = (Duration::from_secs(10), 256 << 20);
/// Connections without a place that are told so at a time, and for how long: more are closed at once.
const TURNED_AWAY: (usize, Duration) = (64, Duration::from_secs(2));

/// Address that a request came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Serves `router` on `listener` until `shutdown`. Requests in flight go on as its tasks.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    config: &Config,
    shutdown: &Shutdown,
) {
    // A proxy's address is everybody's: behind one, clients are counted by what it says of them.
    let per_address = match config.client_address_header.as_str() {
        "" => config.max_connections_per_address,
        _ => usize::MAX,
    };
    let places = Places::new(config.max_connections, per_address);
    let turned_away = Arc::new(Semaphore::new(TURNED_AWAY.0));
    let server = Server::new(config, router, shutdown.clone());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely.
                warn!(%error, shed = places.shed(), "a connection could not be accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match places.enter(counted_as(peer.ip())) {
            Ok(place) => {
                shutdown.spawn(server.clone().placed(stream, peer, place));
            }
            Err(error) => {
                debug!(%peer, reason = error.reason(), "a connection was turned away");
                metrics::connection_refused(error.reason());
                if let Ok(permit) = Arc::clone(&turned_away).try_acquire_owned() {
                    let refusing = server.refusing(error);
                    shutdown.spawn(async move {
                        let _permit = permit;
                        let _ =
                            timeout(TURNED_AWAY.1, refusing.connection(stream, peer, None)).await;
                    });
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Server {
    http: http1::Builder,
    router: Router,
    stall: Duration,
    least_rate: u64,
    round_robin: RoundRobin,
    shutdown: Shutdown,
}

impl Server {
    fn new(config: &Config, router: Router, shutdown: Shutdown) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_header_size(config.max_header_bytes.max(8192))
            .max_buf_size(READ)
            .max_headers(MAX_HEADERS);
        let (stall, least_rate) = (config.idle_timeout, config.min_download_rate);
        let round_robin = RoundRobin::default();
        Self { http, router, stall, least_rate, round_robin, shutdown }
    }

    /// A server that answers everything with this refusal.
    fn refusing(&self, error: Error) -> Self {
        let error = Arc::new(error);
        let router = Router::new().fallback(async move || error.response());
        let mut http = self.http.clone();
        http.keep_alive(false);
        Self { http, router, ..self.clone() }
    }

    /// Serves until the connection ends, or its place is given to another.
    async fn placed(self, stream: TcpStream, peer: SocketAddr, place: Place) {
        tokio::select! {
            () = self.connection(stream, peer, Some(&place)) => {}
            () = place.given_up() => debug!(%peer, "a connection gave up its place to a newcomer"),
        }
    }

    async fn connection(self, stream: TcpStream, peer: SocketAddr, place: Option<&Place>) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "TCP_NODELAY could not be set");
        }
        let (router, shutdown) = (self.router, self.shutdown.clone());
        let visitor = place.map(Place::visitor);
        let lane = Arc::new(Lane::default());
        let wire = Wire::new(stream, Arc::clone(&lane));
        let (sending, round_robin) = (Arc::clone(&lane), self.round_robin);
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let linger = shutdown.clone();
            let mut request: Request =
                request.map(|body| Body::new(Lingering { body: Some(body), shutdown: linger }));
            request.extensions_mut().insert(Peer(peer.ip()));
            if let Some(visitor) = &visitor {
                request.extensions_mut().insert(visitor.clone());
            }
            let answer = router.clone().oneshot(request);
            let (lane, round_robin) = (Arc::clone(&lane), round_robin.clone());
            async move { answer.await.map(|response| Outgoing::of(response, &lane, &round_robin)) }
        });
        let io = TokioIo::new(Taking::new(wire, self.stall, self.least_rate));
        let mut connection = pin!(self.http.serve_connection(io, service));
        let mut stopping = pin!(self.shutdown.cancelled().fuse());
        let ended = poll_fn(|context| {
            if stopping.as_mut().poll(context).is_ready() {
                connection.as_mut().graceful_shutdown();
            }
            let ended = connection.as_mut().poll(context);
            // It waits for something now, maybe for a client that takes nothing.
            sending.end_turn();
            ended
        })
        .await;
        if let Err(error) = ended {
            match unreadable(&error) {
                Some(reason) => {
                    debug!(%peer, %error, reason, "a request could not be read");
                    metrics::connection_refused(reason);
                }
                None => debug!(%peer, %error, "a connection ended early"),
            }
        }
    }
}

/// Why hyper read no request. It has answered that itself: 400, 414 or 431 without a body.
fn unreadable(error: &hyper::Error) -> Option<&'static str> {
    match error {
        error if error.is_parse_too_large() => Some("header_too_large"),
        error if error.is_parse() => Some("not_http"),
        _ => None,
    }
}

/// A request's body that, dropped before its end, is read on for a moment.
struct Lingering {
    body: Option<Incoming>,
    shutdown: Shutdown,
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            let shutdown = self.shutdown.clone();
            self.shutdown.spawn(async move {
                tokio::select! {
                    _ = timeout(LINGER.0, discard(body, LINGER.1)) => {}
                    () = shutdown.cancelled() => {}
                }
            });
        }
    }
}

async fn discard(mut body: Incoming, limit: u64) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, |data| data.len() as u64);
        if read > limit {
            return;
        }
    }
}
