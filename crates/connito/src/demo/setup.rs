//! What a demonstration begins with: keys in wallet files, texts, a random model, expert groups,
//! and a configuration file per validator. Everything is a pure function of the seed.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use domain::{ExpertGroup, Hotkey, Schedule, Seed};
use model::{expert_group, init};
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey};
use sha2::{Digest as _, Sha256};

use super::Args;
use crate::miner::Behaviour;

/// Lengths of the phases of a demonstration, in blocks.
const PHASES: [u64; 9] = [6, 40, 8, 12, 16, 16, 40, 8, 10];
/// The subnet, as on the live chain.
pub(super) const NETUID: u16 = 102;
/// Expert groups of the model; the validators evaluate the first.
const GROUPS: u32 = 2;
/// Batches of a round and of the held-out set.
const BATCHES: u32 = 4;

/// Who plays what.
pub type Behaviours = Vec<Behaviour>;

/// One player: a key with a folder.
#[derive(Clone)]
pub struct Player {
    /// Its name, for people and folders.
    pub name: String,
    /// Its slot in the subnet.
    pub uid: u16,
    /// Its key.
    pub key: Arc<Keypair>,
    /// Its address.
    pub hotkey: Hotkey,
    /// Its folder.
    pub folder: PathBuf,
}

impl std::fmt::Debug for Player {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Player").field("name", &self.name).field("uid", &self.uid).finish()
    }
}

/// Everything that is decided before anything starts.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Working folder.
    pub folder: PathBuf,
    /// Seed of everything.
    pub seed: u64,
    /// Lengths of the phases.
    pub schedule: Schedule,
    /// Time between blocks.
    pub block_time: Duration,
    /// Whether every service is a process of its own.
    pub processes: bool,
    /// Where traces go.
    pub otlp_endpoint: Option<String>,
    /// Place of the validator that lies, where one does.
    pub liar: Option<usize>,
    /// Whether the last validator begins with nothing, when it is told to ([`super::Subnet::join`]).
    pub late: bool,
    /// Validators: UIDs from 0 on.
    pub validators: Vec<Player>,
    /// Miners: the UIDs after them.
    pub miners: Vec<Player>,
    /// What the miners do.
    pub behaviours: Behaviours,
}

impl Plan {
    /// Decides who plays what.
    pub fn new(args: &Args, folder: &Path) -> Self {
        let player = |role: &str, n: u16, uid: u16| {
            let key = keypair(args.seed, &format!("{role}/{n}"));
            let name = format!("{role}-{n}");
            Player {
                hotkey: Hotkey::from_public_key(key.public.to_bytes()),
                folder: folder.join(&name),
                key: Arc::new(key),
                name,
                uid,
            }
        };
        let others =
            [Behaviour::Idle, Behaviour::Copy, Behaviour::Nan, Behaviour::Absent].into_iter();
        let behaviours = std::iter::once(Behaviour::Honest)
            .chain(others)
            .chain(std::iter::repeat(Behaviour::Honest))
            .take(usize::from(args.miners))
            .collect();
        Self {
            folder: folder.to_owned(),
            seed: args.seed,
            schedule: Schedule::new(PHASES).unwrap_or_default(),
            block_time: Duration::from_millis(args.block_time),
            processes: args.processes,
            otlp_endpoint: args.otlp_endpoint.clone(),
            late: false,
            liar: args.liar.then(|| usize::from(args.validators.saturating_sub(1))),
            validators: (0..args.validators).map(|n| player("validator", n, n)).collect(),
            miners: (0..args.miners).map(|n| player("miner", n, args.validators + n)).collect(),
            behaviours,
        }
    }

    /// Folder of the model's configuration and tokenizer.
    pub fn model(&self) -> PathBuf {
        self.folder.join("model")
    }

    /// Folder of an expert group.
    pub fn group(&self, group: u32) -> PathBuf {
        self.folder.join("groups").join(group.to_string())
    }

    /// Folders of all expert groups.
    pub fn groups(&self) -> Vec<PathBuf> {
        (0..GROUPS).map(|group| self.group(group)).collect()
    }

    /// Folder of the texts.
    pub fn corpus(&self) -> PathBuf {
        self.folder.join("corpus")
    }

    /// A seed for `what`.
    pub fn seed_of(&self, what: &str) -> Seed {
        Seed(digest(self.seed, what))
    }

    /// Behaviour of a miner by UID.
    pub fn behaviour(&self, uid: u16) -> Option<Behaviour> {
        let n = self.miners.iter().position(|miner| miner.uid == uid)?;
        self.behaviours.get(n).copied()
    }

    /// The share of a full training that an honest miner does: everyone's is different.
    pub fn effort(&self, miner: usize) -> f64 {
        let before = self.behaviours.iter().take(miner).filter(|b| b.is_honest()).count();
        1.0 / (1.0 + before as f64 * 0.5)
    }
}

fn digest(seed: u64, what: &str) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"connito demo")
        .chain_update(seed.to_be_bytes())
        .chain_update(what.as_bytes())
        .finalize()
        .into()
}

fn keypair(seed: u64, what: &str) -> Keypair {
    // Any 32 bytes are a mini secret key.
    MiniSecretKey::from_bytes(&digest(seed, what))
        .map(|secret| secret.expand_to_keypair(ExpansionMode::Ed25519))
        .unwrap_or_else(|_| MiniSecretKey::generate().expand_to_keypair(ExpansionMode::Ed25519))
}

