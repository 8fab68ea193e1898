//! The body of an answer: its trailers are seen, and a stop ends it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body};

use super::layer::Rpc;
use crate::Shutdown;

/// How long a stream may have nothing to send after a stop was asked for.
const IDLE: Duration = Duration::from_secs(1);

/// A body that ends its RPC when it ends.
pub(super) struct WatchedBody {
    inner: Body,
    rpc: Rpc,
    /// Completes [`IDLE`] after the stop; rearmed by every frame.
    idle: Pin<Box<dyn Future<Output = ()> + Send>>,
    shutdown: Shutdown,
    ended: bool,
}

impl WatchedBody {
    pub(super) fn new(inner: Body, rpc: Rpc, shutdown: Shutdown) -> Self {
        Self { inner, rpc, idle: idle(shutdown.clone()), shutdown, ended: false }
    }
}

fn idle(shutdown: Shutdown) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        shutdown.cancelled().await;
        tokio::time::sleep(IDLE).await;
    })
}

impl HttpBody for WatchedBody {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let span = this.rpc.span().clone();
        let frame = span.in_scope(|| Pin::new(&mut this.inner).poll_frame(cx));
        if let Poll::Ready(frame) = frame {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        this.rpc.saw(trailers);
                    }
                    if this.shutdown.is_cancelled() {
                        this.idle = idle(this.shutdown.clone());
                    }
                }
                Some(Err(_)) | None => this.ended = true,
            }
            return Poll::Ready(frame);
        }
        ready!(this.idle.as_mut().poll(cx));
        this.ended = true;
        let trailers = goodbye();
        this.rpc.saw(&trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn goodbye() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Only a message that is no header value could fail; this one is.
    let _ = Status::unavailable("the server is stopping").add_header(&mut trailers);
    trailers
}
