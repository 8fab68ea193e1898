//! A bad network of our own: every member is behind a line that delays, has a rate, breaks connections,
//! and can be cut. What chance decides is seeded.
//!
//! Each member finds each other one at a port of its own, so that a line knows both of its ends: what
//! goes from one member to another goes up the one's line and down the other's.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kit::Shutdown;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

use crate::network::Member;

/// What is read at once.
const PIECE: usize = 16 << 10;
/// Pieces that are on their way in one direction of a connection: more than a line holds.
const FLIGHT: usize = 64;

/// How bad lines are.
#[derive(Debug, Clone)]
pub(crate) struct Quality {
    /// From one member to another.
    latency: Duration,
    /// Bytes per second, up and down.
    rate: f64,
    /// Share of the connections that break.
    loss: f64,
    /// After how many bytes they do.
    life: Range<u64>,
}

impl Quality {
    /// On another continent: 50 ms each way, 100 Mbit/s up and down.
    pub(crate) fn far() -> Self {
        Self { latency: Duration::from_millis(50), rate: 12.5e6, loss: 0.0, life: 1..2 }
    }

    /// As [`Self::far`], and most of the connections break sooner or later.
    pub(crate) fn lossy() -> Self {
        Self { loss: 0.9, life: 1_000..60_000, ..Self::far() }
    }
}

/// What connects one member to the rest of the world.
#[derive(Debug)]
pub(crate) struct Line {
    cut: watch::Sender<bool>,
    up: Mutex<Instant>,
    down: Mutex<Instant>,
}

impl Line {
    fn new() -> Self {
        let now = Instant::now();
        Self { cut: watch::Sender::new(false), up: Mutex::new(now), down: Mutex::new(now) }
    }

    /// Nothing goes either way any more: what is connected stalls or breaks, and nothing new is
    /// accepted.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// What has stalled goes on, and new connections are accepted.
    pub(crate) fn heal(&self) {
        self.cut.send_replace(false);
    }

    /// Waits until it is cut, or not.
    pub(crate) async fn is(&self, cut: bool) {
        let _ = self.cut.subscribe().wait_for(|now| *now == cut).await;
    }

    fn is_open(&self) -> bool {
        !*self.cut.borrow()
    }
}

/// When bytes are through that are put in at `at`, behind what was put in before.
fn through(end: &Mutex<Instant>, at: Instant, bytes: usize, rate: f64) -> Instant {
    let mut free = end.lock().unwrap();
    *free = at.max(*free) + Duration::from_secs_f64(bytes as f64 / rate);
    *free
}

/// All lines, by the order of the members.
#[derive(Debug)]
pub(crate) struct BadNetwork {
    lines: Vec<Arc<Line>>,
    broken: Arc<AtomicU64>,
    carried: Arc<AtomicU64>,
    shutdown: Shutdown,
}

impl BadNetwork {
    fn new(members: usize) -> Self {
        Self {
            lines: (0..members).map(|_| Arc::new(Line::new())).collect(),
            broken: Arc::default(),
            carried: Arc::default(),
            shutdown: Shutdown::default(),
        }
    }

    /// Puts every member behind a line: each finds the others through it from now on.
    pub(crate) async fn between(members: &mut [Member], quality: &Quality, seed: u64) -> Self {
        let ends: Vec<_> =
            members.iter().map(|member| (member.hotkey.clone(), member.peer_addr())).collect();
        let this = Self::new(members.len());
        for (from, member) in members.iter_mut().enumerate() {
            let mut urls = BTreeMap::new();
            for (to, (hotkey, addr)) in ends.iter().enumerate().filter(|(to, _)| *to != from) {
                let seed = seed ^ (from << 16 | to << 8) as u64;
                let at = this.connect((from, to), *addr, quality.clone(), seed).await;
                urls.insert(hotkey.clone(), format!("{}://{at}", member.scheme()));
            }
            member.config.peer_urls = urls;
        }
        this
    }

