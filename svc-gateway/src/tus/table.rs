//! Who has which unfinished upload: one loop owns them all, and lends each to one request at a time.
//!
//! What is lent comes back by itself, however its borrower ends: the way back is reserved before. The loop
//! does no work that may wait; it starts what is due: forgetting verifications that nobody goes on with,
//! expiring uploads, settling those whose last byte came.

use std::{
    collections::HashMap,
    io, mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use domain::{Hotkey, RoundId};
use tokio::{
    sync::{
        mpsc::{self, OwnedPermit},
        oneshot,
    },
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, info_span};

use super::{
    append, life,
    part::{Info, Part, UploadId},
};
use crate::{app::App, arriving::Progress, error::Error, intake::Sink, marks::End, metrics};

/// How often the loop looks for what is due.
const TICK: Duration = Duration::from_secs(1);
/// How long a verification is kept for the next bytes. It has about a megabyte and perhaps a thread.
const WARM: Duration = Duration::from_secs(5);
/// After this time an upload whose every byte has come is settled, if no request does.
const SETTLE: Duration = Duration::from_secs(2);
/// How long somebody waits for what is lent to come back, before the answer is that it is lent.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests to the loop that may wait, beside the ways back.
const QUEUE: usize = 64;

/// The handle of the loop.
#[derive(Debug, Clone)]
pub(crate) struct Table(mpsc::Sender<Ask>);

/// What the loop is asked.
#[derive(Debug)]
pub(crate) struct Asks(mpsc::Receiver<Ask>);

/// What is known of an upload that is not at its end.
#[derive(Debug, Clone)]
pub(crate) struct Looked {
    /// Who sends what.
    pub(crate) info: Info,
    /// How much has come.
    pub(crate) offset: u64,
    /// How long it has been silent.
    pub(crate) silent: Duration,
}

impl Looked {
    pub(super) fn at(part: &Part, silent: Duration) -> Self {
        Self { info: part.info.clone(), offset: part.offset, silent }
    }
}

type Lent = oneshot::Sender<Result<Taken, Error>>;

#[derive(Debug)]
enum Ask {
    Open { part: Part, back: OwnedPermit<Ask>, answer: Lent },
    Take { id: UploadId, back: OwnedPermit<Ask>, answer: Lent },
    Look { id: UploadId, answer: oneshot::Sender<Option<Looked>> },
    Quiet { hotkey: Hotkey, answer: oneshot::Sender<Option<Looked>> },
    Back(Part),
    Gone(UploadId),
}

impl Table {
    /// A handle, and what it asks.
    pub(crate) fn new(borrowers: usize) -> (Self, Asks) {
        let (sender, receiver) = mpsc::channel(borrowers.saturating_add(QUEUE));
        (Self(sender), Asks(receiver))
    }

    /// Adds an upload, instead of an older one of the same miner, and borrows it.
    pub(crate) async fn open(&self, part: Part) -> Result<Taken, Error> {
        let (answer, lent) = oneshot::channel();
        let back = self.back().await?;
        self.ask(Ask::Open { part, back, answer }).await?;
        lent.await.map_err(|_| Error::Stopping)?
    }

    /// Borrows an upload.
    pub(crate) async fn take(&self, id: &UploadId) -> Result<Taken, Error> {
        let (answer, lent) = oneshot::channel();
        let back = self.back().await?;
        self.ask(Ask::Take { id: id.clone(), back, answer }).await?;
        lent.await.map_err(|_| Error::Stopping)?
    }

    /// How far an upload is, if it is here. Whoever asks has no hope in a request that is under way: that
    /// one is ended first, unless it has all its bytes. What it sent may still be read for a while.
    pub(crate) async fn look(&self, id: &UploadId) -> Result<Option<Looked>, Error> {
        let (answer, looked) = oneshot::channel();
        self.ask(Ask::Look { id: id.clone(), answer }).await?;
        let looked = timeout(PATIENCE, looked).await.map_err(|_| Error::UploadLocked)?;
        looked.map_err(|_| Error::Stopping)
    }

    /// Ends a request of this miner that is under way, as it begins anew.
    pub(crate) async fn quiet(&self, hotkey: &Hotkey) -> Result<(), Error> {
        let (answer, looked) = oneshot::channel();
        self.ask(Ask::Quiet { hotkey: hotkey.clone(), answer }).await?;
        // The miner's turn decides, not this.
        let _ = timeout(PATIENCE, looked).await;
        Ok(())
    }

    async fn back(&self) -> Result<OwnedPermit<Ask>, Error> {
        self.0.clone().reserve_owned().await.map_err(|_| Error::Stopping)
    }

    async fn ask(&self, ask: Ask) -> Result<(), Error> {
        self.0.send(ask).await.map_err(|_| Error::Stopping)
    }
}

/// An upload that is borrowed. Dropped, it goes back.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Always there, until it is given back.
    part: Option<(Part, OwnedPermit<Ask>)>,
    watch: Watch,
}

