//! One knob with its arguments: how a script spells it, and how it is turned.

use std::{net::SocketAddr, path::Path, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};
use subxt::utils::AccountId32;

use super::ScriptError;
use crate::{
    DevChain, DevNode, GenesisNeuron, Lie, ReorganiseError, Stopped, Taken, UpgradeError,
    command::rao, runtime::Runtime, with_spec_version,
};

/// Every knob of a handle. The names in a script are these, in snake case.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Knob {
    // Of one node.
    Latency(#[serde(with = "humantime_serde")] Duration),
    DropConnections(Yes),
    Offline(bool),
    RefuseSubmits(u32),
    LoseAnswers(u32),
    DropNextSubmits(u32),
    Mute(bool),
    Lag(u32),
    Stuck(bool),
    KeepStates(Kept),
    Lie(Said),
    AnnounceTipOnly(bool),
    // Of the chain.
    Produce(u32),
    Paused(bool),
    Reorganise(Reorganise),
    FinalityLag(u32),
    FinalityPaused(bool),
    Upgrade(Upgrade),
    HoldPool(bool),
    PoolLimit(usize),
    Ban(u32),
    Register(Neuron),
    Replace(Replace),
    Stake(Stake),
    Permit(Permit),
    CommitReveal(bool),
}

/// `true`, for what can only be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Yes;

impl<'de> Deserialize<'de> for Yes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match bool::deserialize(deserializer)? {
            true => Ok(Self),
            false => Err(D::Error::custom("this can only be `true`")),
        }
    }
}

/// A number of blocks, or `"all"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept(Option<u32>);

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        if value.as_str() == Some("all") {
            return Ok(Self(None));
        }
        let blocks = value.try_into().map_err(|_| D::Error::custom("a number, or \"all\""))?;
        Ok(Self(Some(blocks)))
    }
}

/// A lie, or `"none"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said(Option<Lie>);

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        match value.as_str() {
            Some("none") => Ok(Self(None)),
            _ => value.try_into().map(|lie| Self(Some(lie))).map_err(D::Error::custom),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reorganise {
    depth: u32,
    extrinsics: Taken,
}

/// The metadata of a file, or what the chain has now under another spec version.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, deny_unknown_fields, expecting = "a file's name, or { spec_version = N }")]
pub(crate) enum Upgrade {
    File(String),
    Spec {
        spec_version: u32,
    },
    #[serde(skip)]
    Metadata(Vec<u8>),
}

/// An account by its SS58 address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address([u8; 32]);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let AccountId32(key) = AccountId32::from_str(&text)
            .map_err(|_| D::Error::custom(format!("`{text}` is not an SS58 address")))?;
        Ok(Self(key))
    }
}

/// An amount of TAO, in rao.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tao(u64);

