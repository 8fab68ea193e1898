//! Audits: a chunk of a reduced slice is made again from what its contributors have committed to.

use std::sync::Arc;

use bytes::Bytes;
use domain::Hotkey;
use merge::{Data, Digest, Event, Verdict};
use tokio::{task::spawn_blocking, time::Instant};
use tracing::{instrument, warn};

use super::{Expected, Hands, hands::lock, transfer::all};

/// From what a slice has to be reduced.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    /// The contributors, ascending, and the commitments to their pieces.
    pub(crate) pieces: Vec<(Hotkey, Data, Expected)>,
}

impl Hands {
    /// Makes one chunk again and compares.
    #[instrument(skip_all, fields(%statement, chunk))]
    pub(super) async fn audit(
        self: Arc<Self>,
        statement: Digest,
        chunk: u32,
        inputs: Option<Inputs>,
        sources: Vec<Hotkey>,
        until: Instant,
    ) {
        let verdict = match inputs {
            None => Verdict::Unknown,
            Some(inputs) => {
                let verdict = Arc::clone(&self).verdict(statement, chunk, inputs, sources);
                tokio::time::timeout_at(until, verdict).await.unwrap_or(Verdict::Unknown)
            }
        };
        self.tell(Event::Audited { statement, chunk, verdict }).await;
    }

    async fn verdict(
        self: Arc<Self>,
        statement: Digest,
        chunk: u32,
        inputs: Inputs,
        sources: Vec<Hotkey>,
    ) -> Verdict {
        let Some(reduced) = self.tools.shelf.get(&Data::Reduced(statement)) else {
            return Verdict::Unknown;
        };
        let sources: Arc<[Hotkey]> = sources.into();
        let mut parts = Vec::with_capacity(inputs.pieces.len());
        for piece in inputs.pieces {
            parts.push(Arc::clone(&self).part(piece, chunk, Arc::clone(&sources)));
        }
        let Some(parts) = all(parts).await else { return Verdict::Unknown };
        let hands = Arc::clone(&self);
        let compare = move || {
            let right = hands.tools.reducer.chunk(chunk, &parts).bytes == reduced.checked(chunk)?;
            if !right {
                warn!(%statement, chunk, "a slice is reduced wrongly");
                for (giver, bytes) in parts {
                    hands.tools.shelf.keep_evidence(&giver, chunk, &bytes)?;
                }
            }
            Ok::<_, std::io::Error>(right)
        };
        match spawn_blocking(compare).await {
            Ok(Ok(true)) => Verdict::Right,
            Ok(Ok(false)) => Verdict::Wrong,
            Ok(Err(error)) => {
                warn!(%error, "a slice that is here cannot be read");
                Verdict::Unknown
            }
            Err(error) => {
                warn!(%error, "an audit broke");
                Verdict::Unknown
            }
        }
    }

    /// Fetches a piece as one where most of its chunks are looked at anyway: a call for each would take
    /// longer than there is time.
    async fn fetch_small(&self, giver: &Hotkey, data: &Data, expected: &Expected) {
        if self.is_me(giver) || expected.range.len() > usize::from(self.tools.audits) {
            return;
        }
        let turn = Arc::clone(lock(&self.looking_at).entry(data.clone()).or_default());
        let _turn = turn.lock().await;
        let _lane = self.lane(giver).await;
        if self.chunks_of(data).is_none()
            && let Err(error) = self.fetch_into(data, giver, expected).await
        {
            self.note(giver, error.reason(), error.to_string());
        }
    }

    /// A contributor's chunk: from here, else from itself, else from whoever should have it.
    async fn part(
        self: Arc<Self>,
        (giver, data, expected): (Hotkey, Data, Expected),
        chunk: u32,
        sources: Arc<[Hotkey]>,
    ) -> Option<(Hotkey, Bytes)> {
        if let Some(bytes) = self.tools.shelf.evidence(&giver, chunk) {
            return Some((giver, bytes));
        }
        self.fetch_small(&giver, &data, &expected).await;
        if let Some(chunks) = self.chunks_of(&data) {
            let read = spawn_blocking(move || chunks.checked(chunk)).await;
            if let Ok(Ok(bytes)) = read {
                return Some((giver, bytes));
            }
        }
        let others = sources.iter().filter(|source| **source != giver);
        let callable = sources.iter().filter(|source| **source == giver);
        let asked: Vec<Hotkey> = callable.chain(others).cloned().collect();
        let bytes = self.fetch_one(&data, chunk, &expected, &asked).await?;
        Some((giver, bytes))
    }
}
