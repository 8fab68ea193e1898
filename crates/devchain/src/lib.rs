//! A Subtensor of one's own: the chain that validators and miners of a development network, of
//! the demo and of the tests talk to.
//!
//! It is one process without a runtime: real metadata of the live chain, storage in a map under
//! the chain's own keys, and the few calls of one subnet carried out by hand, with the live
//! chain's checks in the live chain's order. Clients cannot tell: they connect with JSON-RPC
//! over WebSocket, read storage and runtime APIs as of any block, sign extrinsics, and follow
//! finalized heads. Its knobs make it slow, deaf, forgetful and rude.
//!
//! It does not know the protocol of the subnet, only the chain's.

mod balance;
mod block;
mod chain;
mod command;
mod counted;
mod devnode;
mod dispatch;
mod encode;
mod epoch;
mod extrinsic;
mod faults;
mod genesis;
mod handle;
mod history;
mod metagraph;
mod migrate;
mod node;
mod pool;
mod pulses;
mod refusal;
mod reveal;
mod rpc;
mod runtime;
mod runtime_api;
mod script;
mod server;
mod state;
mod step;
mod subnet;
mod view;
mod wallet;

pub use self::{
    block::Head,
    chain::{Included, ReorganiseError, StateError, Taken},
    command::{Args, run},
    devnode::DevNode,
    dispatch::Commitment,
    faults::Lie,
    genesis::{Genesis, GenesisNeuron, MAX_NEURONS, Production},
    handle::{DevChain, MIN_BLOCK_TIME, StartError, UpgradeError},
    node::Stopped,
    runtime::{MetadataError, with_renamed, with_spec_version},
    script::{Script, ScriptError},
    wallet::{development_key, write_wallet},
};

/// SCALE metadata of finney at spec 365, which the chain runs on unless told otherwise.
pub const METADATA: &[u8] = include_bytes!("../metadata/subtensor_finney_spec365_v16.scale");

#[cfg(test)]
mod testing {
    use std::sync::OnceLock;

    use crate::runtime::Runtime;

    /// The embedded runtime, decoded once.
    pub(crate) fn runtime() -> &'static Runtime {
        static RUNTIME: OnceLock<Runtime> = OnceLock::new();
        RUNTIME.get_or_init(|| Runtime::new(crate::METADATA.to_vec()).unwrap())
    }
}
