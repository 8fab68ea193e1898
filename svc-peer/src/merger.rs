//! Drives the agreement of one merge: events go into [`merge::Machine`], its commands are carried out,
//! until it is over for everybody.
//!
//! One task owns the machine and does nothing that takes long; what does is a task of its own, which
//! ends in an event (see `hands`). Others ask through a [`Handle`].

mod audit;
pub(crate) mod clock;
mod handle;
pub(crate) mod hands;
mod transfer;

use std::{ops::Range, sync::Arc, time::Duration};

pub(crate) use clock::Clock;
pub(crate) use handle::Handle;
pub(crate) use hands::{Hands, Note};
use merge::{
    Command, Data, Digest, Event, Exchange, Machine, Outcome, Proof, Said, Slice, Start, Statement,
    Verified,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tracing::{debug, info, warn};

use crate::{
    chunks::Cut,
    keep::{Keeper, Kept},
    merger::handle::Ask,
};

/// Asks that wait: more wait where they are made.
const ASKS: usize = 256;

/// What bytes have to be, from what was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    /// How they are cut and encoded.
    pub(crate) cut: Cut,
    /// The chunks, counted in the whole vector.
    pub(crate) range: Range<u32>,
    /// Those that the list of digests covers.
    pub(crate) listed: Range<u32>,
    /// What the list has to hash to.
    pub(crate) committed: Digest,
}

/// How far a merge is. Receivers hear of every event, whether this changes or not.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    /// The group is agreed.
    grouped: bool,
}

/// A merge that goes on.
#[derive(Debug)]
pub(crate) struct Merger {
    machine: Machine,
    clock: Clock,
    keeper: Arc<Keeper>,
    kept: Kept,
    hands: Arc<Hands>,
    asks: mpsc::Receiver<Ask>,
    tasks: JoinSet<()>,
    ended: Option<oneshot::Sender<Box<Outcome>>>,
    progress: watch::Sender<Progress>,
}

/// Its state cannot be kept any more: another service of this validator speaks now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another service of this validator has taken the merge over")]
pub(crate) struct TakenOver;

impl Merger {
    /// A merge with what was `kept` of it; the end comes through the receiver.
    pub(crate) fn new(
        start: Start,
        clock: Clock,
        keeper: Arc<Keeper>,
        kept: Kept,
        hands: impl FnOnce(mpsc::Sender<Ask>) -> Hands,
    ) -> (Self, Handle, oneshot::Receiver<Box<Outcome>>) {
        let (ask, asks) = mpsc::channel(ASKS);
        let (end, ended) = oneshot::channel();
        let (progress, seen) = watch::channel(Progress::default());
        let hands = Arc::new(hands(ask.clone()));
        let handle = Handle::new(ask, seen, Arc::clone(&hands));
        let merger = Self {
            machine: Machine::new(start, kept.saved.clone()),
            clock,
            keeper,
            kept,
            hands,
            asks,
            tasks: JoinSet::new(),
            ended: Some(end),
            progress,
        };
        (merger, handle, ended)
    }

    /// What it works with.
    pub(crate) fn hands(&self) -> Arc<Hands> {
        Arc::clone(&self.hands)
    }

    /// Goes on until the merge is over for everybody, its own end told as soon as it is there. Returns
    /// all that proves members to have broken the rules.
    pub(crate) async fn run(mut self) -> Result<Vec<Proof>, TakenOver> {
        self.happen(Event::Tick).await?;
        let over = self.clock.at(self.machine.schedule().end);
        loop {
            let ended = self.machine.outcome().is_some();
            let wake = self.machine.next_wake().map(|wake| self.clock.at(wake));
            tokio::select! {
                Some(ask) = self.asks.recv() => self.answer(ask).await?,
                () = sleep(wake) => {
                    self.happen(Event::Tick).await?;
                }
                // Ends are never later than this; what comes after is of no use to anybody.
                () = tokio::time::sleep_until(over), if ended => return Ok(self.machine.proofs()),
                Some(done) = self.tasks.join_next() => {
                    if let Err(error) = done {
                        warn!(%error, "a part of the merge broke");
                    }
                }
            }
        }
    }

    async fn answer(&mut self, ask: Ask) -> Result<(), TakenOver> {
        match ask {
            Ask::Happened(event) => {
                self.happen(*event).await?;
            }
            Ask::Called { from, exchange, tell } => {
                let answer = self.happen(Event::Called { from, exchange: *exchange }).await?;
                // Whoever called may have gone.
                let _ = answer.map(|answer| tell.send(answer));
            }
            Ask::Serves { to, data, tell } => {
                let member = self.machine.group().map(|group| group.has(&to));
                let serves = self.machine.serves(&to, &data);
                let _ = tell.send((member, serves));
            }
            Ask::Wants { from, data, tell } => {
                let wants = self.machine.wants(&from, &data);
                let _ = tell.send(self.expected(&data).filter(|_| wants));
            }
        }
        Ok(())
    }

    /// Takes an event in and does what follows; the answer where the event is a call.
    async fn happen(&mut self, event: Event) -> Result<Option<Exchange<Verified>>, TakenOver> {
        let mut answer = None;
        for command in self.machine.handle(self.clock.now(), event) {
            if let Command::Reply { exchange, .. } = command {
                answer = Some(exchange);
            } else {
                self.execute(command).await?;
            }
        }
        let grouped = self.machine.group().is_some();
        self.progress.send_replace(Progress { grouped });
        Ok(answer)
    }

