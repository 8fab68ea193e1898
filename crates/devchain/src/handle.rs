//! A running chain, as tests and the demo hold it.

mod knobs;

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use scale_value::Value;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

pub use self::knobs::UpgradeError;
use crate::{
    balance,
    block::Head,
    chain::{Chain, Included, StateError},
    devnode::DevNode,
    dispatch::{self, Commitment},
    epoch,
    faults::{Faults, Outlook},
    genesis::{self, Genesis, GenesisNeuron, MAX_NEURONS, Production},
    node::{Node, Stopped},
    runtime::MetadataError,
    server,
    state::{State, number},
    subnet::{self, SUBTENSOR},
};

/// The shortest block time.
pub const MIN_BLOCK_TIME: Duration = Duration::from_millis(50);

/// The chain does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("a block time of {0:?} is below {MIN_BLOCK_TIME:?}")]
    BlockTime(Duration),
    #[error("{0} neurons are more than {MAX_NEURONS}")]
    Neurons(usize),
    #[error("two neurons have the hotkey 0x{}", hex::encode(.0))]
    SameHotkey([u8; 32]),
    #[error("listening on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    State(#[from] StateError),
}

/// A running development chain. Clones are the same chain; it stops when the last is dropped.
#[derive(Clone)]
pub struct DevChain {
    node: Node,
    first: DevNode,
    /// All nodes; the first is the chain's own.
    nodes: watch::Sender<Vec<DevNode>>,
    genesis_hash: [u8; 32],
    netuid: u16,
    /// What new nodes begin with.
    keep_states: Option<u32>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_with_last: Arc<DropGuard>,
}

