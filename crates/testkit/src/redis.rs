//! A Redis of the test's own.

use std::{
    io::ErrorKind,
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{TempDir, free_port, tempdir};

const READY: Duration = Duration::from_secs(10);

/// A `redis-server` on loopback, which keeps its data over [`Self::kill`] and [`Self::revive`].
#[derive(Debug)]
pub struct RedisServer {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl RedisServer {
    /// Starts one on a free port, and waits until it answers.
    ///
    /// # Errors
    ///
    /// When `redis-server` is not installed, or does not come up.
    pub async fn start() -> anyhow::Result<Self> {
        let folder = tempdir()?;
        let mut last = None;
        // The port may be taken by another test between the choice and the start.
        for _ in 0..5 {
            let port = free_port()?;
            let mut child = spawn(port, &folder)?;
            match ready(&mut child, port).await {
                Ok(()) => return Ok(Self { child, port, folder }),
                Err(error) => {
                    stop(&mut child);
                    last = Some(error);
                }
            }
        }
        Err(last.context("no port was tried")?)
    }

    /// Returns the URL for the store: database 0.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Returns the port that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it, as a crash would. Connections are closed at once.
    pub fn kill(&mut self) {
        stop(&mut self.child);
    }

    /// Starts it again after [`Self::kill`], on the same port with the data that it had.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub async fn revive(&mut self) -> anyhow::Result<()> {
        stop(&mut self.child);
        self.child = spawn(self.port, &self.folder)?;
        ready(&mut self.child, self.port).await
    }

    /// Stops it from answering, while its connections stay open: as a partition would.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it answer again after [`Self::freeze`].
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = i32::try_from(self.child.id()).context("process id")?;
        kill_process(Pid::from_raw(id).context("process id")?, signal).context("signal redis")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// Kills and reaps. A process that is gone already is what was wanted.
fn stop(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn spawn(port: u16, folder: &TempDir) -> anyhow::Result<Child> {
    Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""])
        .args(["--appendonly", "yes", "--appendfsync", "no", "--loglevel", "warning", "--dir"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                anyhow::anyhow!(
                    "redis-server is not installed, and this test needs it: `make setup` installs it"
                )
            } else {
                anyhow::Error::new(error).context("start redis-server")
            }
        })
}

/// Waits until `child`, and not some other server on this port, answers.
async fn ready(child: &mut Child, port: u16) -> anyhow::Result<()> {
    let end = Instant::now() + READY;
    let own = format!("process_id:{}\r\n", child.id());
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("redis-server on port {port} ended: {status}");
        }
        if timeout(Duration::from_secs(1), info(port)).await.is_ok_and(|text| {
            text.is_ok_and(|text| text.contains(&own) && text.contains("\nloading:0"))
        }) {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("redis-server on port {port} does not answer after {READY:?}");
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn info(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.write_all(b"INFO server persistence\r\nQUIT\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}
