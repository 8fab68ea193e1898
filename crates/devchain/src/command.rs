//! The chain as a command: its arguments, and running until told to stop.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context as _, bail};
use subxt::utils::AccountId32;
use tokio_util::sync::CancellationToken;

use crate::{DevChain, Genesis, GenesisNeuron, Production};

/// Rao in a TAO, and in an alpha.
const RAO: f64 = 1e9;

/// The arguments of the development chain.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where JSON-RPC over WebSocket is served.
    #[arg(long, default_value = "127.0.0.1:9944")]
    pub listen: SocketAddr,
    /// The subnet.
    #[arg(long, default_value_t = 102)]
    pub netuid: u16,
    /// Milliseconds per block, at least 50.
    #[arg(long, default_value_t = 12_000)]
    pub block_time_ms: u64,
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
    /// SCALE metadata to run on instead of the built-in one.
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,
    /// 32 bytes in hex that every block hash depends on.
    #[arg(long, value_name = "HEX")]
    pub seed: Option<String>,
    /// Weights are taken by commit-reveal only.
    #[arg(long)]
    pub commit_reveal: bool,
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
        if !(0.0..=1e9).contains(&tao) {
            bail!("a stake of {tao} TAO is not between 0 and a thousand million");
        }
        Ok(Self(GenesisNeuron::validator(hotkey, (tao * RAO) as u64)))
    }
}

impl Args {
    fn genesis(&self) -> anyhow::Result<Genesis> {
        let metadata = match &self.metadata {
            Some(path) => {
                Some(std::fs::read(path).with_context(|| format!("reading {}", path.display()))?)
            }
            None => None,
        };
        let mut seed = [0; 32];
        if let Some(text) = &self.seed {
            hex::decode_to_slice(text, &mut seed).context("--seed is not 32 bytes of hex")?;
        }
        Ok(Genesis {
            netuid: self.netuid,
            neurons: self.neurons.iter().map(|n| n.0.clone()).collect(),
            production: Production::Interval(Duration::from_millis(self.block_time_ms)),
            rate_limit: self.rate_limit,
            tempo: self.tempo,
            commit_reveal: self.commit_reveal,
            allow_loopback_axons: self.allow_loopback_axons,
            seed,
            metadata,
            ..Genesis::default()
        })
    }
}

/// Runs the chain until `stop` is cancelled.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let chain = DevChain::start(args.genesis()?, args.listen).await?;
    tracing::info!(
        url = %chain.url(),
        genesis = %hex::encode(chain.genesis_hash()),
        neurons = args.neurons.len(),
        "the development chain runs"
    );
    stop.cancelled().await;
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
    fn a_neuron_that_is_no_address_or_has_no_sane_stake_is_refused() {
        for text in
            ["", "5Gr", &format!("{ALICE}:"), &format!("{ALICE}:-1"), &format!("{ALICE}:NaN")]
        {
            assert!(text.parse::<Neuron>().is_err(), "{text}");
        }
    }
}
