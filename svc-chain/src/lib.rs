//! The chain service: all chain I/O, and the only holder of the hotkey.
//!
//! Reads are made at one named block; writes go through the outbox, which carries each intent out
//! exactly once; signatures are given for named purposes only. `subxt` is not seen outside of this
//! crate.

mod axon;
mod blocks;
mod call;
mod chain;
mod config;
mod degradations;
mod error;
mod failure;
mod grpc;
mod keys;
mod metrics;
mod networks;
mod nodes;
mod outbox;
#[cfg(test)]
mod page;
mod payload;
mod preflight;
mod quorum;
mod read;
mod runtime;
mod selfcheck;
mod sign;
mod snapshots;
mod status;
mod submit;
mod wallet;
mod weights;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use domain::{NetUid, Schedule};
use kit::{Common, GrpcServer, Health, Shutdown, auth::Guard};
use proto::chain::v1::chain_service_server::{ChainServiceServer, SERVICE_NAME};
use store::Store;
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use crate::{
    blocks::Blocks,
    chain::Chain,
    degradations::Degradations,
    error::Error,
    grpc::Handler,
    nodes::{Nodes, Settings},
    outbox::{Outbox, Worker},
    quorum::Quorum,
    runtime::Runtime,
    sign::Signer,
    snapshots::Snapshots,
};
pub use crate::{
    config::{Config, ConfigError, Follow, OnDisagreement},
    keys::{SigningKey, verify},
    networks::Network,
    wallet::{WalletError, hotkey_file},
    weights::Preference,
};

/// Pauses between attempts to reach the chain grow from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Runs the service until `shutdown`.
///
/// # Errors
///
/// When the configuration means nothing, the wallet gives no key, the address is taken, or the
/// chain's runtime lacks what is used. A chain that cannot be reached is waited for.
pub async fn run(config: Config, common: Common, shutdown: Shutdown) -> anyhow::Result<()> {
    let store = Store::open(&common.store_url, &common.namespace).context("open the store")?;
    Service::start(config, &common, store, shutdown).await?.serve().await
}

/// Opens the wallet that the configuration names. An encrypted one takes seconds, and a person at the terminal
/// is asked for its password where none is configured: not for an async thread.
///
/// # Errors
///
/// When the wallet gives no key, or the password's file cannot be read.
pub fn open_wallet(config: &Config) -> anyhow::Result<SigningKey> {
    wallet::open(config, wallet::ask)
}

/// The service, bound and not serving yet.
#[derive(Debug)]
pub struct Service {
    server: GrpcServer,
    health: Health,
    config: Config,
    key: Arc<SigningKey>,
    store: Store,
    degradations: Degradations,
    runtime: Runtime,
    nodes: Nodes,
    archive: Option<Nodes>,
    blocks: Blocks,
    snapshots: Snapshots,
    outbox: Outbox,
    chain: watch::Sender<Option<Chain>>,
    shutdown: Shutdown,
}

impl Service {
    /// Opens the wallet and binds the server.
    ///
    /// # Errors
    ///
    /// As [`run`].
    pub async fn start(
        config: Config,
        common: &Common,
        store: Store,
        shutdown: Shutdown,
    ) -> anyhow::Result<Self> {
        config.check()?;
        let schedule = schedule(common)?;
        let key = Arc::new(open_wallet_apart(config.clone()).await?);
        info!(hotkey = %key.hotkey(), netuid = config.netuid, "holds the hotkey");
        let degradations = Degradations::default();
        let runtime = Runtime::new(degradations.clone());
        let (nodes, archive) = nodes(&config, &degradations)?;
        let blocks = Blocks::new(config.follow, degradations.clone());
        if config.quorum()? == 1 {
            warn!(
                "one endpoint's word decides: add another to `chain.endpoints`, of another provider"
            );
        }
        let quorum = Quorum::new(config.quorum()?, config.on_disagreement, degradations.clone());
        let snapshots = Snapshots::new(
            store.clone(),
            NetUid(config.netuid),
            config.keep_snapshots,
            schedule,
            quorum.clone(),
            blocks.clone(),
            degradations.clone(),
        );
        let outbox = Outbox::new(store.clone(), blocks.subscribe());
        let (chain, reached) = watch::channel(None);
        let handler = Handler {
            key: Arc::clone(&key),
            signer: Signer::new(Arc::clone(&key), &config),
            guard: Guard::open(common).context("tell callers from strangers")?,
            chain: reached,
            nodes: nodes.clone(),
            runtime: runtime.clone(),
            blocks: blocks.clone(),
            snapshots: snapshots.clone(),
            quorum,
            degradations: degradations.clone(),
            outbox: outbox.clone(),
            preference: config.commit_reveal,
            shutdown: shutdown.clone(),
        };
        let server = GrpcServer::bind(config.grpc_addr, &common.tls)
            .await?
            .named("svc-chain")
            .reflect(proto::DESCRIPTOR)
            .add(ChainServiceServer::new(handler));
        let health = server.health();
        health.set(SERVICE_NAME, false);
        Ok(Self {
            server,
            health,
            config,
            key,
            store,
            degradations,
            runtime,
            nodes,
            archive,
            blocks,
            snapshots,
            outbox,
            chain,
            shutdown,
        })
    }