    /// Has the one member find the other at the address that is returned.
    async fn connect(
        &self,
        (from, to): (usize, usize),
        addr: SocketAddr,
        quality: Quality,
        seed: u64,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let way = Way {
            near: self.line(from),
            far: self.line(to),
            quality,
            broken: Arc::clone(&self.broken),
            carried: Arc::clone(&self.carried),
        };
        let (stop, inner) = (self.shutdown.clone(), self.shutdown.clone());
        self.shutdown.spawn(async move {
            tokio::select! {
                () = way.accept(listener, addr, StdRng::seed_from_u64(seed), &inner) => {}
                () = stop.cancelled() => {}
            }
        });
        at
    }

    /// The line of a member.
    pub(crate) fn line(&self, of: usize) -> Arc<Line> {
        Arc::clone(&self.lines[of])
    }

    /// How many connections broke.
    pub(crate) fn broken(&self) -> u64 {
        self.broken.load(Ordering::SeqCst)
    }

    /// How many bytes came through.
    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::SeqCst)
    }
}

impl Drop for BadNetwork {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// From one member to another, and back.
#[derive(Debug, Clone)]
struct Way {
    near: Arc<Line>,
    far: Arc<Line>,
    quality: Quality,
    broken: Arc<AtomicU64>,
    carried: Arc<AtomicU64>,
}

/// A connection is over, and not in order.
#[derive(Debug)]
struct Broken;

/// What becomes of a connection.
#[derive(Debug)]
struct Fate {
    /// Bytes that still come through.
    left: AtomicU64,
    /// Whether it breaks when a line is cut; else it stalls.
    brittle: bool,
}

impl Way {
    async fn accept(self, listener: TcpListener, to: SocketAddr, mut rng: StdRng, stop: &Shutdown) {
        loop {
            self.opened().await;
            let Ok((near, _)) = listener.accept().await else { return };
            let breaks = rng.random_bool(self.quality.loss);
            let life = rng.random_range(self.quality.life.clone());
            let left = if breaks { life } else { u64::MAX };
            let fate = Fate { left: AtomicU64::new(left), brittle: rng.random_bool(0.5) };
            let (way, stopped) = (self.clone(), stop.clone());
            stop.spawn(async move {
                tokio::select! {
                    _ = way.carry(near, to, fate) => {}
                    () = stopped.cancelled() => {}
                }
            });
        }
    }

    /// Waits until neither line is cut.
    async fn opened(&self) {
        while !(self.near.is_open() && self.far.is_open()) {
            self.near.is(false).await;
            self.far.is(false).await;
        }
    }

    async fn cut(&self) {
        tokio::select! {
            () = self.near.is(true) => {}
            () = self.far.is(true) => {}
        }
    }

    async fn carry(&self, mut near: TcpStream, to: SocketAddr, fate: Fate) -> io::Result<()> {
        self.opened().await;
        let mut far = TcpStream::connect(to).await?;
        for end in [&near, &far] {
            end.set_nodelay(true)?;
        }
        let ended = {
            let (near_read, near_write) = near.split();
            let (far_read, far_write) = far.split();
            let there = self.pump(near_read, far_write, (&self.near.up, &self.far.down), &fate);
            let back = self.pump(far_read, near_write, (&self.far.up, &self.near.down), &fate);
            tokio::select! {
                ended = async { tokio::try_join!(there, back) } => ended,
                () = self.cut(), if fate.brittle => Err(Broken),
            }
        };
        if ended.is_err() {
            self.broken.fetch_add(1, Ordering::SeqCst);
            near.set_zero_linger()?;
            far.set_zero_linger()?;
        }
        Ok(())
    }

