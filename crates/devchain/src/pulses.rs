//! The chain's own drand: a beacon whose secret comes from the genesis, so that what is sealed to
//! it opens on time, without any network.
//!
//! The live chain stores the pulses of drand's quicknet. This one tells its own beacon's key and
//! times in `Drand.BeaconConfig`, where a client finds what to seal to, and stores the pulses
//! that commits wait for. Its rounds follow the chain's own time, not the clock.

use drand::SecretBeacon;
use scale_value::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    genesis::Genesis,
    reveal,
    runtime::MetadataError,
    state::{State, number},
};

const PALLET: &str = "Drand";
/// Seconds between two rounds, as on quicknet.
const PERIOD: u32 = 3;

/// The beacon, and how well it is heard.
#[derive(Debug, Clone)]
pub(crate) struct Pulses {
    /// `None` where a seed gives no key, which none that anyone will meet does.
    secret: Option<SecretBeacon>,
    genesis_time: u32,
    /// Whether pulses are stored at all.
    pub(crate) on: bool,
    /// How many rounds the chain is behind the beacon.
    pub(crate) lag: u64,
}

impl Pulses {
    /// The beacon of a chain, whose first round is at block 0.
    pub(crate) fn new(genesis: &Genesis) -> Self {
        let genesis_time = u32::try_from(genesis.genesis_time_ms / 1000).unwrap_or(u32::MAX);
        let secret = SecretBeacon::from_seed(genesis.seed, genesis_time.into(), PERIOD.into());
        Self { secret: secret.ok(), genesis_time, on: true, lag: 0 }
    }

    /// Tells the beacon's public side in the chain's storage.
    pub(crate) fn publish(&self, state: &mut State<'_>) -> Result<(), MetadataError> {
        let Some(secret) = &self.secret else { return Ok(()) };
        let key = secret.beacon().public_key();
        let hash = Value::from_bytes(Sha256::digest(key));
        let metadata = [("beacon_id", Value::from_bytes("devchain"))];
        let config = Value::named_composite([
            ("public_key", Value::from_bytes(key)),
            ("period", number(PERIOD)),
            ("genesis_time", number(self.genesis_time)),
            ("hash", hash.clone()),
            ("group_hash", hash),
            ("scheme_id", Value::from_bytes("bls-unchained-g1-rfc9380")),
            ("metadata", Value::named_composite(metadata)),
        ]);
        state.put(PALLET, "BeaconConfig", &[], &config)
    }

    /// Whether the chain tells of another beacon: its runtime had none before, or it was saved
    /// under another genesis.
    fn is_news(&self, state: &State<'_>, secret: &SecretBeacon) -> Result<bool, MetadataError> {
        let told: Option<Config> = state.get(PALLET, "BeaconConfig", &[])?;
        let same = |told: &Config| {
            told.public_key == secret.beacon().public_key()
                && told.genesis_time == self.genesis_time
        };
        Ok(!told.as_ref().is_some_and(same))
    }

    /// Stores the pulses that waiting commits need, as far as their time has come.
    pub(crate) fn on_block(
        &self,
        state: &mut State<'_>,
        netuid: u16,
        now_ms: u64,
    ) -> Result<(), MetadataError> {
        let Some(secret) = self.secret.as_ref().filter(|_| self.on) else { return Ok(()) };
        if state.runtime().entry(PALLET, "Pulses").is_none() {
            return Ok(());
        }
        let newest = secret.beacon().round_at(now_ms / 1000).saturating_sub(self.lag);
        if self.is_news(state, secret)? {
            self.publish(state)?;
            state.emit(PALLET, "BeaconConfigChanged", &[])?;
        }
        // The live chain has the pulses of all rounds: one that a commit is sealed to later, and that
        // is the newest already, has to be there as well.
        let mut stored = Vec::new();
        for round in reveal::waiting_rounds(state, netuid)? {
            if (1..=newest).contains(&round) && signature(state, round)?.is_none() {
                store(state, round, &secret.sign(round))?;
                stored.push(number(round));
            }
        }
        if newest > last_round(state)? {
            state.put(PALLET, "LastStoredRound", &[], &newest)?;
        }
        if !stored.is_empty() {
            state.emit(PALLET, "NewPulse", &[Value::unnamed_composite(stored)])?;
        }
        Ok(())
    }
}

fn store(state: &mut State<'_>, round: u64, signature: &[u8]) -> Result<(), MetadataError> {
    let pulse = Value::named_composite([
        ("round", number(round)),
        ("randomness", Value::from_bytes(Sha256::digest(signature))),
        ("signature", Value::from_bytes(signature)),
    ]);
    state.put(PALLET, "Pulses", &[number(round)], &pulse)
}

/// The newest round that the chain has heard of; 0 is none.
pub(crate) fn last_round(state: &State<'_>) -> Result<u64, MetadataError> {
    Ok(state.get(PALLET, "LastStoredRound", &[])?.unwrap_or(0))
}

/// The part of the configuration by which a beacon is known.
#[derive(scale_decode::DecodeAsType)]
struct Config {
    public_key: Vec<u8>,
    genesis_time: u32,
}

/// The part of a stored pulse that opens what was sealed to it.
#[derive(scale_decode::DecodeAsType)]
struct Pulse {
    signature: Vec<u8>,
}

/// The signature of a round, where the chain has it.
pub(crate) fn signature(state: &State<'_>, round: u64) -> Result<Option<Vec<u8>>, MetadataError> {
    let pulse: Option<Pulse> = state.get(PALLET, "Pulses", &[number(round)])?;
    Ok(pulse.map(|pulse| pulse.signature))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;

    #[test]
    fn a_chain_that_tells_of_another_beacon_is_told_of_this_one() {
        let runtime = crate::testing::runtime();
        let genesis = |seed| Genesis { seed: [seed; 32], ..Genesis::default() };
        let mut history = History::default();
        history.append(0, genesis(1).changes(runtime).unwrap());
        let mut state = State::after(runtime, &history, 0, Default::default());
        let is_news = |pulses: &Pulses, state: &State<'_>| {
            pulses.is_news(state, pulses.secret.as_ref().unwrap()).unwrap()
        };
        let (own, other) = (Pulses::new(&genesis(1)), Pulses::new(&genesis(2)));
        assert!(!is_news(&own, &state) && is_news(&other, &state));
        let now = Genesis::default().genesis_time_ms + 12_000;
        other.on_block(&mut state, Genesis::default().netuid, now).unwrap();
        assert!(is_news(&own, &state) && !is_news(&other, &state));
        assert_eq!(last_round(&state).unwrap(), 5, "the round of the chain's own time");
    }
}