/// What others see of an upload that is borrowed, and how they tell its borrower to stop.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    offset: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Watch {
    /// Completes when the borrower should take no more bytes.
    pub(crate) async fn told_to_stop(&self) {
        self.stop.cancelled().await;
    }
}

impl Taken {
    /// What is borrowed.
    pub(crate) fn part(&mut self) -> io::Result<&mut Part> {
        self.part.as_mut().map(|(part, _)| part).ok_or(io::ErrorKind::NotFound.into())
    }

    /// How its borrower is told to stop.
    pub(crate) fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// Deletes it: what became of it is known.
    pub(crate) async fn end(mut self) {
        if let Some((part, back)) = self.part.take() {
            let id = part.info.id.clone();
            // The name is free once the files are gone.
            let _ = spawn_blocking(move || part.delete()).await;
            back.send(Ask::Gone(id));
        }
    }
}

impl Sink for Taken {
    fn append(&mut self, piece: &[u8]) -> io::Result<()> {
        let part = self.part()?;
        part.append(piece)?;
        let offset = part.offset;
        self.watch.offset.store(offset, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some((mut part, back)) = self.part.take() {
            // However its borrower ended: what rests keeps no room that others could use.
            part.settle();
            back.send(Ask::Back(part));
        }
    }
}

#[derive(Debug)]
enum Slot {
    Resting { part: Part, since: Instant },
    Lent { info: Info, watch: Watch, waiting: Vec<oneshot::Sender<Option<Looked>>> },
}

impl Slot {
    fn info(&self) -> &Info {
        match self {
            Self::Resting { part, .. } => &part.info,
            Self::Lent { info, .. } => info,
        }
    }

    /// Whose upload has come how far.
    fn progress(&self) -> (RoundId, Hotkey, Progress) {
        let bytes = match self {
            Self::Resting { part, .. } => part.offset,
            Self::Lent { watch, .. } => watch.offset.load(Ordering::Relaxed),
        };
        let info = self.info();
        (info.round, info.hotkey.clone(), Progress { bytes, of: Some(info.length) })
    }
}

/// The loop.
#[derive(Debug)]
pub(crate) struct Keeper {
    app: App,
    asks: Asks,
    slots: HashMap<UploadId, Slot>,
}

impl Keeper {
    /// Keeps `parts`, which a process before this one left, and all that come.
    pub(crate) fn new(app: App, asks: Asks, parts: Vec<Part>) -> Self {
        let since = Instant::now();
        let slots = parts.into_iter().map(|part| {
            let id = part.info.id.clone();
            (id, Slot::Resting { part, since })
        });
        Self { app, asks, slots: slots.collect() }
    }

