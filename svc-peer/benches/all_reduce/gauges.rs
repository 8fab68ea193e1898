//! What things are compared with: memory before, copying, and a plain connection.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// Memory of this process, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Resident {
    pub(crate) all: f64,
    pub(crate) files: f64,
}

impl Resident {
    fn now() -> anyhow::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| -> anyhow::Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().split(' ').next()).context("a field")?;
            Ok(kib.parse::<f64>()? * 1024.0)
        };
        Ok(Self { all: field("VmRSS:")?, files: field("RssFile:")? })
    }

    /// Where there was most.
    fn max(self, other: Self) -> Self {
        if other.all > self.all { other } else { self }
    }
}

/// Watches the memory of this process.
pub(crate) struct Memory {
    before: Resident,
    stop: watch::Sender<bool>,
    watching: tokio::task::JoinHandle<anyhow::Result<Resident>>,
}

impl Memory {
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let before = Resident::now()?;
        let (stop, stopped) = watch::channel(false);
        let watching = kit::Shutdown::default().spawn(async move {
            let mut most = before;
            while !*stopped.borrow() {
                most = most.max(Resident::now()?);
                sleep(Duration::from_millis(10)).await;
            }
            Ok(most)
        });
        Ok(Self { before, stop, watching })
    }

    /// What there was at most above what was there before.
    pub(crate) async fn stop(self) -> anyhow::Result<Resident> {
        self.stop.send_replace(true);
        let most = self.watching.await??;
        Ok(Resident { all: most.all - self.before.all, files: most.files - self.before.files })
    }
}

/// Seconds to copy as many bytes in memory with one thread.
pub(crate) fn copied(bytes: u64) -> f64 {
    let from = vec![7_u8; 64 << 20];
    let mut to = vec![1_u8; from.len()];
    let begin = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let some = left.min(from.len() as u64);
        to[..some as usize].copy_from_slice(&from[..some as usize]);
        std::hint::black_box(&mut to);
        left -= some;
    }
    begin.elapsed().as_secs_f64()
}

/// Seconds to send as many bytes over one connection on loopback.
pub(crate) fn through_tcp(bytes: u64) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let block = vec![7_u8; 1 << 20];
            let mut left = bytes;
            while left > 0 {
                let some = left.min(block.len() as u64);
                near.write_all(&block[..some as usize]).unwrap();
                left -= some;
            }
        });
        let mut block = vec![0_u8; 1 << 20];
        let mut came = 0;
        while let some @ 1.. = far.read(&mut block)? {
            came += some as u64;
        }
        ensure!(came == bytes, "{came} of {bytes} bytes came");
        Ok(begin.elapsed().as_secs_f64())
    })
}
