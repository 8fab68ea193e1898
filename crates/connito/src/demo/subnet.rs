//! The subnet that runs: chain, validators, miners, and everything that is heard of them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use checkpoint::Format;
use devchain::{DevChain, Genesis, GenesisNeuron, Production};
use domain::{ExpertGroup, GlobalVersion};
use kit::{Shutdown, Tls};
use model::{Device, train::TrainOptions};
use proto::{
    chain::v1::chain_service_client::ChainServiceClient,
    scheduler::v1::{
        RoundView, WatchRoundRequest, scheduler_service_client::SchedulerServiceClient,
    },
};
use store::Artifacts;
use svc_chain::SigningKey;
use testkit::RedisServer;
use tokio::{sync::mpsc, time::Interval};

use super::{
    setup::{self, NETUID, Plan, Player, Ports},
    validators::{Host, Service},
    watch::{News, Watcher},
};
use crate::{
    miner::{self, MinerConfig, Said, Voice},
    models,
};

/// What is heard while a subnet runs.
#[derive(Debug)]
pub enum Watched {
    /// A miner said something.
    Said(Said),
    /// A validator's state has changed: its place in the list, and the state.
    View(usize, Box<RoundView>),
}

/// Things heard that may wait to be shown; views wait for their turn.
const HEARD: usize = 1024;

/// Stake of a validator: 1,000 units in rao.
const STAKE: u64 = 1_000_000_000_000;

/// A running subnet.
pub struct Subnet {
    /// The development chain.
    pub chain: DevChain,
    plan: Plan,
    hosts: Vec<Host>,
    redis: Option<RedisServer>,
    heard: mpsc::Receiver<Watched>,
    tell: mpsc::Sender<Watched>,
    shutdown: Shutdown,
    watchers: Vec<Watcher>,
    miners: Shutdown,
    /// When it is looked whether every validator still runs, however much there is to hear.
    rounds: Interval,
}

impl std::fmt::Debug for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subnet").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl Subnet {
    /// Starts chain, validators and miners.
    pub async fn start(plan: Plan, shutdown: Shutdown) -> anyhow::Result<Self> {
        let writing = plan.clone();
        tokio::task::spawn_blocking(move || setup::write(&writing))
            .await
            .context("the setup panicked")??;
        let redis = match plan.processes {
            true => Some(RedisServer::start().await?),
            false => None,
        };
        let there = plan.validators.len() - usize::from(plan.late);
        for player in plan.validators.iter().take(there) {
            import(&plan, player).await?;
        }
        let chain = start_chain(&plan).await?;

        let (tell, heard) = mpsc::channel(HEARD);
        let (said, mut saying) = mpsc::channel(HEARD);
        let forward = tell.clone();
        shutdown.spawn(async move {
            while let Some(said) = saying.recv().await {
                if forward.send(Watched::Said(said)).await.is_err() {
                    return;
                }
            }
        });
        let watchers = plan.validators.iter().map(|_| Watcher::default()).collect();
        let rounds = tokio::time::interval(Duration::from_secs(1));
        let (hosts, miners) = (Vec::new(), shutdown.child());
        let mut subnet =
            Self { chain, plan, hosts, redis, heard, tell, shutdown, watchers, miners, rounds };
        for _ in 0..there {
            subnet.join().await?;
        }
        let Self { plan, chain, miners, .. } = &subnet;
        for (n, player) in plan.miners.iter().enumerate() {
            start_miner(plan, n, player, &chain.url(), said.clone(), miners).await?;
        }
        Ok(subnet)
    }

    /// Starts the next validator.
    pub async fn join(&mut self) -> anyhow::Result<()> {
        let (n, plan) = (self.hosts.len(), &self.plan);
        let player = plan.validators.get(n).context("everybody is there")?;
        let ports = Ports::free()?;
        let store = match &self.redis {
            Some(redis) => redis.url(),
            None => format!("memory://{}", player.folder.display()),
        };
        let config = setup::validator_config(plan, player, &ports, &self.chain.url(), &store);
        tokio::fs::write(player.folder.join("connito.toml"), config).await?;
        let lies = plan.liar == Some(n);
        let host = Host::start(player, ports, plan.processes, lies, &self.shutdown).await?;
        let url = host.ports.scheduler();
        self.shutdown.spawn(watch(n, url, self.tell.clone(), self.shutdown.child()));
        self.hosts.push(host);
        Ok(())
    }

    /// The next thing heard. An error when a validator has ended.
    pub async fn listen(&mut self) -> anyhow::Result<Watched> {
        loop {
            tokio::select! {
                heard = self.heard.recv() => return heard.context("nobody is left to hear"),
                _ = self.rounds.tick() => {}
            }
            for host in &mut self.hosts {
                host.alive().await?;
            }
        }
    }

    /// What is new in a validator's state.
    pub fn take_in(&mut self, validator: usize, view: &RoundView) -> News {
        self.watchers
            .get_mut(validator)
            .map(|watcher| watcher.take_in(validator, view))
            .unwrap_or_default()
    }

    /// URL of a validator's gateway.
    pub fn gateway(&self, validator: usize) -> String {
        self.hosts[validator].ports.gateway()
    }

    /// URL of a validator's scheduler.
    pub fn scheduler(&self, validator: usize) -> String {
        self.hosts[validator].ports.scheduler()
    }

    /// Every port that a validator listens on.
    pub fn ports(&self, validator: usize) -> Ports {
        self.hosts[validator].ports
    }

    /// Kills a service of a validator as a crash would (`--processes`).
    pub async fn kill(&mut self, validator: usize, service: Service) -> anyhow::Result<()> {
        self.hosts[validator].kill_service(service).await
    }

    /// Starts a killed service again.
    pub fn restart(&mut self, validator: usize, service: Service) -> anyhow::Result<()> {
        self.hosts[validator].start_service(service)
    }

    /// Stops everything.
    pub async fn stop(self) {
        self.miners.drain(Duration::from_secs(10)).await;
        for (host, player) in self.hosts.into_iter().zip(&self.plan.validators) {
            host.stop(player.folder.join("logs")).await;
        }
        self.chain.stop().await;
        drop(self.redis);
    }
}