    async fn execute(&mut self, command: Command) -> Result<(), TakenOver> {
        let hands = Arc::clone(&self.hands);
        match command {
            Command::Save(saved) => {
                self.kept.saved = saved;
                self.keep().await?;
            }
            Command::Sign(said) => {
                hands.link(&said);
                self.tasks.spawn(async move { hands.sign(said).await });
            }
            Command::Call { to, exchange } => {
                let limit = self.machine.schedule().step;
                self.tasks.spawn(async move { hands.call(to, exchange, limit).await });
            }
            Command::Reply { .. } => {}
            Command::Fetch { data, from, until } => {
                let (expected, until) = (self.expected(&data), self.clock.at(until));
                self.tasks.spawn(async move { hands.fetch(data, from, expected, until).await });
            }
            Command::Push { data, to, until } => {
                let (expected, until) = (self.expected(&data), self.clock.at(until));
                self.tasks.spawn(async move { hands.push(data, to, expected, until).await });
            }
            Command::Reduce { slice, attempt, contributors } => {
                let range = self.machine.group().map(|group| group.slices().range(slice));
                let range = range.unwrap_or_default();
                self.tasks.spawn(async move {
                    hands.reduce((slice, attempt), range, contributors).await;
                });
            }
            Command::Audit { statement, chunk, sources, until } => {
                let (inputs, until) = (self.inputs(&statement), self.clock.at(until));
                self.tasks.spawn(async move {
                    hands.audit(statement, chunk, inputs, sources, until).await;
                });
            }
            Command::End(outcome) => self.end(outcome),
        }
        Ok(())
    }

    fn end(&mut self, outcome: Outcome) {
        match &outcome.ended {
            merge::Ended::Failed(failure) => {
                let reason = failure.reason();
                warn!(reason, %failure, "the members did not agree on a result");
            }
            merge::Ended::Merged(merged) => {
                let (digest, group) = (merged.digest, merged.group);
                info!(%digest, %group, signers = merged.signers.len(), "result agreed");
            }
            merge::Ended::Solo => info!("nobody else is there, going alone"),
        }
        if let Some(ended) = self.ended.take() {
            // The round may have been given up meanwhile.
            let _ = ended.send(Box::new(outcome));
        }
    }

    /// Keeps what was said, however long that takes: nothing is said before.
    async fn keep(&mut self) -> Result<(), TakenOver> {
        let mut pause = Duration::from_millis(50);
        loop {
            match self.keeper.keep(&self.kept).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_lost() => {
                    warn!(%error, "another service of this validator has taken over");
                    return Err(TakenOver);
                }
                Err(error) => warn!(%error, ?pause, "what is to be said cannot be kept yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    fn slice(&self, statement: &Digest) -> Option<&Slice> {
        match &self.machine.statement(statement)?.said().what {
            Statement::Slice(slice) => Some(slice),
            Statement::Offer(_)
            | Statement::Claim(_)
            | Statement::Vouch(_)
            | Statement::Ready(_)
            | Statement::Final(_) => None,
        }
    }

    /// What these bytes have to be; `None` where nobody has signed for them.
    fn expected(&self, data: &Data) -> Option<Expected> {
        let group = self.machine.group()?;
        let slices = group.slices();
        match data {
            Data::Piece { giver, slice } => {
                let gradient = group.offer(giver)?.offer.gradient?;
                let (cut, listed) = (self.hands.cut(), 0..slices.chunks);
                if gradient.bytes != cut.bytes(listed.clone()) {
                    debug!(peer = %giver, bytes = gradient.bytes, "a gradient of another length");
                    return None;
                }
                let range = slices.range(*slice);
                Some(Expected { cut, range, listed, committed: gradient.chunks })
            }
            Data::Reduced(statement) => {
                let slice = self.slice(statement)?;
                let range = slices.range(slice.slice);
                let (cut, listed) = (self.hands.result_cut(), range.clone());
                Some(Expected { cut, range, listed, committed: slice.chunks })
            }
        }
    }

    /// From what a stated slice has to be reduced.
    fn inputs(&self, statement: &Digest) -> Option<audit::Inputs> {
        let slice = self.slice(statement)?;
        let piece = |giver: &domain::Hotkey| {
            let data = Data::Piece { giver: giver.clone(), slice: slice.slice };
            let expected = self.expected(&data);
            Some((giver.clone(), data, expected?))
        };
        let pieces: Option<Vec<_>> = slice.contributors.iter().map(piece).collect();
        Some(audit::Inputs { pieces: pieces? })
    }
}

async fn sleep(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// The turn in which a slice was reduced, where this says so.
fn turn(said: &Said) -> Option<((u16, u16), Digest)> {
    match &said.what {
        Statement::Slice(slice) => Some(((slice.slice, slice.attempt), slice.chunks)),
        Statement::Offer(_)
        | Statement::Claim(_)
        | Statement::Vouch(_)
        | Statement::Ready(_)
        | Statement::Final(_) => None,
    }
}
