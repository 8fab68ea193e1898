//! A program of ours, started as its user would.

use std::{
    ffi::OsStr,
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    time::{sleep, timeout},
};

use crate::connects;

/// A program to start: its path, arguments and environment.
///
/// It gets this process's environment but for `CONNITO_*`, which would change what it does.
#[derive(Debug)]
pub struct Process {
    command: Command,
    name: String,
}

impl Process {
    /// Names the program, as in `env!("CARGO_BIN_EXE_svc-chain")`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CONNITO_") {
                command.env_remove(name);
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Self { command, name: program.to_string_lossy().into_owned() }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the folder that it runs in.
    #[must_use]
    pub fn current_dir(mut self, path: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Starts it. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// When it can't be started.
    pub fn spawn(mut self) -> anyhow::Result<Running> {
        let mut child = self.command.spawn().with_context(|| format!("start {}", self.name))?;
        let output = Arc::new(watch::Sender::new(String::new()));
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(collect(stdout, Arc::clone(&output)));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(collect(stderr, Arc::clone(&output)));
        }
        Ok(Running { child, name: self.name, output })
    }
}

/// Appends lines to `output` until the program closes its end.
async fn collect(from: impl AsyncRead + Unpin, output: Arc<watch::Sender<String>>) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
        output.send_modify(|text| text.push_str(&String::from_utf8_lossy(&line)));
        line.clear();
    }
}

/// A program that runs. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
    output: Arc<watch::Sender<String>>,
}

impl Running {
    /// Returns the process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Returns what it has written so far to standard output and error, lines interleaved.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.borrow().clone()
    }

    /// Waits until it listens on `addr`.
    ///
    /// # Errors
    ///
    /// When it ended, or does not listen after `within`; with its output.
    pub async fn listens(&mut self, addr: SocketAddr, within: Duration) -> anyhow::Result<()> {
        let result = tokio::select! {
            result = connects(addr, within) => result,
            status = self.child.wait() => Err(anyhow::anyhow!("it ended: {:?}", status)),
        };
        result.with_context(|| self.report())
    }

    /// Waits until a line of its output contains `text`, and returns the line.
    ///
    /// # Errors
    ///
    /// When it ended without, or has written no such line after `within`; with its output.
    pub async fn says(&mut self, text: &str, within: Duration) -> anyhow::Result<String> {
        let found = |output: &String| {
            output.lines().find(|line| line.contains(text)).map(ToOwned::to_owned)
        };
        let mut changes = self.output.subscribe();
        let said = async {
            let output = changes.wait_for(|output| found(output).is_some()).await?;
            found(&output).context("the line was there")
        };
        let ended = async {
            let status = self.child.wait().await;
            // Its last lines may still be on their way.
            sleep(Duration::from_millis(500)).await;
            bail!("it ended: {status:?}")
        };
        let result = tokio::select! {
            result = said => result,
            result = ended => result,
            () = sleep(within) => Err(anyhow::anyhow!("not after {within:?}")),
        };
        result.with_context(|| format!("wait for `{text}`; {}", self.report()))
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends SIGINT, as Ctrl-C does.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        self.signal(Signal::INT)
    }

    /// Sends SIGKILL: it gets no chance to clean up.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Stops it from running, as an overloaded host would, until [`Self::thaw`].
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it run again.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Waits until it ends.
    ///
    /// # Errors
    ///
    /// When it still runs after `within`; with its output.
    pub async fn ends(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        match timeout(within, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("it still runs after {within:?}; {}", self.report()),
        }
    }

    /// Sends SIGTERM and waits until it ends: what every service must do with status 0.
    ///
    /// # Errors
    ///
    /// When it is gone, still runs after `within`, or ends with another status; with its output.
    pub async fn stops_cleanly(mut self, within: Duration) -> anyhow::Result<()> {
        self.terminate()?;
        let status = self.ends(within).await?;
        if !status.success() {
            bail!("it ended with {status}; {}", self.report());
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self.child.id().with_context(|| format!("it is gone; {}", self.report()))?;
        let id = Pid::from_raw(i32::try_from(id)?).context("process id")?;
        kill_process(id, signal).with_context(|| format!("signal {}", self.name))
    }

    fn report(&self) -> String {
        format!("{} wrote:\n{}", self.name, self.output.borrow().as_str())
    }
}
