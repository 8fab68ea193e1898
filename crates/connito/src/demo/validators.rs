//! Validators of a demonstration: five services each, in this process or as processes of their own.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use kit::Shutdown;
use svc_peer::{Conduct, Honest};
use testkit::{Process, Running};
use tokio::task::JoinHandle;

use super::{
    liar::Liar,
    setup::{Player, Ports},
};
use crate::{Validator, ValidatorConfig};

/// A service, by name of its binary.
pub type Service = &'static str;

/// The five services of a validator.
pub const SERVICES: [Service; 5] =
    ["svc-chain", "svc-scheduler", "svc-evaluator", "svc-gateway", "svc-peer"];

/// How long a service may take to come up.
const START: Duration = Duration::from_secs(60);

/// One validator that runs.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) ports: Ports,
    config: PathBuf,
    binaries: PathBuf,
    running: Services,
    /// The peer service of one that lies, where the others are processes: their binary does not lie.
    liar: Option<Shutdown>,
}

#[derive(Debug)]
enum Services {
    Here { shutdown: Shutdown, task: Option<JoinHandle<anyhow::Result<()>>> },
    Processes(Vec<(Service, Option<Running>)>),
}

impl Host {
    /// Starts all services of `player` with its configuration file.
    pub(super) async fn start(
        player: &Player,
        ports: Ports,
        processes: bool,
        lies: bool,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Self> {
        let config = player.folder.join("connito.toml");
        let binaries = binaries()?;
        let conduct: Arc<dyn Conduct> =
            if lies { Arc::new(Liar::default()) } else { Arc::new(Honest) };
        let loaded = ValidatorConfig::load(Some(&config))?;
        let mut liar = None;
        let running = if processes {
            if lies {
                let own = shutdown.child();
                let run = svc_peer::run_as(conduct, loaded.peer, loaded.common, own.clone());
                shutdown.spawn(run);
                liar = Some(own);
            }
            Services::Processes(SERVICES.map(|service| (service, None)).into())
        } else {
            let own = shutdown.child();
            let task = shutdown.spawn(Validator::run_as(conduct, loaded, own.clone()));
            Services::Here { shutdown: own, task: Some(task) }
        };
        let mut host = Self { ports, config, binaries, running, liar };
        for service in SERVICES.into_iter().filter(|name| !(lies && *name == "svc-peer")) {
            host.start_service(service)?;
        }
        for port in host.ports.grpc.into_iter().chain([host.ports.http]) {
            let addr = ([127, 0, 0, 1], port).into();
            if let Err(error) = testkit::connects(addr, START).await {
                return Err(error.context(format!(
                    "{} did not come up{}",
                    player.name,
                    host.words()
                )));
            }
        }
        Ok(host)
    }

    /// Starts a service that does not run, where services are processes.
    pub(super) fn start_service(&mut self, service: Service) -> anyhow::Result<()> {
        let Services::Processes(processes) = &mut self.running else { return Ok(()) };
        let binary = self.binaries.join(service);
        anyhow::ensure!(
            binary.exists(),
            "{} is not built: cargo build --workspace --bins",
            binary.display()
        );
        let process = Process::new(&binary).arg("--config").arg(&self.config).spawn()?;
        if let Some(slot) = processes.iter_mut().find(|(name, _)| *name == service) {
            slot.1 = Some(process);
        }
        Ok(())
    }

    /// Kills a service as a crash would.
    pub(super) async fn kill_service(&mut self, service: Service) -> anyhow::Result<()> {
        let Services::Processes(processes) = &mut self.running else {
            anyhow::bail!("services that are no processes cannot be killed")
        };
        let slot = processes.iter_mut().find(|(name, _)| *name == service);
        let mut running = slot.and_then(|slot| slot.1.take()).context("it does not run")?;
        running.kill()?;
        running.ends(Duration::from_secs(10)).await?;
        Ok(())
    }

    /// Fails when a service has ended by itself.
    pub(super) async fn alive(&mut self) -> anyhow::Result<()> {
        match &mut self.running {
            Services::Here { task, shutdown } => {
                let ended = task.as_ref().is_some_and(JoinHandle::is_finished);
                if !ended || shutdown.is_cancelled() {
                    return Ok(());
                }
                let Some(task) = task.take() else { return Ok(()) };
                task.await.context("a validator panicked")?.context("a validator stopped")
            }
            Services::Processes(processes) => {
                for (service, running) in processes {
                    if let Some(process) = running
                        && process.id().is_none()
                    {
                        anyhow::bail!("{service} ended: {}", process.output());
                    }
                }
                Ok(())
            }
        }
    }

    /// What processes wrote last, for an error.
    fn words(&self) -> String {
        let Services::Processes(processes) = &self.running else { return String::new() };
        let mut text = String::new();
        for (service, running) in processes {
            let output = running.as_ref().map(Running::output).unwrap_or_default();
            let tail: Vec<&str> = output.lines().rev().take(3).collect();
            for line in tail.into_iter().rev() {
                text += &format!("\n  {service}: {line}");
            }
        }
        text
    }

    /// Stops everything and waits for it; what processes wrote goes into `logs`.
    pub(super) async fn stop(self, logs: PathBuf) {
        if let Some(liar) = &self.liar {
            liar.cancel();
        }
        match self.running {
            Services::Here { shutdown, task } => {
                shutdown.cancel();
                if let Some(task) = task {
                    // Its error was told by `alive`, or came of the stop.
                    let _ = tokio::time::timeout(Duration::from_secs(10), task).await;
                }
            }
            Services::Processes(processes) => {
                let _ = tokio::fs::create_dir_all(&logs).await;
                for (_, running) in &processes {
                    if let Some(process) = running {
                        let _ = process.terminate();
                    }
                }
                for (service, running) in processes {
                    let Some(mut process) = running else { continue };
                    if process.ends(Duration::from_secs(10)).await.is_err() {
                        tracing::warn!(service, "did not stop in time and is killed");
                    }
                    let path = logs.join(format!("{service}.log"));
                    let _ = tokio::fs::write(path, process.output()).await;
                }
            }
        }
    }
}

/// The folder of this program, where the services' binaries lie too. Tests run from `deps/`.
fn binaries() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("find this program")?;
    let folder = this.parent().context("this program has no folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    Ok(folder.to_owned())
}
