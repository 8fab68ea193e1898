//! The rules of the network: values and pure functions, no I/O, no clock, no runtime.

mod ids;

pub use ids::{
    BlockHash, BlockNumber, CycleIndex, ExpertGroup, GlobalVersion, Hotkey, ModelHash, NetUid,
    ParseIdError, RoundId, Seed, Uid,
};