    /// One direction of a connection, until it ends there.
    async fn pump(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        (up, down): (&Mutex<Instant>, &Mutex<Instant>),
        fate: &Fate,
    ) -> Result<(), Broken> {
        let (put, mut flight) = mpsc::channel::<(Instant, Vec<u8>)>(FLIGHT);
        let Quality { latency, rate, .. } = self.quality;
        let read = async move {
            let mut piece = vec![0; PIECE];
            while let count @ 1.. = from.read(&mut piece).await.map_err(|_| Broken)? {
                let sent = through(up, Instant::now(), count, rate);
                let comes = through(down, sent, count, rate) + latency;
                if put.send((comes, piece[..count].to_vec())).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let write = async move {
            while let Some((comes, piece)) = flight.recv().await {
                sleep_until(comes).await;
                self.opened().await;
                self.lose(piece.len(), fate)?;
                to.write_all(&piece).await.map_err(|_| Broken)?;
            }
            to.shutdown().await.map_err(|_| Broken)
        };
        tokio::try_join!(read, write).map(|_| ())
    }

    /// Breaks the connection where chance has it so.
    fn lose(&self, bytes: usize, fate: &Fate) -> Result<(), Broken> {
        let bytes = bytes as u64;
        let take = |left: u64| left.checked_sub(bytes);
        fate.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).map_err(|_| Broken)?;
        self.carried.fetch_add(bytes, Ordering::SeqCst);
        Ok(())
    }
}

/// Two ends of a connection through a way of this quality.
async fn connected(quality: Quality, seed: u64) -> (BadNetwork, TcpStream, TcpStream) {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let network = BadNetwork::new(2);
    let at = network.connect((0, 1), server.local_addr().unwrap(), quality, seed).await;
    let near = TcpStream::connect(at).await.unwrap();
    let (far, _) = server.accept().await.unwrap();
    (network, near, far)
}

#[tokio::test]
async fn what_goes_through_a_line_comes_out_as_it_was() {
    let (network, mut near, mut far) = connected(Quality::far(), 1).await;
    let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let mut came = vec![0; sent.len()];
    let (put, got) = tokio::join!(near.write_all(&sent), far.read_exact(&mut came));
    assert!(put.is_ok() && got.is_ok() && came == sent);
    drop(near);
    assert_eq!(far.read(&mut came).await.unwrap(), 0, "the end comes through too");
    assert_eq!((network.broken(), network.carried()), (0, sent.len() as u64));
}

#[tokio::test]
async fn bytes_wait_for_those_before_them() {
    let now = Instant::now();
    let (end, second) = (Mutex::new(now), Duration::from_secs(1));
    assert_eq!(through(&end, now, 1000, 1e3), now + second);
    assert_eq!(through(&end, now, 2000, 1e3), now + 3 * second);
    assert_eq!(through(&end, now + 5 * second, 1000, 1e3), now + 6 * second, "nothing is saved up");
}

#[tokio::test]
async fn a_connection_breaks_when_its_time_has_come() {
    let quality = Quality { loss: 1.0, life: 10_000..10_001, ..Quality::far() };
    let (network, mut near, mut far) = connected(quality, 1).await;
    // However much of it can still be written.
    let _ = near.write_all(&[7; 100_000]).await;
    let mut came = Vec::new();
    assert!(far.read_to_end(&mut came).await.is_err() && came.len() <= 10_000);
    assert_eq!(network.broken(), 1);
}

#[tokio::test]
async fn nothing_comes_through_a_line_that_is_cut_until_it_heals() {
    let mut stalled = 0;
    for seed in 0..8 {
        let (network, mut near, mut far) = connected(Quality::far(), seed).await;
        network.line(1).cut();
        // It may be broken by now.
        let _ = near.write_all(b"hello").await;
        let mut came = [0; 5];
        match timeout(Duration::from_millis(200), far.read_exact(&mut came)).await {
            Ok(read) => assert!(read.is_err(), "it breaks, and nothing else"),
            Err(_) => {
                network.line(1).heal();
                assert!(far.read_exact(&mut came).await.is_ok() && &came == b"hello");
                stalled += 1;
            }
        }
    }
    assert!((1..8).contains(&stalled), "some break, some stall");
}