    /// Address of the gRPC server.
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Serves until the shutdown; ready while the chain was reached and its runtime has all that is
    /// used.
    ///
    /// # Errors
    ///
    /// As [`run`].
    pub async fn serve(self) -> anyhow::Result<()> {
        let Self { server, health, config, key, store, degradations, runtime, .. } = self;
        let Self { nodes, archive, blocks, snapshots, outbox, chain, shutdown, .. } = self;
        shutdown.spawn(degradations.clone().keep(store, shutdown.clone()));
        let work = async {
            let reached = connect(&config, &nodes, archive, &runtime, &shutdown).await?;
            let Some(reached) = reached else { return Ok(()) };
            info!(genesis = %reached.genesis(), "the chain's runtime has all that is used");
            shutdown.spawn(nodes.monitor(shutdown.clone()));
            for finality in [Follow::Best, Follow::Finalized] {
                let (chain, stall) = (reached.clone(), config.stall_timeout);
                shutdown.spawn(blocks.clone().follow(chain, finality, stall, shutdown.clone()));
            }
            shutdown.spawn(snapshots.run(reached.clone(), shutdown.clone()));
            let worker =
                Worker::new(&outbox, reached.clone(), Arc::clone(&key), degradations, &config);
            shutdown.spawn(worker.run(shutdown.clone()));
            chain.send_replace(Some(reached.clone()));
            let mut newest = blocks.subscribe();
            let first = async { newest.wait_for(Option::is_some).await.is_ok() };
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                seen = first => health.set(SERVICE_NAME, seen),
            }
            let watched = runtime.clone().follow(reached.clone(), health, shutdown.clone());
            shutdown.spawn(watched);
            if let Some(axon) = config.axon {
                let (hotkey, stop) = (key.hotkey().clone(), shutdown.clone());
                let keep = axon::keep(axon, hotkey, reached, outbox, newest, stop);
                shutdown.spawn(keep);
            }
            shutdown.cancelled().await;
            anyhow::Ok(())
        };
        tokio::select! {
            served = kit::serve(server, shutdown.clone()) => served,
            Err(error) = work => Err(error),
        }
    }
}

/// The lengths of the phases, of which snapshots are taken.
fn schedule(common: &Common) -> anyhow::Result<Schedule> {
    let lengths: [u64; 9] = common.phases.as_slice().try_into().map_err(|_| {
        anyhow::anyhow!("`common.phases` must be nine lengths, not {}", common.phases.len())
    })?;
    Schedule::new(lengths).context("`common.phases`")
}

/// The endpoints, and those that keep every past state.
fn nodes(
    config: &Config,
    degradations: &Degradations,
) -> Result<(Nodes, Option<Nodes>), ConfigError> {
    let genesis = Nodes::genesis_of(config.genesis()?);
    let settings = Settings {
        request_timeout: config.request_timeout,
        probe_interval: config.probe_interval,
        max_lag: config.max_lag,
        archive: false,
    };
    let new =
        |urls, settings| Nodes::new(urls, Arc::clone(&genesis), settings, degradations.clone());
    let archive = config.archive_urls()?;
    let archive =
        (!archive.is_empty()).then(|| new(archive, Settings { archive: true, ..settings }));
    Ok((new(config.urls()?, settings), archive))
}

/// Reaches the chain, however long that takes; `None` when told to stop before.
async fn connect(
    config: &Config,
    nodes: &Nodes,
    archive: Option<Nodes>,
    runtime: &Runtime,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<Chain>> {
    let mut backoff = BACKOFF.0;
    loop {
        let connect = Chain::connect(config, nodes.clone(), archive.clone(), runtime.clone());
        let connected = tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            connected = connect => connected,
        };
        match connected {
            Ok(chain) => return Ok(Some(chain)),
            Err(error @ (Error::Runtime { .. } | Error::WrongChain(_))) => return Err(error.into()),
            Err(error) => warn!(%error, pause = ?backoff, "the chain is not reached, trying again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = sleep(backoff) => {}
        }
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// The same away from the async threads.
async fn open_wallet_apart(config: Config) -> anyhow::Result<SigningKey> {
    tokio::task::spawn_blocking(move || open_wallet(&config)).await.context("open the wallet")?
}