impl<'de> Deserialize<'de> for Tao {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        rao(f64::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Neuron {
    hotkey: Address,
    coldkey: Option<Address>,
    #[serde(default)]
    tao: Tao,
    #[serde(default)]
    permit: bool,
    axon: Option<SocketAddr>,
}

impl Neuron {
    fn neuron(&self) -> GenesisNeuron {
        GenesisNeuron {
            hotkey: self.hotkey.0,
            coldkey: self.coldkey.as_ref().map_or([0; 32], |key| key.0),
            stake: self.tao.0,
            validator_permit: self.permit,
            axon: self.axon,
            ..GenesisNeuron::default()
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replace {
    uid: u16,
    neuron: Neuron,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stake {
    uid: u16,
    tao: Tao,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Permit {
    uid: u16,
    on: bool,
}

/// Why a knob could not be turned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Jammed {
    #[error(transparent)]
    Reorganise(#[from] ReorganiseError),
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl Knob {
    /// Whether it is of one node and not of the chain as a whole.
    pub(super) fn is_of_a_node(&self) -> bool {
        match self {
            Self::Latency(_)
            | Self::DropConnections(_)
            | Self::Offline(_)
            | Self::RefuseSubmits(_)
            | Self::LoseAnswers(_)
            | Self::DropNextSubmits(_)
            | Self::Mute(_)
            | Self::Lag(_)
            | Self::Stuck(_)
            | Self::KeepStates(_)
            | Self::Lie(_)
            | Self::AnnounceTipOnly(_) => true,
            Self::Produce(_)
            | Self::Paused(_)
            | Self::Reorganise(_)
            | Self::FinalityLag(_)
            | Self::FinalityPaused(_)
            | Self::Upgrade(_)
            | Self::HoldPool(_)
            | Self::PoolLimit(_)
            | Self::Ban(_)
            | Self::Register(_)
            | Self::Replace(_)
            | Self::Stake(_)
            | Self::Permit(_)
            | Self::CommitReveal(_) => false,
        }
    }

    /// The same with the file that it names read and checked.
    pub(super) fn read(self, entry: usize, folder: &Path) -> Result<Self, ScriptError> {
        let Self::Upgrade(Upgrade::File(name)) = self else { return Ok(self) };
        let path = folder.join(name);
        match std::fs::read(&path) {
            Err(source) => Err(ScriptError::File { entry, path, source }),
            Ok(metadata) => match Runtime::new(metadata.clone()) {
                Err(source) => Err(ScriptError::Metadata { entry, path, source }),
                Ok(_) => Ok(Self::Upgrade(Upgrade::Metadata(metadata))),
            },
        }
    }

    pub(super) async fn turn(&self, chain: &DevChain, node: &DevNode) -> Result<(), Jammed> {
        match self {
            Self::Latency(each_call) => node.set_latency(*each_call),
            Self::DropConnections(Yes) => node.drop_connections(),
            Self::Offline(offline) => node.set_offline(*offline),
            Self::RefuseSubmits(n) => node.refuse_submits(*n),
            Self::LoseAnswers(n) => node.lose_answers(*n),
            Self::DropNextSubmits(n) => node.drop_next_submits(*n),
            Self::Mute(mute) => node.set_mute(*mute),
            Self::Lag(blocks) => node.set_lag(*blocks),
            Self::Stuck(stuck) => node.set_stuck(*stuck),
            Self::KeepStates(Kept(blocks)) => node.set_keep_states(*blocks),
            Self::Lie(Said(lie)) => node.set_lie(*lie),
            Self::AnnounceTipOnly(tip_only) => node.set_announce_tip_only(*tip_only),
            Self::Produce(blocks) => _ = chain.produce_blocks(*blocks).await?,
            Self::Paused(paused) => chain.set_paused(*paused),
            Self::Reorganise(Reorganise { depth, extrinsics }) => {
                chain.reorganise(*depth, *extrinsics).await?;
            }
            Self::FinalityLag(blocks) => chain.set_finality_lag(*blocks).await?,
            Self::FinalityPaused(paused) => chain.set_finality_paused(*paused).await?,
            Self::Upgrade(upgrade) => chain.upgrade(upgrade.metadata(chain).await?).await?,
            Self::HoldPool(hold) => chain.hold_pool(*hold).await?,
            Self::PoolLimit(extrinsics) => chain.set_pool_limit(*extrinsics).await?,
            Self::Ban(blocks) => chain.set_ban(*blocks).await?,
            Self::Register(neuron) => _ = chain.register(neuron.neuron()).await?,
            Self::Replace(Replace { uid, neuron }) => chain.replace(*uid, neuron.neuron()).await?,
            Self::Stake(Stake { uid, tao }) => chain.set_stake(*uid, tao.0).await?,
            Self::Permit(Permit { uid, on }) => chain.set_validator_permit(*uid, *on).await?,
            Self::CommitReveal(on) => chain.set_commit_reveal(*on).await?,
        }
        Ok(())
    }
}

impl Upgrade {
    async fn metadata(&self, chain: &DevChain) -> Result<Vec<u8>, UpgradeError> {
        match self {
            Self::Metadata(metadata) => Ok(metadata.clone()),
            Self::Spec { spec_version } => {
                Ok(with_spec_version(&chain.metadata().await?, *spec_version)?)
            }
            // Read before the script is played; a name is no metadata, and is refused as such.
            Self::File(name) => Ok(name.clone().into_bytes()),
        }
    }
}
