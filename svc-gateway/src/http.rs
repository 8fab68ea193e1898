//! The HTTP server: connections, their limits, and a polite end of them.
//!
//! Knows no route. Each connection has a limit on the time and size of a request's header and on how long
//! it may take nothing of an answer; what a client still sends after it was answered is read on for a
//! moment, so that it sees the answer and not a reset.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use kit::Shutdown;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, Sleep, sleep, timeout},
};
use tower::ServiceExt as _;
use tracing::{debug, warn};

use crate::{
    Config,
    outgoing::Outgoing,
    wire::{Lane, Wire},
};

/// Most header lines of a request.
const MAX_HEADERS: usize = 64;
/// How long, and how many bytes, a body is read on after its request was answered.
const LINGER: (Duration, u64) = (Duration::from_secs(10), 256 << 20);

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
    let connections = Arc::new(Semaphore::new(config.max_connections));
    let server = Server::new(config, router, shutdown.clone());
    loop {
        let accepted = async {
            let permit = Arc::clone(&connections).acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let server = server.clone();
                shutdown.spawn(async move {
                    let _permit = permit;
                    server.connection(stream, peer).await;
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: let connections end.
                warn!(%error, "a connection could not be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Server {
    http: http1::Builder,
    router: Router,
    stall: Duration,
    shutdown: Shutdown,
}

impl Server {
    fn new(config: &Config, router: Router, shutdown: Shutdown) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_buf_size(config.max_header_bytes.max(8192))
            .max_headers(MAX_HEADERS);
        Self { http, router, stall: config.idle_timeout, shutdown }
    }

    async fn connection(self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "TCP_NODELAY could not be set");
        }
        let (router, shutdown) = (self.router, self.shutdown.clone());
        let lane = Arc::new(Lane::default());
        let wire = Wire::new(stream, Arc::clone(&lane));
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let linger = shutdown.clone();
            let mut request: Request =
                request.map(|body| Body::new(Lingering { body: Some(body), shutdown: linger }));
            request.extensions_mut().insert(Peer(peer.ip()));
            let (answer, lane) = (router.clone().oneshot(request), Arc::clone(&lane));
            async move { answer.await.map(|response| Outgoing::of(response, &lane)) }
        });
        let io = TokioIo::new(Stalling::new(wire, self.stall));
        let mut connection = pin!(self.http.serve_connection(io, service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            debug!(%peer, %error, "a connection ended early");
        }
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

/// A connection that fails when the other side takes nothing for too long.
#[derive(Debug)]
struct Stalling<S> {
    stream: S,
    limit: Duration,
    /// Runs while a write waits.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<S> Stalling<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, alarm: None }
    }

    fn watched<T>(
        &mut self,
        context: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.alarm = None;
            return progress;
        }
        let limit = self.limit;
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        ready!(alarm.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, progress)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_flush(context);
        self.watched(context, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watched(context, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(1);
        let mut ours = Stalling::new(ours, Duration::from_secs(30));
        let slow = async {
            for _ in 0..4 {
                sleep(Duration::from_secs(20)).await;
                theirs.read_u8().await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let writing = async {
            ours.write_all(b"1234").await.unwrap();
            ours.write_all(b"56789").await.unwrap_err().kind()
        };
        tokio::select! {
            kind = writing => assert_eq!(kind, io::ErrorKind::TimedOut),
            () = slow => unreachable!(),
        }
    }
}
