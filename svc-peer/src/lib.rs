//! Merging between validators: local aggregation, an all-reduce that leaves all members with the
//! same bits, and the outer step that makes the next global model.
//!
//! One round is one task (`rounds` starts it, `task` goes through its stages). What it adds up becomes
//! encoded chunks in a file (`gradient`, `chunks`, `shelf`); the agreement is the pure machine of
//! [`merge`], which `merger` drives; what others ask is answered by `desk`, and they are asked by
//! `call`. The arithmetic (`reduction`, `step`) knows no network, and the messages ([`message`]) no
//! key: the hotkey is the chain service's.

mod call;
mod chunks;
mod conduct;
mod config;
mod desk;
mod discovery;
pub mod error;
#[cfg(test)]
mod fixture;
mod gradient;
mod guests;
mod keep;
mod lines;
mod merge_api;
mod merger;
mod merging;
pub mod message;
mod metrics;
mod model;
mod nonces;
mod part;
mod peer_api;
mod plan;
mod pushing;
mod reduction;
mod report;
mod residuals;
pub mod resync;
mod round;
mod rounds;
mod shelf;
mod signer;
mod spool;
mod step;
mod task;
#[cfg(test)]
mod testing;
mod transfer;
mod wire;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
pub use conduct::{Conduct, Honest};
pub use config::{Config, Optimizer, Reduction, Rule};
use kit::{Common, Fingerprint, GrpcServer, Health, Shutdown};
use proto::peer::{
    v1::{merge_service_server::MergeServiceServer, resync_service_server::ResyncServiceServer},
    v2::{model_service_server::ModelServiceServer, peer_service_server::PeerServiceServer},
};
use store::{Artifacts, Store};
use tonic::server::NamedService;
use tracing::{info, warn};

use crate::{
    desk::Desk,
    discovery::Discovery,
    merge_api::MergeHandler,
    nonces::Nonces,
    peer_api::PeerHandler,
    resync::{
        Resyncs,
        api::{ModelHandler, ResyncHandler},
        desk::ModelDesk,
        holdings::Holdings,
        line::Plumbing,
        roster::Rosters,
    },
    rounds::{Rounds, Tools},
    signer::Signer,
};

type Peers = PeerServiceServer<PeerHandler>;
type Models = ModelServiceServer<ModelHandler>;

/// Runs the service until `shutdown`.
pub async fn run(config: Config, common: Common, shutdown: Shutdown) -> anyhow::Result<()> {
    run_as(Arc::new(Honest), config, common, shutdown).await
}

/// As [`run`], with another conduct: for tests and demonstrations.
pub async fn run_as(
    conduct: Arc<dyn Conduct>,
    config: Config,
    common: Common,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let bound = Bound::bind(&config, &common).await?;
    serve(bound, conduct, config, common, shutdown).await
}

/// The service's listeners, bound and not serving yet: for tests that need to know the ports first.
#[derive(Debug)]
pub struct Bound {
    own: GrpcServer,
    peers: Option<GrpcServer>,
    certificate: Option<Fingerprint>,
}

impl Bound {
    /// Binds the listeners of `config`.
    pub async fn bind(config: &Config, common: &Common) -> anyhow::Result<Self> {
        let own = GrpcServer::bind(config.grpc_addr, &common.tls).await?;
        let (peers, certificate) = match config.peer_addr {
            // The certificates of `common.tls` are for the services of one validator: others are
            // known by their signatures.
            Some(addr) => {
                let (server, certificate) = peer_api::bind(config, addr).await?;
                (Some(server), certificate)
            }
            None => (None, None),
        };
        Ok(Self { own, peers, certificate })
    }

    /// Address for this validator's own services.
    pub fn grpc_addr(&self) -> std::net::SocketAddr {
        self.own.local_addr()
    }

    /// Address for other validators.
    pub fn peer_addr(&self) -> std::net::SocketAddr {
        self.peers.as_ref().unwrap_or(&self.own).local_addr()
    }
}