/// Writes everything that does not depend on ports. Blocking.
pub(super) fn write(plan: &Plan) -> anyhow::Result<()> {
    for player in plan.validators.iter().chain(&plan.miners) {
        let wallets = player.folder.join("wallets");
        devchain::write_wallet(&wallets, "default", "default", &player.key)
            .with_context(|| format!("write the wallet of {}", player.name))?;
    }
    model::single_threaded();
    let texts = model::corpus::generate(&plan.seed_of("tokenizer"), 200);
    model::corpus::write(&plan.corpus(), &plan.seed_of("corpus"))?;
    let config = init::demo_config();
    init::random(&plan.model(), &config, &plan.seed_of("model"), &texts)?;
    let groups = init::demo_groups(&config, GROUPS)?;
    for (group, experts) in groups.0 {
        let config = expert_group::GroupConfig {
            group_id: group,
            data_sources: vec![plan.corpus().join("train").display().to_string().as_str().into()],
            sequence_length: model::train::DEMO_SEQUENCE_LENGTH,
        };
        let folder = expert_group::GroupFolder { config, experts };
        folder.write(&plan.group(group.0))?;
    }
    Ok(())
}

/// Addresses of one validator's services.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// Chain, scheduler, evaluator, gateway and peer: gRPC.
    pub grpc: [u16; 5],
    /// The gateway's HTTP.
    pub http: u16,
}

impl Ports {
    /// Six free ports of the loopback interface.
    pub fn free() -> anyhow::Result<Self> {
        let mut ports = [0; 6];
        for port in &mut ports {
            *port = testkit::free_port().context("find a free port")?;
        }
        let [a, b, c, d, e, http] = ports;
        Ok(Self { grpc: [a, b, c, d, e], http })
    }

    /// URL of the scheduler.
    pub fn scheduler(&self) -> String {
        format!("http://127.0.0.1:{}", self.grpc[1])
    }

    /// URL of the gateway.
    pub fn gateway(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }
}

/// The configuration file of a validator.
pub(super) fn validator_config(
    plan: &Plan,
    player: &Player,
    ports: &Ports,
    chain: &str,
    store: &str,
) -> String {
    let [chain_port, scheduler, evaluator, gateway, peer] = ports.grpc;
    let mut text = common(plan, player, store);
    let _ = write!(
        text,
        r#"chain_url = "http://127.0.0.1:{chain_port}"
scheduler_url = "http://127.0.0.1:{scheduler}"
peer_url = "http://127.0.0.1:{peer}"
"#
    );
    text += &chain_section(player, chain_port, chain);
    let _ = writeln!(text, "axon = \"127.0.0.1:{}\"", ports.http);
    let block_ms = plan.block_time.as_millis();
    let _ = write!(
        text,
        r#"
[scheduler]
grpc_addr = "127.0.0.1:{scheduler}"
block_time = "{block_ms}ms"
leader_ttl = "2s"
expert_group = {group}

[scheduler.evaluation]
batches = {BATCHES}
batch_size = {batch_size}
sequence_length = {sequence_length}
lease_blocks = 12
max_attempts = 4

[scheduler.policy]
weights = "top_k"

[gateway]
http_addr = "127.0.0.1:{http}"
grpc_addr = "127.0.0.1:{gateway}"
advertised_peer_url = "http://127.0.0.1:{peer}"

[gateway.hub]
enabled = false

[evaluator]
grpc_addr = "127.0.0.1:{evaluator}"
tokenizer = "{model}/tokenizer.json"
corpus = "{corpus}/train"
held_out = "{corpus}/held_out"
held_out_batches = {BATCHES}
idle = "100ms"

[peer]
grpc_addr = "127.0.0.1:{peer}"
chunk_elements = 4096
audits = 64
"#,
        group = ExpertGroup(0),
        batch_size = model::train::DEMO_BATCH_SIZE,
        sequence_length = model::train::DEMO_SEQUENCE_LENGTH,
        http = ports.http,
        model = plan.model().display(),
        corpus = plan.corpus().display(),
    );
    text
}

/// The configuration file of a miner's own chain service.
pub(super) fn miner_config(plan: &Plan, player: &Player, port: u16, chain: &str) -> String {
    let store = format!("memory://{}", player.name);
    common(plan, player, &store) + &chain_section(player, port, chain)
}

fn common(plan: &Plan, player: &Player, store: &str) -> String {
    let folder = player.folder.display();
    let mut text = format!(
        r#"[common]
store_url = "{store}"
namespace = "{name}"
artifacts_url = "file:{folder}/artifacts"
data_dir = "{folder}/data"
log_format = "json"
instance = "{name}"
shutdown_grace = "3s"
phases = {phases:?}
"#,
        name = player.name,
        phases = plan.schedule.lengths(),
    );
    if let Some(endpoint) = &plan.otlp_endpoint {
        let _ = writeln!(text, "otlp_endpoint = \"{endpoint}\"");
    }
    text
}

fn chain_section(player: &Player, port: u16, chain: &str) -> String {
    format!(
        r#"
[chain]
grpc_addr = "127.0.0.1:{port}"
endpoints = ["{chain}"]
netuid = {NETUID}
wallet_path = "{}/wallets"
lease_ttl = "2s"
request_timeout = "5s"
stall_timeout = "20s"
"#,
        player.folder.display()
    )
}