/// Publishes the random model in a validator's artifact store.
async fn import(plan: &Plan, player: &Player) -> anyhow::Result<()> {
    let url = format!("file:{}/artifacts", player.folder.display());
    let artifacts = Artifacts::open(&url, &player.folder.join("data/cache"))?;
    let groups = models::read_groups(&plan.groups())?;
    let first = GlobalVersion(0);
    models::import(&artifacts, &plan.model(), groups, ExpertGroup(0), first).await?;
    Ok(())
}

async fn start_chain(plan: &Plan) -> anyhow::Result<DevChain> {
    // Validators announce their address themselves.
    let validator = |player: &Player| GenesisNeuron::validator(*player.hotkey.public_key(), STAKE);
    let validators = plan.validators.iter().map(validator);
    // A checkpoint without an address is not usable (protocol, section 4): miners announce one.
    let miners = plan.miners.iter().map(|player| GenesisNeuron {
        axon: Some(SocketAddr::from(([127, 0, 0, 1], 9000 + player.uid))),
        ..GenesisNeuron::miner(*player.hotkey.public_key())
    });
    let genesis = Genesis {
        netuid: NETUID,
        neurons: validators.chain(miners).collect(),
        production: Production::Interval(plan.block_time),
        allow_loopback_axons: true,
        seed: plan.seed_of("chain").0,
        ..Genesis::default()
    };
    Ok(DevChain::start(genesis, SocketAddr::from(([127, 0, 0, 1], 0))).await?)
}

/// Starts a miner with a chain service of its own.
async fn start_miner(
    plan: &Plan,
    n: usize,
    player: &Player,
    chain: &str,
    said: mpsc::Sender<Said>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let port = testkit::free_port()?;
    let path = player.folder.join("connito.toml");
    tokio::fs::write(&path, setup::miner_config(plan, player, port, chain)).await?;
    let common: kit::Common = kit::config::load(Some(&path), "common")?;
    let config: svc_chain::Config = kit::config::load(Some(&path), "chain")?;
    let channel = kit::auth::channel(&format!("http://127.0.0.1:{port}"), &common)?;
    shutdown.spawn(svc_chain::run(config, common, shutdown.child()));
    testkit::connects(([127, 0, 0, 1], port).into(), Duration::from_secs(30)).await?;

    let steps = TrainOptions::default().steps as f64 * plan.effort(n);
    let config = MinerConfig {
        behaviour: plan.behaviours[n],
        key: Arc::new(SigningKey::new(player.key.as_ref().clone())),
        folder: player.folder.join("work"),
        model: plan.model(),
        group: plan.group(0),
        corpus: plan.corpus().join("train"),
        options: TrainOptions { steps: (steps as usize).max(1), ..TrainOptions::default() },
        seed: plan.seed_of(&player.name),
        device: Device::Cpu,
        format: if n.is_multiple_of(2) { Format::Pt } else { Format::Safetensors },
        loot: plan.folder.join("loot"),
        poll: (plan.block_time / 2).max(Duration::from_millis(50)),
    };
    let client = ChainServiceClient::new(channel);
    let voice = Voice { miner: n, listener: Some(said) };
    let own = shutdown.child();
    shutdown.spawn(async move {
        if let Err(error) = miner::run(config, client, voice, own).await {
            tracing::error!(miner = n, error = format!("{error:#}"), "a miner stopped");
        }
    });
    Ok(())
}

/// Hands on every state of a validator, across restarts of its scheduler.
async fn watch(n: usize, url: String, tell: mpsc::Sender<Watched>, shutdown: Shutdown) {
    while !shutdown.is_cancelled() {
        let watching = async {
            let channel = kit::channel(&url, &Tls::default())?;
            let mut client =
                SchedulerServiceClient::new(channel).max_decoding_message_size(64 << 20);
            let mut views = client.watch_round(WatchRoundRequest {}).await?.into_inner();
            while let Some(view) = views.message().await? {
                if tell.send(Watched::View(n, Box::new(view))).await.is_err() {
                    break;
                }
            }
            anyhow::Ok(())
        };
        tokio::select! {
            result = watching => if let Err(error) = result {
                tracing::debug!(validator = n, error = format!("{error:#}"), "no view");
            },
            () = shutdown.cancelled() => return,
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