    /// Runs until shutdown, and then until everything that is lent came back.
    pub(crate) async fn run(mut self) {
        let shutdown = self.app.shutdown.clone();
        for (id, slot) in &self.slots {
            let (app, id, claim) = (self.app.clone(), id.clone(), slot.info().claim());
            shutdown.spawn(life::take_over(app, claim, id));
        }
        let mut ticks = interval(TICK.min(self.app.config.tus_idle / 4).max(TICK / 100));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let stopping = shutdown.is_cancelled();
            if stopping && !self.slots.values().any(|slot| matches!(slot, Slot::Lent { .. })) {
                return;
            }
            tokio::select! {
                ask = self.asks.0.recv() => match ask {
                    Some(ask) => self.answer(ask),
                    None => return,
                },
                _ = ticks.tick() => self.due(),
                () = shutdown.cancelled(), if !stopping => {}
            }
            metrics::tus_unfinished(self.slots.len());
        }
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Open { part, back, answer } => self.open(part, back, answer),
            Ask::Take { id, back, answer } => {
                let lent = self.lend(&id, back);
                // Whoever asked may be gone: then it comes back at once.
                let _ = answer.send(lent);
            }
            Ask::Look { id, answer } => self.look(&id, answer),
            Ask::Quiet { hotkey, answer } => {
                let of = |slot: &Slot| slot.info().hotkey == hotkey;
                let id = self.slots.iter().find(|(_, slot)| of(slot)).map(|(id, _)| id.clone());
                match id {
                    Some(id) => self.look(&id, answer),
                    None => drop(answer.send(None)),
                }
            }
            Ask::Back(part) => {
                let looked = Looked::at(&part, part.last.elapsed());
                let id = part.info.id.clone();
                let resting = Slot::Resting { part, since: Instant::now() };
                tell(self.slots.insert(id, resting), &Some(looked));
            }
            Ask::Gone(id) => tell(self.slots.remove(&id), &None),
        }
    }

    fn open(&mut self, part: Part, back: OwnedPermit<Ask>, answer: Lent) {
        let hotkey = &part.info.hotkey;
        let older = self.slots.iter().find(|(_, slot)| slot.info().hotkey == *hotkey);
        let refused = match older {
            // It has the miner's turn no more, but has not come back yet.
            Some((_, Slot::Lent { .. })) => {
                Some(Error::UploadInProgress { hotkey: hotkey.clone() })
            }
            Some((id, Slot::Resting { .. })) => {
                let id = id.clone();
                self.end(&id, None, "replaced");
                None
            }
            None => (self.slots.len() >= self.app.config.tus_max_unfinished).then_some(Error::Busy),
        };
        let lent = match refused {
            Some(error) => {
                self.delete(part);
                Err(error)
            }
            None => {
                let id = part.info.id.clone();
                self.slots.insert(id.clone(), Slot::Resting { part, since: Instant::now() });
                self.lend(&id, back)
            }
        };
        let _ = answer.send(lent);
    }

    fn lend(&mut self, id: &UploadId, back: OwnedPermit<Ask>) -> Result<Taken, Error> {
        let slot = self.slots.get_mut(id).ok_or(Error::NoUpload)?;
        let Slot::Resting { part, .. } = slot else { return Err(Error::UploadLocked) };
        let offset = Arc::new(AtomicU64::new(part.offset));
        let watch = Watch { offset, stop: CancellationToken::new() };
        let (info, waiting) = (part.info.clone(), Vec::new());
        let lent = Slot::Lent { info, watch: watch.clone(), waiting };
        match mem::replace(slot, lent) {
            Slot::Resting { part, .. } => Ok(Taken { part: Some((part, back)), watch }),
            Slot::Lent { .. } => Err(Error::UploadLocked),
        }
    }

    fn look(&mut self, id: &UploadId, answer: oneshot::Sender<Option<Looked>>) {
        let now = match self.slots.get_mut(id) {
            None => None,
            Some(Slot::Resting { part, .. }) => Some(Looked::at(part, part.last.elapsed())),
            Some(Slot::Lent { info, watch, waiting }) => {
                let offset = watch.offset.load(Ordering::Relaxed);
                if offset < info.length {
                    watch.stop.cancel();
                    waiting.retain(|answer| !answer.is_closed());
                    return waiting.push(answer);
                }
                Some(Looked { info: info.clone(), offset, silent: Duration::ZERO })
            }
        };
        let _ = answer.send(now);
    }

    /// Does what is due.
    fn due(&mut self) {
        let seen = self.app.latest.fresh().ok();
        let idle = self.app.config.tus_idle;
        self.app.arriving.resumable(self.slots.values().map(Slot::progress));
        let mut expired = Vec::new();
        for (id, slot) in &mut self.slots {
            let Slot::Resting { part, since } = slot else { continue };
            let (resting, silent) = (since.elapsed(), part.last.elapsed());
            if resting >= WARM {
                part.stream = None;
            }
            let over = seen.as_ref().is_some_and(|seen| life::is_over(&seen.view, part));
            if over || (silent >= idle && !part.is_whole()) {
                expired.push(id.clone());
            } else if part.is_whole() && resting >= SETTLE && seen.is_some() {
                let (app, id) = (self.app.clone(), id.clone());
                self.app.shutdown.spawn(async move { append::settle(app, id).await });
            }
        }
        for id in expired {
            info!(?id, "an unfinished upload has expired");
            self.end(&id, Some(End::Expired), "expired");
        }
    }

    /// Forgets an upload, and makes known why.
    fn end(&mut self, id: &UploadId, end: Option<End>, how: &'static str) {
        let Some(Slot::Resting { part, .. }) = self.slots.remove(id) else { return };
        metrics::tus_ended(how);
        self.delete(part);
        if let Some(end) = end {
            let (app, id) = (self.app.clone(), id.clone());
            let span = info_span!("end", how);
            let telling = async move { life::tell(&app, &id, &end).await };
            self.app.shutdown.spawn(tracing::Instrument::instrument(telling, span));
        }
    }

    fn delete(&self, part: Part) {
        self.app.shutdown.spawn(async move { spawn_blocking(move || part.delete()).await });
    }
}

/// Tells those who wait for what was lent.
fn tell(slot: Option<Slot>, now: &Option<Looked>) {
    if let Some(Slot::Lent { waiting, .. }) = slot {
        for answer in waiting {
            let _ = answer.send(now.clone());
        }
    }
}
