//! The chain as a command: its arguments, and running until told to stop.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use schnorrkel::Keypair;
use subxt::utils::AccountId32;
use tokio_util::sync::CancellationToken;

use crate::{DevChain, Genesis, GenesisNeuron, Production, Script, wallet};

/// Rao in a TAO, and in an alpha.
const RAO: f64 = 1e9;
/// The stake of a validator that nobody named.
const VALIDATOR_TAO: f64 = 1000.0;

/// The arguments of the development chain.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where JSON-RPC over WebSocket is served.
    #[arg(long, default_value = "127.0.0.1:9944")]
    pub listen: SocketAddr,
    /// The subnet.
    #[arg(long, default_value_t = 102)]
    pub netuid: u16,
    /// Time per block, such as 250ms or 12s; at least 50ms.
    #[arg(long, value_name = "TIME", default_value = "12s", value_parser = humantime::parse_duration)]
    pub block_time: Duration,
    /// Blocks per epoch.
    #[arg(long, default_value_t = 360)]
    pub tempo: u16,
    /// Blocks between two updates of a validator's weights.
    #[arg(long, default_value_t = 100)]
    pub rate_limit: u64,
    /// A neuron, in order of UIDs: a hotkey's SS58 address, then `:` and its stake in TAO if it
    /// has a validator permit.
    #[arg(long = "neuron", value_name = "SS58[:STAKE]")]
    pub neurons: Vec<Neuron>,
    /// A coldkey's SS58 address, then `:` and its free balance in TAO: it can register and stake.
    #[arg(long = "endow", value_name = "SS58:TAO")]
    pub endowed: Vec<Endowment>,
    /// As many validators with keys that everyone knows (Alice, Bob, Charlie and so on) and 1000
    /// TAO each, before all other neurons.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub validators: u16,
    /// Write the keys of these validators, not encrypted, to DIR/validator-0/hotkeys/default and
    /// so on, as the wallet tools do.
    #[arg(long, value_name = "DIR", requires = "validators")]
    pub wallets: Option<PathBuf>,
    /// As many further nodes of the same chain, on the ports after that of --listen.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub nodes: u16,
    /// How many blocks finality is behind.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub finality_lag: u32,
    /// States of blocks more than N behind the head are not answered, as on a pruned node.
    #[arg(long, value_name = "N")]
    pub keep_states: Option<u32>,
    /// Turn knobs at the blocks that this script says (docs/devchain.md).
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// Save the chain here when it is stopped.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Go on with the chain that was saved here.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["neurons", "endowed", "validators", "metadata", "seed"])]
    pub load: Option<PathBuf>,
    /// SCALE metadata to run on instead of the built-in one.
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,
    /// 32 bytes in hex that every block hash depends on.
    #[arg(long, value_name = "HEX")]
    pub seed: Option<String>,
    /// Weights are taken by commit-reveal only.
    #[arg(long)]
    pub commit_reveal: bool,
    /// Every epoch gives the validator permits to those with the most stake.
    #[arg(long)]
    pub permits_by_stake: bool,
    /// Axons may be served on 127.0.0.1, which the live chain refuses.
    #[arg(long)]
    pub allow_loopback_axons: bool,
}

/// A neuron on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neuron(pub GenesisNeuron);

impl FromStr for Neuron {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (address, stake) = match text.split_once(':') {
            Some((address, stake)) => (address, Some(stake)),
            None => (text, None),
        };
        let AccountId32(hotkey) =
            address.parse().with_context(|| format!("`{address}` is not an SS58 address"))?;
        let Some(stake) = stake else { return Ok(Self(GenesisNeuron::miner(hotkey))) };
        let tao: f64 = stake.parse().with_context(|| format!("`{stake}` is not a stake"))?;
        Ok(Self(GenesisNeuron::validator(hotkey, rao(tao)?)))
    }
}

/// A balance on the command line: whose, and how much in rao.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endowment(pub [u8; 32], pub u64);

impl FromStr for Endowment {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (address, balance) =
            text.split_once(':').with_context(|| format!("`{text}` is not an address:TAO"))?;
        let AccountId32(coldkey) =
            address.parse().with_context(|| format!("`{address}` is not an SS58 address"))?;
        let tao = balance.parse().with_context(|| format!("`{balance}` is not a balance"))?;
        Ok(Self(coldkey, rao(tao)?))
    }
}

/// An amount of TAO in rao.
pub(crate) fn rao(tao: f64) -> anyhow::Result<u64> {
    if !(0.0..=1e9).contains(&tao) {
        bail!("{tao} TAO is not between 0 and a thousand million");
    }
    Ok((tao * RAO) as u64)
}

