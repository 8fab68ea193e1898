//! The HTTP door for miners: it serves the slices of the global model, takes uploads during the
//! Submission phase, and answers the phase API (protocol, sections 2 and 8).
//!
//! The gateway follows the scheduler's view of the round and keeps no state of its own: what it takes
//! lies in the artifact store, what it marks lies in the store, so that any number of gateways may run.
//! An upload becomes one complete, verified submission, or leaves nothing.

mod admit;
mod app;
mod arriving;
mod auth;
mod blocks;
mod config;
mod download;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod grpc;
mod http;
mod hub;
mod intake;
mod limits;
mod marks;
mod metrics;
mod multipart;
mod openapi;
mod outgoing;
mod pace;
mod phase;
mod places;
mod range;
mod receipt;
mod refusals;
mod report;
mod round_robin;
mod routes;
mod signed;
mod sound;
mod source;
mod spool;
mod status;
mod submission;
mod turn;
mod tus;
mod upload;
mod view;
mod wanted;
mod watch;
mod wire;

use std::{fs, net::SocketAddr};

use anyhow::Context as _;
pub use config::{Config, RemoteDownloads};
pub use hub::HubConfig;
use kit::{Common, GrpcServer, Shutdown};
pub use openapi::document as openapi;
use proto::gateway::v1::gateway_service_server::GatewayServiceServer;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use store::{Artifacts, Store};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch as latest},
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use crate::{
    app::{App, Count, Inner, Slots},
    arriving::Arriving,
    hub::Puller,
    limits::Limits,
    receipt::Past,
    report::Reporter,
    sound::Sound,
    spool::{Budget, Spool},
    tus::{Keeper, Parts, Table},
    view::Latest,
    watch::Watcher,
};

/// Where the system names the present run of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Runs the service until `shutdown`.
///
/// # Errors
///
/// As [`Gateway::bind`] and [`Gateway::serve`].
pub async fn run(config: Config, common: Common, shutdown: Shutdown) -> anyhow::Result<()> {
    allow_connections();
    Gateway::bind(config, common).await?.serve(shutdown).await
}

/// A gateway that has its addresses and serves nobody yet.
#[derive(Debug)]
pub struct Gateway {
    config: Config,
    common: Common,
    http: TcpListener,
    http_addr: SocketAddr,
    grpc: GrpcServer,
}

impl Gateway {
    /// Takes the addresses of the configuration; port 0 takes free ones.
    ///
    /// # Errors
    ///
    /// When an address is taken, or a file of TLS can't be read.
    pub async fn bind(config: Config, common: Common) -> anyhow::Result<Self> {
        let addr = config.http_addr;
        let http = TcpListener::bind(addr)
            .await
            .with_context(|| format!("bind the HTTP server to {addr}"))?;
        let http_addr = http.local_addr().context("read the HTTP server's address")?;
        let grpc = GrpcServer::bind(config.grpc_addr, &common.tls).await?.named("svc-gateway");
        Ok(Self { config, common, http, http_addr, grpc })
    }

    /// Address of the HTTP server.
    #[must_use]
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Address of the gRPC server.
    #[must_use]
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc.local_addr()
    }

    /// Serves until `shutdown`. Uploads in flight go on as its tasks, for the grace that it gives them.
    ///
    /// # Errors
    ///
    /// When the store, the artifacts or the spool can't be opened, or the gRPC server fails.
    pub async fn serve(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self { config, common, http, http_addr, grpc } = self;
        let spool = Spool::open(&common.data_dir.join("spool"), Budget::of(&config))
            .context("open the spool")?;
        let boot = fs::read_to_string(BOOT_ID).context("read the id of the machine's run")?;
        let folder = common.data_dir.join("parts");
        let (parts, unfinished) =
            Parts::open(&folder, boot.trim()).context("open the folder of unfinished uploads")?;
        let (table, asks) = Table::new(config.max_uploads);
        let store = Store::open(&common.store_url, &common.namespace).context("open the store")?;
        let cache = common.data_dir.join("cache");
        let artifacts =
            Artifacts::open(&common.artifacts_url, &cache).context("open the artifact store")?;
        let scheduler = grpc::Scheduler::new(kit::channel(&common.scheduler_url, &common.tls)?);
        let (newest, latest) = latest::channel(None);

        let app = App::new(Inner {
            latest: Latest::new(latest, config.max_view_age),
            limits: Limits::new(&config),
            arriving: Arriving::default(),
            past: Past::default(),
            uploads: Slots::new(config.max_uploads),
            downloads: Slots::new(config.max_downloads),
            verifications: Semaphore::new(config.max_verifications.max(1)),
            stored: Count::default(),
            refused: Count::default(),
            sound: Sound::new(shutdown.clone()),
            shutdown: shutdown.clone(),
            store,
            artifacts,
            scheduler,
            spool,
            parts,
            tus: table,
            config,
        });
        let handler = grpc::Handler { app: app.clone(), http_addr };
        let grpc = grpc.reflect(proto::DESCRIPTOR).add(GatewayServiceServer::new(handler));
        // Ready once the first view is there.
        let health = grpc.health();
        health.set(grpc::SERVICE, false);

        let watcher = Watcher {
            scheduler: app.scheduler.clone(),
            artifacts: app.artifacts.clone(),
            newest,
            health,
            max_age: app.config.max_view_age,
        };
        shutdown.spawn(watcher.run(shutdown.clone()));
        shutdown.spawn(Reporter::new(&app).run(shutdown.clone()));
        if let Some(puller) = Puller::new(&app).context("open the hub")? {
            shutdown.spawn(puller.run(shutdown.clone()));
        }
        let telling = app.arriving.clone().tell(app.store.clone(), shutdown.clone());
        shutdown.spawn(telling);
        shutdown.spawn(forget(app.clone(), shutdown.clone()));
        shutdown.spawn(Keeper::new(app.clone(), asks, unfinished).run());

        info!(addr = %http_addr, "HTTP server listens");
        let router = routes::router(app.clone());
        let serving = async {
            http::serve(http, router, &app.config, &shutdown).await;
            anyhow::Ok(())
        };
        tokio::try_join!(kit::serve(grpc, shutdown.clone()), serving)?;
        Ok(())
    }
}

/// Takes as many file descriptors as the system gives this process: every connection needs one, and the usual soft
/// limit is below `max_connections`.
fn allow_connections() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        warn!(%error, ?current, "the limit on open files could not be raised");
    }
}

/// Lets the limits on rate forget who has not been seen for long.
async fn forget(app: App, shutdown: Shutdown) {
    let mut ticks = interval(Limits::FORGET_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => app.limits.forget(),
            () = shutdown.cancelled() => return,
        }
    }
}
