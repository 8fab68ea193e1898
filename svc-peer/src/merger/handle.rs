//! How the rest of the service asks a merge that goes on.

use std::{ops::Range, sync::Arc, time::Duration};

use domain::Hotkey;
use futures::{StreamExt as _, stream};
use merge::{Data, Event, Exchange, Verified};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Expected, Hands, Progress};
use crate::{
    chunks::Chunks,
    error::Refused,
    merger::transfer::Pushed,
    merging::{Merging, Outgoing, Taking},
};

/// What a merge is asked.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Something has happened.
    Happened(Box<Event>),
    /// A member calls.
    Called {
        from: Hotkey,
        exchange: Box<Exchange<Verified>>,
        tell: oneshot::Sender<Exchange<Verified>>,
    },
    /// Whether somebody is a member, if that is known, and may have these bytes now.
    Serves { to: Hotkey, data: Data, tell: oneshot::Sender<(Option<bool>, bool)> },
    /// What these bytes have to be, if they are wanted.
    Wants { from: Hotkey, data: Data, tell: oneshot::Sender<Option<Expected>> },
}

/// Asks one merge.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    asks: mpsc::Sender<Ask>,
    progress: watch::Receiver<Progress>,
    hands: Arc<Hands>,
}

impl Handle {
    pub(super) fn new(
        asks: mpsc::Sender<Ask>,
        progress: watch::Receiver<Progress>,
        hands: Arc<Hands>,
    ) -> Self {
        Self { asks, progress, hands }
    }

    /// Whether it is agreed who takes part.
    pub(crate) fn is_grouped(&self) -> bool {
        self.progress.borrow().grouped
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Refused> {
        let (tell, told) = oneshot::channel();
        self.asks.send(make(tell)).await.map_err(|_| Refused::Over)?;
        told.await.map_err(|_| Refused::Over)
    }

    /// The bytes, where a member may have them, or soon.
    async fn find(&self, to: &Hotkey, data: &Data, range: &Range<u32>) -> Result<Found, Refused> {
        let wait = tokio::time::sleep(self.hands.patience());
        tokio::pin!(wait);
        let mut progress = self.progress.clone();
        loop {
            progress.mark_unchanged();
            let asked = (to.clone(), data.clone());
            let ask = |tell| Ask::Serves { to: asked.0, data: asked.1, tell };
            let (member, serves) = self.ask(ask).await?;
            if member == Some(false) {
                return Err(Refused::NotAMember);
            }
            if serves && let Some(chunks) = self.hands.chunks_of(data) {
                return Ok(Found::Chunks(chunks));
            }
            if member == Some(true)
                && let Some(evidence) = self.hands.evidence_of(data, range)
            {
                return Ok(Found::Evidence(evidence));
            }
            tokio::select! {
                changed = progress.changed() => changed.map_err(|_| Refused::Over)?,
                () = &mut wait => return Err(Refused::NotHere),
            }
        }
    }
}

enum Found {
    Chunks(Chunks),
    Evidence(bytes::Bytes),
}

#[tonic::async_trait]
impl Merging for Handle {
    async fn exchange(
        &self,
        from: &Hotkey,
        exchange: Exchange<Verified>,
    ) -> Result<Exchange<Verified>, Refused> {
        let (caller, exchange) = (from.clone(), Box::new(exchange));
        let answer = self.ask(|tell| Ask::Called { from: caller, exchange, tell }).await?;
        match self.hands.conduct().tell(from, answer).await {
            Some(answer) => Ok(answer),
            None => std::future::pending().await,
        }
    }

    async fn offer(
        &self,
        to: &Hotkey,
        data: &Data,
        range: Range<u32>,
    ) -> Result<Outgoing, Refused> {
        let found = self.find(to, data, &range).await?;
        let list = self.hands.list_of(data).ok_or(Refused::NotHere)?;
        let chunks = match found {
            Found::Evidence(bytes) => stream::iter([Ok(bytes)]).boxed(),
            Found::Chunks(chunks) => {
                let all = chunks.range();
                let range = range.start.max(all.start)..range.end.min(all.end);
                Arc::clone(&self.hands).giving(to.clone(), data.clone(), chunks, range)
            }
        };
        Ok(Outgoing { list, chunks })
    }

    async fn take(&self, from: &Hotkey, data: &Data) -> Result<Box<dyn Taking>, Refused> {
        let asked = (from.clone(), data.clone());
        let wants = self.ask(|tell| Ask::Wants { from: asked.0, data: asked.1, tell }).await?;
        let expected = wants.ok_or(Refused::NotWanted)?;
        Ok(Box::new(Pushed::new(Arc::clone(&self.hands), data.clone(), expected)))
    }
}

/// How long a request that comes early waits: a part of what the asker waits, so that it hears why.
pub(super) fn patience(answer_wait: Duration, deadline: Duration) -> Duration {
    answer_wait.min(deadline / 100).max(Duration::from_millis(50))
}