impl Args {
    fn genesis(&self) -> anyhow::Result<Genesis> {
        let metadata = self.metadata.as_deref().map(read).transpose()?;
        let mut neurons = Vec::new();
        for n in 0..self.validators {
            let key = validator_key(n)?;
            neurons.push(GenesisNeuron::validator(key.public.to_bytes(), rao(VALIDATOR_TAO)?));
        }
        neurons.extend(self.neurons.iter().map(|n| n.0.clone()));
        let mut seed = [0; 32];
        if let Some(text) = &self.seed {
            hex::decode_to_slice(text, &mut seed).context("--seed is not 32 bytes of hex")?;
        }
        Ok(Genesis {
            netuid: self.netuid,
            neurons,
            production: Production::Interval(self.block_time),
            rate_limit: self.rate_limit,
            tempo: self.tempo,
            commit_reveal: self.commit_reveal,
            balances: self.endowed.iter().map(|Endowment(who, rao)| (*who, *rao)).collect(),
            permits_by_stake: self.permits_by_stake,
            allow_loopback_axons: self.allow_loopback_axons,
            finality_lag: self.finality_lag,
            keep_states: self.keep_states,
            seed,
            metadata,
            ..Genesis::default()
        })
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn validator_key(n: u16) -> anyhow::Result<Keypair> {
    let name = wallet::validator_name(n);
    wallet::development_key(&name).map_err(|error| anyhow!("the key //{name}: {error}"))
}

impl Args {
    /// Reads and checks the script, so that a mistake in it shows before the chain starts.
    fn script(&self) -> anyhow::Result<Option<Script>> {
        let Some(path) = &self.script else { return Ok(None) };
        let text = String::from_utf8(read(path)?)
            .with_context(|| format!("{} is not text", path.display()))?;
        let script = Script::parse(&text, path.parent().unwrap_or(Path::new(".")))?;
        script.check(usize::from(self.nodes) + 1)?;
        Ok(Some(script))
    }

    fn write_wallets(&self) -> anyhow::Result<()> {
        let Some(folder) = &self.wallets else { return Ok(()) };
        for n in 0..self.validators {
            let (key, coldkey) = (validator_key(n)?, format!("validator-{n}"));
            let path = wallet::write_wallet(folder, &coldkey, "default", &key)
                .with_context(|| format!("writing the wallet {coldkey} in {}", folder.display()))?;
            let hotkey = AccountId32(key.public.to_bytes());
            tracing::info!(uid = n, %hotkey, path = %path.display(), "a validator's wallet");
        }
        Ok(())
    }

    async fn start(&self) -> anyhow::Result<DevChain> {
        let genesis = self.genesis()?;
        let chain = match &self.load {
            None => DevChain::start(genesis, self.listen).await?,
            Some(path) => DevChain::load(&read(path)?, genesis, self.listen)
                .await
                .with_context(|| format!("loading {}", path.display()))?,
        };
        for n in 1..=self.nodes {
            let port = match self.listen.port() {
                0 => 0,
                first => first.checked_add(n).context("there are not as many ports")?,
            };
            let node = chain.add_node(SocketAddr::new(self.listen.ip(), port)).await?;
            tracing::info!(node = n, url = %node.url(), "a further node");
        }
        Ok(chain)
    }
}

/// Writes a file in one step: whoever reads it finds the whole of it, or what was there before.
fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    std::fs::write(&beside, bytes)
        .and_then(|()| std::fs::rename(&beside, path))
        .with_context(|| format!("writing {}", path.display()))
}

/// Runs the chain until `stop` is cancelled.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let script = args.script()?;
    let chain = args.start().await?;
    args.write_wallets()?;
    let head = chain.head().await?;
    tracing::info!(
        url = %chain.url(),
        genesis = %hex::encode(chain.genesis_hash()),
        block = head.number,
        "the development chain runs"
    );
    if let Some(script) = script {
        // A chain that was loaded has its first blocks, and what happened at them, behind it.
        let script = if args.load.is_some() { script.after(head.number) } else { script };
        tokio::select! {
            () = stop.cancelled() => {}
            played = chain.play(&script) => {
                played?;
                tracing::info!(knobs = script.len(), "the script is played");
            }
        }
    }
    stop.cancelled().await;
    if let Some(path) = &args.save {
        let state = chain.save().await?;
        write_whole(path, &state)?;
        tracing::info!(path = %path.display(), bytes = state.len(), "the chain is saved");
    }
    chain.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";

    #[test]
    fn a_neuron_with_a_stake_is_a_validator_and_one_without_is_a_miner() {
        let Neuron(validator) = format!("{ALICE}:1000.5").parse().unwrap();
        assert_eq!((validator.stake, validator.validator_permit), (1_000_500_000_000, true));
        let Neuron(miner) = ALICE.parse().unwrap();
        assert_eq!((miner.stake, miner.validator_permit), (0, false));
        assert_eq!(miner.hotkey, validator.hotkey);
    }

    #[test]
    fn an_endowment_is_an_address_and_a_balance() {
        let Endowment(_, rao) = format!("{ALICE}:2.5").parse().unwrap();
        assert_eq!(rao, 2_500_000_000);
        for text in [ALICE, "5Gr:1", &format!("{ALICE}:"), &format!("{ALICE}:-1")] {
            assert!(text.parse::<Endowment>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_neuron_that_is_no_address_or_has_no_sane_stake_is_refused() {
        for text in
            ["", "5Gr", &format!("{ALICE}:"), &format!("{ALICE}:-1"), &format!("{ALICE}:NaN")]
        {
            assert!(text.parse::<Neuron>().is_err(), "{text}");
        }
    }
}
