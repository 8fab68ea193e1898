//! The sending end of a push: one request, a list, chunks, and one answer at the end.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, future, stream};
use merge::Digest;
use proto::peer::v2::{Chunk, PushPart, PushReceipt, SignedMessage, push_part};
use tokio::sync::Notify;
use tonic::{Response, Status};

use crate::{
    call::{CallError, Client},
    metrics,
    part::Part,
};

/// What the call and its stream tell each other.
#[derive(Debug, Default)]
struct Progress {
    moved: Notify,
    failed: Mutex<Option<io::Error>>,
}

impl Progress {
    /// The chunk as a part, unless it could not be read: then the stream ends.
    fn part(&self, chunk: io::Result<Bytes>) -> Option<Chunk> {
        self.moved.notify_one();
        match chunk {
            Ok(bytes) => {
                metrics::bytes_sent(bytes.len());
                Some(Part::Data(bytes).into_wire())
            }
            Err(error) => {
                *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                None
            }
        }
    }

    fn failure(&self) -> Option<io::Error> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Pushes, for as long as something is taken within each `idle`.
pub(crate) async fn push(
    mut client: Client,
    request: SignedMessage,
    list: &[Digest],
    chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    idle: Duration,
) -> Result<bool, CallError> {
    let progress = Arc::new(Progress::default());
    let request = PushPart { part: Some(push_part::Part::Request(request)) };
    let list: Vec<Chunk> = Part::of_list(list).map(Part::into_wire).collect();
    let watched = Arc::clone(&progress);
    let chunks = chunks.scan((), move |(), chunk| future::ready(watched.part(chunk)));
    let parts = stream::iter(list)
        .chain(chunks)
        .map(|chunk| PushPart { part: Some(push_part::Part::Chunk(chunk)) });
    let stream = stream::iter([request]).chain(parts);

    let answer = watch(client.push(stream), &progress, idle).await;
    if let Some(error) = progress.failure() {
        return Err(error.into());
    }
    Ok(answer?.into_inner().held)
}

async fn watch(
    call: impl Future<Output = Result<Response<PushReceipt>, Status>>,
    progress: &Progress,
    idle: Duration,
) -> Result<Response<PushReceipt>, CallError> {
    tokio::pin!(call);
    loop {
        tokio::select! {
            answer = &mut call => return Ok(answer?),
            moved = tokio::time::timeout(idle, progress.moved.notified()) => {
                moved.map_err(|_| CallError::Silent)?;
            }
        }
    }
}