impl fmt::Debug for DevChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevChain").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl DevChain {
    /// Makes block 0 and serves the chain at `listen`; port 0 is any free port.
    pub async fn start(genesis: Genesis, listen: SocketAddr) -> Result<Self, StartError> {
        check(&genesis)?;
        let chain = Chain::new(&genesis)?;
        Self::serve(chain, &genesis, listen).await
    }

    /// Goes on with a chain that was saved. Its blocks, neurons, metadata and seed are those of
    /// the state; all the other rules are those of `genesis`, whose subnet has to be the same.
    pub async fn load(
        state: &[u8],
        genesis: Genesis,
        listen: SocketAddr,
    ) -> Result<Self, StartError> {
        check(&genesis)?;
        let chain = Chain::load(state, &genesis)?;
        Self::serve(chain, &genesis, listen).await
    }

    async fn serve(
        chain: Chain,
        genesis: &Genesis,
        listen: SocketAddr,
    ) -> Result<Self, StartError> {
        let genesis_hash = chain.genesis_hash();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let listener = bind(listen).await?;
        let (node, own) = Node::new(chain, genesis.production, stop.clone());
        tasks.spawn(own);
        let keep_states = genesis.keep_states;
        let first = begin(listener, &node, keep_states, &tasks, &stop)?;
        tasks.close();
        Ok(Self {
            node,
            nodes: watch::Sender::new(vec![first.clone()]),
            first,
            genesis_hash,
            netuid: genesis.netuid,
            keep_states,
            tasks,
            stop: stop.clone(),
            _stop_with_last: Arc::new(stop.drop_guard()),
        })
    }

    /// Serves the same chain at one more address; port 0 is any free port. The nodes share the
    /// blocks and the pool, and nothing else.
    pub async fn add_node(&self, listen: SocketAddr) -> Result<DevNode, StartError> {
        let listener = bind(listen).await?;
        let node = begin(listener, &self.node, self.keep_states, &self.tasks, &self.stop)?;
        self.nodes.send_modify(|nodes| nodes.push(node.clone()));
        Ok(node)
    }

    /// The first node, which began with the chain.
    pub fn node(&self) -> DevNode {
        self.first.clone()
    }

    /// All nodes, in the order in which they were added.
    pub fn nodes(&self) -> Vec<DevNode> {
        self.nodes.borrow().clone()
    }

    /// The chain as bytes: the best chain with its states, for [`DevChain::load`]. The pool, the
    /// abandoned blocks and the knobs are not in it.
    pub async fn save(&self) -> Result<Vec<u8>, Stopped> {
        self.node.with(|chain| chain.save()).await
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        self.first.url()
    }

    /// The hash of block 0.
    pub fn genesis_hash(&self) -> [u8; 32] {
        self.genesis_hash
    }

    /// The newest block.
    pub async fn head(&self) -> Result<Head, Stopped> {
        self.node.with(|chain| chain.head().head).await
    }

    /// The newest finalized block.
    pub async fn finalized(&self) -> Result<Head, Stopped> {
        self.node.with(|chain| chain.view(Outlook::default()).finalized().head).await
    }

    /// Makes one block now, of what waits in the pool.
    pub async fn produce_block(&self) -> Result<Head, Stopped> {
        self.node.with(Chain::produce).await?.map_err(ended)
    }

    /// Makes `n` blocks, one after the other, and returns the newest.
    pub async fn produce_blocks(&self, n: u32) -> Result<Head, Stopped> {
        for _ in 0..n {
            self.produce_block().await?;
        }
        self.head().await
    }

    /// Waits until there is a block of this number or a later one.
    pub async fn wait_for_block(&self, number: u32) -> Result<Head, Stopped> {
        let mut tips = self.node.tips();
        tips.wait_for(|tips| tips.best.number >= number).await.map_err(|_| Stopped)?;
        self.head().await
    }

    /// The hash of a block; `None` where there is none yet.
    pub async fn block_hash(&self, number: u32) -> Result<Option<[u8; 32]>, Stopped> {
        self.node.with(move |chain| chain.block(number.into()).map(|b| b.head.hash)).await
    }

    /// The weights that a neuron has set, as (UID, weight) pairs, at the newest block.
    pub async fn weights(&self, uid: u16) -> Result<Vec<(u16, u16)>, Stopped> {
        let index = subnet::index(self.netuid, 0);
        self.read(None, move |state, _| subnet::weights(state, index, uid)).await
    }

    /// The block in which a neuron last set weights; 0 is never.
    pub async fn last_update(&self, uid: u16) -> Result<u64, Stopped> {
        let row = self.read(None, |state, netuid| {
            let size = subnet::size(state, netuid)?;
            subnet::row::<u64>(state, "LastUpdate", netuid, size)
        });
        Ok(row.await?.get(usize::from(uid)).copied().unwrap_or(0))
    }

    /// What a hotkey has committed as of a block, or as of the newest.
    pub async fn commitment(
        &self,
        hotkey: [u8; 32],
        at_block: Option<u32>,
    ) -> Result<Option<Commitment>, Stopped> {
        self.read(at_block, move |state, netuid| dispatch::commitment(state, netuid, &hotkey)).await
    }

    /// Where a hotkey is served.
    pub async fn axon(&self, hotkey: [u8; 32]) -> Result<Option<SocketAddr>, Stopped> {
        let axon = self.read(None, move |state, netuid| subnet::axon(state, netuid, &hotkey));
        Ok(axon.await?.map(|axon| {
            let ip = match u32::try_from(axon.ip) {
                Ok(ip) if axon.ip_type == 4 => IpAddr::from(Ipv4Addr::from(ip)),
                _ => IpAddr::from(Ipv6Addr::from(axon.ip)),
            };
            SocketAddr::new(ip, axon.port)
        }))
    }

    /// Every signed extrinsic that a block of the best chain includes, oldest first.
    pub async fn extrinsics(&self) -> Result<Vec<Included>, Stopped> {
        self.node.with(|chain| chain.journal().to_vec()).await
    }

    /// Registers a neuron in a new slot, from the next block on. Registration counts as an
    /// update of weights. A hotkey that is registered keeps its slot.
    pub async fn register(&self, neuron: GenesisNeuron) -> Result<u16, Stopped> {
        self.write(move |state, netuid| {
            if let Some(uid) = subnet::uid(state, netuid, &neuron.hotkey)? {
                return Ok(uid);
            }
            let uid = subnet::size(state, netuid)?;
            state.put(SUBTENSOR, "SubnetworkN", &[number(netuid)], &uid.saturating_add(1))?;
            neuron.seat(state, netuid, uid, state.block())?;
            Ok(uid)
        })
        .await
    }

    /// Gives a slot to another hotkey, from the next block on.
    pub async fn replace(&self, uid: u16, neuron: GenesisNeuron) -> Result<(), Stopped> {
        self.write(move |state, netuid| {
            if uid < subnet::size(state, netuid)? {
                neuron.seat(state, netuid, uid, state.block())?;
            }
            Ok(())
        })
        .await
    }

    /// Sets the stake of a neuron, from the next block on.
    pub async fn set_stake(&self, uid: u16, rao: u64) -> Result<(), Stopped> {
        self.write(move |state, netuid| {
            let Some(hotkey) = subnet::hotkey(state, netuid, uid)? else { return Ok(()) };
            subnet::set_stake(state, netuid, &hotkey, rao)
        })
        .await
    }

    /// Gives or takes the permit to set weights, from the next block on.
    pub async fn set_validator_permit(&self, uid: u16, permit: bool) -> Result<(), Stopped> {
        self.write(move |state, netuid| genesis::set(state, "ValidatorPermit", netuid, uid, permit))
            .await
    }

    /// Writes the weights of a neuron as if it had set them, from the next block on. No rule is
    /// asked.
    pub async fn set_weights(&self, uid: u16, row: Vec<(u16, u16)>) -> Result<(), Stopped> {
        self.write(move |state, netuid| {
            let pair =
                |(uid, weight): (u16, u16)| Value::unnamed_composite([number(uid), number(weight)]);
            let row = Value::unnamed_composite(row.into_iter().map(pair));
            let index = subnet::index(netuid, 0);
            state.put(SUBTENSOR, "Weights", &[number(index), number(uid)], &row)
        })
        .await
    }

    /// Writes the commitment of a hotkey as if it had made it, from the next block on. No rule is
    /// asked; at most 128 bytes.
    pub async fn set_commitment(&self, hotkey: [u8; 32], data: Vec<u8>) -> Result<(), Stopped> {
        self.write(move |state, netuid| dispatch::commit(state, netuid, &hotkey, &data)).await
    }

    /// Turns commit-reveal on or off, from the next block on.
    pub async fn set_commit_reveal(&self, on: bool) -> Result<(), Stopped> {
        self.write(move |state, netuid| {
            state.put(SUBTENSOR, "CommitRevealWeightsEnabled", &[number(netuid)], &on)
        })
        .await
    }

    /// Sets how many epochs after that of a commit it is revealed, from the next block on.
    pub async fn set_reveal_period(&self, epochs: u64) -> Result<(), Stopped> {
        self.write(move |state, netuid| {
            state.put(SUBTENSOR, "RevealPeriodEpochs", &[number(netuid)], &epochs)
        })
        .await
    }

    /// Sets the blocks per epoch, from the next block on; 0 is no epochs. By the stateful rule
    /// the running epoch begins again.
    pub async fn set_tempo(&self, blocks: u16) -> Result<(), Stopped> {
        self.write(move |state, netuid| epoch::set_tempo(state, netuid, blocks)).await
    }

    /// Ends the epoch in the next block. On runtimes where an epoch's index follows from the
    /// block number, it is computed, and the index stays.
    pub async fn trigger_epoch(&self) -> Result<(), Stopped> {
        let trigger = |chain: &mut Chain| {
            let rules = chain.rules;
            chain.stage(|state, _| epoch::trigger(state, rules))
        };
        self.node.with(trigger).await?.map_err(ended)
    }

    /// The block of the next epoch after the newest; `None` with a tempo of 0.
    pub async fn next_epoch(&self) -> Result<Option<u64>, Stopped> {
        self.read(None, epoch::next).await
    }

    /// The epoch of the newest block.
    pub async fn epoch(&self) -> Result<u64, Stopped> {
        self.read(None, epoch::index).await
    }

    /// The free balance of an account in rao.
    pub async fn balance(&self, who: [u8; 32]) -> Result<u64, Stopped> {
        self.read(None, move |state, _| balance::free(state, &who)).await
    }

    /// `false` takes the drand beacon away: no pulses are stored, and none of the rounds that
    /// pass is known. `true` brings it back, and the next block catches up.
    pub async fn set_pulses(&self, on: bool) -> Result<(), Stopped> {
        self.node.with(move |chain| chain.pulses.on = on).await
    }

    /// Makes the chain hear of rounds this many rounds late.
    pub async fn pulse_lag(&self, rounds: u64) -> Result<(), Stopped> {
        self.node.with(move |chain| chain.pulses.lag = rounds).await
    }

    /// Every call takes this much longer.
    pub fn set_latency(&self, each_call: Duration) {
        self.first.set_latency(each_call);
    }

    /// Cuts every open connection. New ones are welcome.
    pub fn drop_connections(&self) {
        self.first.drop_connections();
    }

    /// `true` cuts every connection and accepts none.
    pub fn set_offline(&self, offline: bool) {
        self.first.set_offline(offline);
    }

    /// The next `n` submissions are refused with 1016, "Immediately Dropped".
    pub fn refuse_submits(&self, n: u32) {
        self.first.refuse_submits(n);
    }

    /// The next `n` submissions are taken, and all connections are cut before their answer.
    pub fn lose_answers(&self, n: u32) {
        self.first.lose_answers(n);
    }

    /// `true` announces only the tip of a branch that takes the place of another one.
    pub fn set_announce_tip_only(&self, tip_only: bool) {
        self.first.set_announce_tip_only(tip_only);
    }

    /// `true` stalls the chain: the interval makes no more blocks.
    pub fn set_paused(&self, paused: bool) {
        self.node.set_paused(paused);
    }

    /// Cuts all connections, ends the chain, and waits until nothing of it runs.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }

    async fn read<R: Send + 'static>(
        &self,
        at_block: Option<u32>,
        read: impl FnOnce(&State<'_>, u16) -> Result<R, MetadataError> + Send + 'static,
    ) -> Result<R, Stopped> {
        let netuid = self.netuid;
        let job = move |chain: &mut Chain| read(&chain.state(at_block.unwrap_or(u32::MAX)), netuid);
        self.node.with(job).await?.map_err(ended)
    }

    async fn write<R: Send + 'static>(
        &self,
        write: impl FnOnce(&mut State<'_>, u16) -> Result<R, MetadataError> + Send + 'static,
    ) -> Result<R, Stopped> {
        self.node.with(move |chain| chain.stage(write)).await?.map_err(ended)
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let error = |source| StartError::Listen { address, source };
    TcpListener::bind(address).await.map_err(error)
}

