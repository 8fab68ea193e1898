//! Chunks on their way, at the serving end: out of what is here, and into what takes them.
//!
//! Each transfer is a task, so that it ends in order even when the other end has gone: a reader
//! that stalls does not hold what it was offered, and what has come of a push is kept.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream, stream::BoxStream};
use kit::Shutdown;
use proto::InvalidField;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tracing::{Instrument as _, Span, debug};

use crate::{
    error::Refused,
    merging::{Outgoing, Taking},
    metrics,
    part::{Gathering, Part},
};

/// What is read ahead of the one that goes out.
const AHEAD: usize = 1;

/// A part of what is brought.
#[derive(Debug)]
pub(crate) enum Brought {
    /// The announcement: body and signature.
    Request((Bytes, Bytes)),
    /// A part of the list, or a chunk.
    Part(Part),
}

/// What another validator brings, as it comes.
pub(crate) type Incoming = BoxStream<'static, Result<Brought, Refused>>;

/// Sends the list and the chunks for as long as they are taken within `idle` each.
pub(crate) fn send(
    outgoing: Outgoing,
    room: OwnedSemaphorePermit,
    idle: Duration,
    stop: &Shutdown,
) -> impl Stream<Item = Result<Part, Refused>> + Send + use<> {
    let (tell, told) = mpsc::channel(AHEAD);
    let stopped = stop.clone();
    let task = async move {
        let _room = room;
        tokio::select! {
            () = pump(outgoing, &tell, idle) => {}
            () = tell.closed() => debug!("the reader has gone"),
            () = stopped.cancelled() => {
                let _ = tell.try_send(Err(Refused::Stopping));
            }
        }
    };
    stop.spawn(task.instrument(Span::current()));
    stream::unfold(told, async |mut told| told.recv().await.map(|part| (part, told)))
}

async fn pump(outgoing: Outgoing, tell: &mpsc::Sender<Result<Part, Refused>>, idle: Duration) {
    let Outgoing { list, mut chunks } = outgoing;
    for part in Part::of_list(&list) {
        if let Err(error) = tell.send_timeout(Ok(part), idle).await {
            return debug!(%error, "the list is not taken");
        }
    }
    while let Some(chunk) = chunks.next().await {
        let len = chunk.as_ref().map_or(0, Bytes::len);
        let part = chunk.map(Part::Data);
        let part = part.map_err(|error| Refused::Unreadable { detail: error.to_string() });
        let failed = part.is_err();
        if let Err(error) = tell.send_timeout(part, idle).await {
            return debug!(%error, "chunks are not taken");
        }
        if failed {
            return;
        }
        metrics::bytes_sent(len);
    }
}

/// The announcement that a push begins with.
pub(crate) async fn request(
    incoming: &mut Incoming,
    idle: Duration,
) -> Result<(Bytes, Bytes), Refused> {
    match next(incoming, idle).await? {
        Some(Brought::Request(signed)) => Ok(signed),
        Some(Brought::Part(_)) => Err(malformed("bytes before the request")),
        None => Err(Refused::CutShort),
    }
}

/// Passes what comes on to `taking`, and tells whether all is here then.
pub(crate) async fn receive(
    incoming: Incoming,
    taking: Box<dyn Taking>,
    room: OwnedSemaphorePermit,
    idle: Duration,
    stop: &Shutdown,
) -> Result<bool, Refused> {
    let stopped = stop.clone();
    let task = async move {
        let _room = room;
        let mut taking = taking;
        let came = tokio::select! {
            came = drain(incoming, taking.as_mut(), idle) => came,
            () = stopped.cancelled() => Err(Refused::Stopping),
        };
        // What came of it is kept, however it ended.
        let finished = taking.finish().await;
        came.and(finished)
    };
    stop.spawn(task.instrument(Span::current())).await.unwrap_or(Err(Refused::Stopping))
}

async fn drain(
    mut incoming: Incoming,
    taking: &mut dyn Taking,
    idle: Duration,
) -> Result<(), Refused> {
    let mut gathering = Gathering::new(taking.listed());
    let list = loop {
        if taking.next().is_none() {
            return Ok(());
        }
        if let Some(list) = gathering.take(part(&mut incoming, idle).await?)? {
            break list;
        }
    };
    taking.list(list).await?;
    for number in taking.range() {
        let Some(lacking) = taking.next() else { break };
        let Part::Data(bytes) = part(&mut incoming, idle).await? else {
            return Err(malformed("a second list"));
        };
        metrics::bytes_received(bytes.len());
        if number >= lacking {
            taking.chunk(bytes).await?;
        }
    }
    Ok(())
}

async fn part(incoming: &mut Incoming, idle: Duration) -> Result<Part, Refused> {
    match next(incoming, idle).await? {
        Some(Brought::Part(part)) => Ok(part),
        Some(Brought::Request(_)) => Err(malformed("a second request")),
        None => Err(Refused::CutShort),
    }
}

async fn next(incoming: &mut Incoming, idle: Duration) -> Result<Option<Brought>, Refused> {
    let next = tokio::time::timeout(idle, incoming.next()).await;
    next.map_err(|_| Refused::Stalled)?.transpose()
}

fn malformed(what: &'static str) -> Refused {
    InvalidField::new("part", what).into()
}
