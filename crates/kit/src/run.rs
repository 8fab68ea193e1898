//! The life of a process: started, serving, told to stop, drained, flushed.

use std::{future::Future, io::Write as _, net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use clap::Parser;
use confique::Config;
use tracing::info;

use crate::{Cli, Common, Shutdown, admin, telemetry};

/// The whole of a service's `main`: parses the command line, loads `[common]` and `[section]`,
/// and runs `service`.
///
/// # Errors
///
/// When the configuration is refused, or the service fails.
pub fn main<C, F, Fut>(
    name: &'static str,
    section: &str,
    admin_addr: fn(&C) -> Option<SocketAddr>,
    service: F,
) -> anyhow::Result<()>
where
    C: Config,
    F: FnOnce(C, Common, Shutdown) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    #[derive(Parser)]
    #[command(version)]
    struct Arguments {
        #[command(flatten)]
        cli: Cli,
    }

    let cli = Arguments::parse().cli;
    if cli.print_config_template {
        return std::io::stdout()
            .write_all(Cli::template::<C>(section).as_bytes())
            .context("print the template");
    }
    let (config, common) = cli.load::<C>(section)?;
    let admin_addr = admin_addr(&config);
    let for_service = common.clone();
    run(name, &common, admin_addr, |shutdown| service(config, for_service, shutdown))
}

/// Runs `service` until it ends or the process is told to stop by SIGINT or SIGTERM.
///
/// It gets the shutdown handle and must return once that is cancelled, within the configured
/// grace; tasks that it spawned through the handle share that time. Installs telemetry, and serves
/// `/healthz`, `/readyz` and `/metrics` on `admin_addr`.
///
/// # Errors
///
/// Those of `service`; when it does not stop in time; when telemetry or the admin server can't be
/// started.
pub fn run<F, Fut>(
    name: &'static str,
    common: &Common,
    admin_addr: Option<SocketAddr>,
    service: F,
) -> anyhow::Result<()>
where
    F: FnOnce(Shutdown) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    install_crypto();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("build the runtime")?;

    let result = runtime.block_on(async {
        let telemetry = telemetry::install(name, common).context("install telemetry")?;
        let shutdown = Shutdown::on_signal().context("listen for signals")?;
        let admin_stop = Shutdown::default();
        if let Some(addr) = admin_addr {
            admin::spawn(addr, telemetry.metrics(), &shutdown, &admin_stop).await?;
        }
        telemetry.spawn_upkeep(&shutdown);
        info!(service = name, version = env!("CARGO_PKG_VERSION"), "started");

        let result = until_stopped(service(shutdown.clone()), &shutdown, common.shutdown_grace);
        let result = result.await;

        // The admin server outlives the drain: a process that is stopping is still alive.
        shutdown.drain(common.shutdown_grace).await;
        admin_stop.drain(Duration::from_secs(1)).await;
        info!(service = name, "stopped");
        telemetry.flush().await;
        result
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Waits for `service`, and once a stop was asked for, at most `grace`.
async fn until_stopped(
    service: impl Future<Output = anyhow::Result<()>>,
    shutdown: &Shutdown,
    grace: Duration,
) -> anyhow::Result<()> {
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        result = service => result,
        () = overdue => bail!("the service did not stop within {grace:?}"),
    }
}

/// Chooses the TLS provider of the process; two meet in the dependency tree.
///
/// [`run`] and [`crate::GrpcServer::bind`] do it; for commands and tests that use TLS otherwise.
/// The first choice stays, so it may be called often.
pub fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