/// Begins to serve the chain on one more socket.
fn begin(
    listener: TcpListener,
    node: &Node,
    keep_states: Option<u32>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<DevNode, StartError> {
    let address = listener.local_addr().map_err(|source| {
        let address = ([0, 0, 0, 0], 0).into();
        StartError::Listen { address, source }
    })?;
    let faults = Arc::new(Faults::new(keep_states));
    let serve =
        server::serve(listener, node.clone(), Arc::clone(&faults), tasks.clone(), stop.clone());
    tasks.spawn(serve);
    Ok(DevNode { node: node.clone(), faults, address })
}

/// The metadata turned out not to fit: nothing more comes of this chain.
fn ended(error: MetadataError) -> Stopped {
    tracing::error!(%error, "the development chain does not fit its metadata");
    Stopped
}

fn check(genesis: &Genesis) -> Result<(), StartError> {
    if let Production::Interval(time) = genesis.production
        && time < MIN_BLOCK_TIME
    {
        return Err(StartError::BlockTime(time));
    }
    if genesis.neurons.len() > MAX_NEURONS {
        return Err(StartError::Neurons(genesis.neurons.len()));
    }
    for (uid, neuron) in genesis.neurons.iter().enumerate() {
        if genesis.neurons[..uid].iter().any(|other| other.hotkey == neuron.hotkey) {
            return Err(StartError::SameHotkey(neuron.hotkey));
        }
    }
    Ok(())
}