/// As [`run_as`], on listeners that are bound already.
pub async fn serve(
    bound: Bound,
    conduct: Arc<dyn Conduct>,
    config: Config,
    common: Common,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let artifacts = Artifacts::open(&common.artifacts_url, &common.data_dir.join("cache"))
        .context("open the artifact store")?;
    let store =
        Store::open(&common.store_url, &common.namespace).context("open the state store")?;
    let signer = Signer::new(kit::auth::channel(&common.chain_url, &common)?);
    let nonces = Nonces::new(store.clone(), rand::random);
    let plumbing = Plumbing {
        config: Arc::clone(&config),
        discovery: Discovery::new(config.discovery_timeout).context("make the HTTP client")?,
        signer: signer.clone(),
        nonces: nonces.clone(),
    };
    let folder = common.data_dir.join("peer");
    let rosters = Arc::new(Rosters::open(&folder));
    let (resyncs, models) = models(&plumbing, &artifacts, &rosters, &folder, &shutdown);
    let desk = Desk::new(signer.clone(), nonces.clone(), config.call_timeout, bound.certificate);
    let desk = Arc::new(desk);
    let rounds = Arc::new(Rounds::new(Tools {
        config: Arc::clone(&config),
        artifacts,
        store: store.clone(),
        signer: signer.clone(),
        nonces,
        discovery: plumbing.discovery,
        desk: Arc::clone(&desk),
        conduct,
        folder,
        shutdown: shutdown.clone(),
    }));

    let merges = MergeServiceServer::new(MergeHandler::new(rounds, rosters));
    let own = bound.own.named("svc-peer").reflect(proto::DESCRIPTOR).add(merges).add(resyncs);
    match bound.peers {
        Some(server) => {
            let server = server.named("svc-peer").reflect(proto::DESCRIPTOR);
            let server = peer_api::add(server, desk).add(models);
            watch_dependencies(signer, store, server.health(), &shutdown);
            let (own, peers) =
                tokio::join!(kit::serve(own, shutdown.clone()), kit::serve(server, shutdown));
            own.and(peers)
        }
        None => {
            if config.callable && !own.local_addr().ip().is_loopback() {
                warn!(
                    "other validators share the address of this validator's own services: set peer_addr"
                );
            }
            let own = peer_api::add(own, desk).add(models);
            watch_dependencies(signer, store, own.health(), &shutdown);
            kit::serve(own, shutdown).await
        }
    }
}

/// What gives models to other validators, and brings them from there.
fn models(
    plumbing: &Plumbing,
    artifacts: &Artifacts,
    rosters: &Arc<Rosters>,
    folder: &Path,
    shutdown: &Shutdown,
) -> (ResyncServiceServer<ResyncHandler>, Models) {
    let holdings = Holdings::start(artifacts.clone(), folder.join("holdings"), shutdown);
    let desk = ModelDesk::new(
        Arc::clone(rosters),
        holdings,
        plumbing.signer.clone(),
        plumbing.nonces.clone(),
        Arc::clone(&plumbing.config),
    );
    let resyncs = Resyncs::new(resync::Tools {
        plumbing: plumbing.clone(),
        artifacts: artifacts.clone(),
        rosters: Arc::clone(rosters),
        folder: folder.join("resync"),
        shutdown: shutdown.clone(),
    });
    let models = ModelServiceServer::new(ModelHandler::new(desk))
        .max_decoding_message_size(message::MAX_MESSAGE)
        .max_encoding_message_size(message::MAX_MESSAGE);
    (ResyncServiceServer::new(ResyncHandler::new(Arc::new(resyncs))), models)
}

/// Ready for other validators while the chain service signs and the store keeps nonces. A merge may
/// be started before: it retries until its deadline.
fn watch_dependencies(signer: Signer, store: Store, health: Health, shutdown: &Shutdown) {
    const EVERY: Duration = Duration::from_secs(5);
    let set = move |ready| {
        for service in [<Peers as NamedService>::NAME, <Models as NamedService>::NAME] {
            health.set(service, ready);
        }
    };
    set(false);
    let stop = shutdown.clone();
    shutdown.spawn(async move {
        let mut was = None;
        loop {
            let missing = if let Err(status) = signer.reach().await {
                Some(format!("the chain service does not answer: {}", status.message()))
            } else if let Err(error) = store.ping().await {
                Some(format!("the store does not answer: {error}"))
            } else {
                None
            };
            set(missing.is_none());
            if was != Some(missing.is_none()) {
                match &missing {
                    None => info!("ready for other validators"),
                    Some(missing) => warn!(missing, "not ready for other validators"),
                }
                was = Some(missing.is_none());
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = stop.cancelled() => break,
            }
        }
    });
}
