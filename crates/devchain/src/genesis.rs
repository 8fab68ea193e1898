//! What the chain begins with, and how neurons come to a subnet.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    balance,
    history::{Changes, History},
    pulses::Pulses,
    runtime::{MetadataError, Runtime},
    state::{Account, State, account, number},
    subnet::{self, AxonInfo, SUBTENSOR},
};

/// As many neurons as the chain's own limit on a subnet of one mechanism allows.
pub const MAX_NEURONS: usize = 256;

/// When blocks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Production {
    /// At this interval, at least 50 ms, with or without extrinsics.
    Interval(Duration),
    /// One for every extrinsic that the pool takes, and whenever one is asked for.
    OnSubmit,
    /// Only when one is asked for.
    Manual,
}

/// The state and the rules of block 0.
#[derive(Debug, Clone)]
pub struct Genesis {
    /// The one subnet.
    pub netuid: u16,
    /// Its neurons: the UID is the position.
    pub neurons: Vec<GenesisNeuron>,
    /// When blocks are made.
    pub production: Production,
    /// `WeightsSetRateLimit`: blocks between two updates of one neuron.
    pub rate_limit: u64,
    /// `ServingRateLimit`: blocks between two axons of one neuron.
    pub serving_rate_limit: u64,
    /// `MinAllowedWeights`.
    pub min_allowed_weights: u16,
    /// `MaxWeightsLimit`: the largest share of one weight, in parts of 65535.
    pub max_weight_limit: u16,
    /// `WeightsVersionKey`: the least version key of weights; 0 takes any.
    pub weights_version: u64,
    /// `StakeThreshold` in rao: the stake that setting weights takes.
    pub stake_threshold: u64,
    /// `Tempo`: blocks per epoch.
    pub tempo: u16,
    /// `ActivityCutoff`: blocks after its last update in which a validator counts.
    pub activity_cutoff: u16,
    /// `CommitRevealWeightsEnabled`: plain weights are refused.
    pub commit_reveal: bool,
    /// `CommitRevealWeightsVersion`: that of commits under a timelock.
    pub commit_reveal_version: u16,
    /// `RevealPeriodEpochs`: epochs after that of a commit in which it is revealed.
    pub reveal_period: u64,
    /// Accounts with a free balance in rao: coldkeys that can register and stake.
    pub balances: Vec<([u8; 32], u64)>,
    /// `Burn` in rao: what a registration costs.
    pub burn: u64,
    /// `MaxAllowedUids`: a newcomer to a subnet of that many replaces someone.
    pub max_uids: u16,
    /// `ImmunityPeriod`: blocks after its registration in which a neuron is not replaced.
    pub immunity_period: u16,
    /// Whether every epoch gives the validator permits to the `max_validators` with the most
    /// stake; otherwise they stay as they are set.
    pub permits_by_stake: bool,
    /// `MaxAllowedValidators`.
    pub max_validators: u16,
    /// Whether an axon may be served on the loopback address, which the live chain refuses.
    pub allow_loopback_axons: bool,
    /// Whether stake, rate limits and axons are checked at submission, as the live chain does
    /// today. Otherwise the same refusals are dispatch errors, as they once were.
    pub refuse_early: bool,
    /// Bytes of commitments per hotkey and epoch.
    pub commitment_space: u32,
    /// How many blocks finality is behind.
    pub finality_lag: u32,
    /// `Some(n)`: the state of blocks more than `n` behind the head is not answered, as on a
    /// pruned node.
    pub keep_states: Option<u32>,
    /// Mixed into every block's hash: two chains with other seeds share no hash.
    pub seed: [u8; 32],
    /// The chain's time at block 0, in Unix milliseconds. Every block adds the block time, or
    /// 12 s where there is none.
    pub genesis_time_ms: u64,
    /// SCALE metadata to run on; `None` is the embedded one.
    pub metadata: Option<Vec<u8>>,
}

impl Default for Genesis {
    fn default() -> Self {
        Self {
            netuid: 102,
            neurons: Vec::new(),
            production: Production::Interval(Duration::from_millis(250)),
            rate_limit: 100,
            serving_rate_limit: 50,
            min_allowed_weights: 1,
            max_weight_limit: u16::MAX,
            weights_version: 0,
            stake_threshold: 0,
            tempo: 360,
            activity_cutoff: 5000,
            commit_reveal: false,
            commit_reveal_version: 4,
            reveal_period: 1,
            balances: Vec::new(),
            burn: 100_000_000,
            max_uids: 256,
            immunity_period: 4096,
            permits_by_stake: false,
            max_validators: 128,
            allow_loopback_axons: false,
            refuse_early: true,
            commitment_space: 3100,
            finality_lag: 0,
            keep_states: None,
            seed: [0; 32],
            genesis_time_ms: 1_764_547_200_000,
            metadata: None,
        }
    }
}

/// A registered hotkey.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenesisNeuron {
    /// Its sr25519 public key.
    pub hotkey: [u8; 32],
    /// The account that owns it.
    pub coldkey: [u8; 32],
    /// Total stake in rao.
    pub stake: u64,
    /// Whether it may set weights on others.
    pub validator_permit: bool,
    /// Where it is served.
    pub axon: Option<SocketAddr>,
    /// The block of its last update of weights; 0 is never.
    pub last_update: u64,
}

impl GenesisNeuron {
    /// A neuron without stake or permit.
    pub fn miner(hotkey: [u8; 32]) -> Self {
        Self { hotkey, ..Self::default() }
    }

    /// A neuron that may set weights.
    pub fn validator(hotkey: [u8; 32], stake: u64) -> Self {
        Self { hotkey, stake, validator_permit: true, ..Self::default() }
    }
}

impl Genesis {
    /// The storage of block 0.
    pub(crate) fn changes(&self, runtime: &Runtime) -> Result<Changes, MetadataError> {
        let history = History::default();
        let mut state = State::at(runtime, &history, 0);
        let (netuid, key) = (self.netuid, [number(self.netuid)]);
        let size = u16::try_from(self.neurons.len()).unwrap_or(u16::MAX);
        let hotkeys: Vec<Account> = self.neurons.iter().map(|n| n.hotkey).collect();

        state.put("System", "Number", &[], &0u32)?;
        state.put("Timestamp", "Now", &[], &self.genesis_time_ms)?;
        state.put("Commitments", "MaxSpace", &[], &self.commitment_space)?;
        state.put(SUBTENSOR, "TotalNetworks", &[], &2u16)?;
        state.put(SUBTENSOR, "StakeThreshold", &[], &self.stake_threshold)?;
        let version = &self.commit_reveal_version;
        state.put(SUBTENSOR, "CommitRevealWeightsVersion", &[], version)?;
        Pulses::new(self).publish(&mut state)?;
        for (who, free) in &self.balances {
            balance::set(&mut state, who, *free)?;
        }
        let total: u64 = self.neurons.iter().fold(0, |sum, n| sum.saturating_add(n.stake));
        state.put(SUBTENSOR, "TotalStake", &[], &total)?;
        for (entry, on) in [
            ("NetworksAdded", true),
            ("NetworkRegistrationAllowed", true),
            ("SubtokenEnabled", true),
            ("CommitRevealWeightsEnabled", self.commit_reveal),
        ] {
            state.put(SUBTENSOR, entry, &key, &on)?;
        }
        for (entry, value) in [
            ("SubnetworkN", size.into()),
            ("Tempo", self.tempo.into()),
            ("WeightsSetRateLimit", self.rate_limit),
            ("ServingRateLimit", self.serving_rate_limit),
            ("MinAllowedWeights", self.min_allowed_weights.into()),
            ("MaxWeightsLimit", self.max_weight_limit.into()),
            ("WeightsVersionKey", self.weights_version),
            ("ActivityCutoff", self.activity_cutoff.into()),
            ("SubnetEpochIndex", 0),
            ("LastEpochBlock", 0),
            ("RevealPeriodEpochs", self.reveal_period),
            ("Burn", self.burn),
            ("MaxAllowedUids", self.max_uids.into()),
            ("ImmunityPeriod", self.immunity_period.into()),
            ("MaxAllowedValidators", self.max_validators.into()),
        ] {
            state.put(SUBTENSOR, entry, &key, &value)?;
        }
        if let Some(owner) = hotkeys.first() {
            state.put(SUBTENSOR, "SubnetOwnerHotkey", &key, owner)?;
        }
        for (uid, neuron) in self.neurons.iter().enumerate() {
            neuron.seat(&mut state, netuid, u16::try_from(uid).unwrap_or(u16::MAX), 0)?;
        }
        Ok(state.into_changes())
    }
}

impl GenesisNeuron {
    /// Writes the neuron into a slot, which is there already. `registered` is the block of its
    /// registration, which also counts as an update.
    pub(crate) fn seat(
        &self,
        state: &mut State<'_>,
        netuid: u16,
        uid: u16,
        registered: u32,
    ) -> Result<(), MetadataError> {
        let hotkey = account(&self.hotkey);
        let slot = [number(netuid), number(uid)];
        if let Some(old) = subnet::hotkey(state, netuid, uid)?.filter(|old| *old != [0; 32]) {
            state.remove(SUBTENSOR, "Uids", &[number(netuid), account(&old)])?;
            state.remove(SUBTENSOR, "Axons", &[number(netuid), account(&old)])?;
            state.put(SUBTENSOR, "IsNetworkMember", &[account(&old), number(netuid)], &false)?;
            state.remove(SUBTENSOR, "Weights", &slot)?;
        }
        state.put(SUBTENSOR, "Keys", &slot, &self.hotkey)?;
        state.put(SUBTENSOR, "Uids", &[number(netuid), hotkey.clone()], &uid)?;
        state.put(SUBTENSOR, "BlockAtRegistration", &slot, &u64::from(registered))?;
        state.put(SUBTENSOR, "IsNetworkMember", &[hotkey.clone(), number(netuid)], &true)?;
        state.put(SUBTENSOR, "Owner", std::slice::from_ref(&hotkey), &self.coldkey)?;
        let stake = [hotkey.clone(), number(netuid)];
        state.put(SUBTENSOR, "TotalHotkeyAlpha", &stake, &self.stake)?;

        let update = self.last_update.max(registered.into());
        set(state, "LastUpdate", netuid, uid, update)?;
        set(state, "ValidatorPermit", netuid, uid, self.validator_permit)?;
        set(state, "Active", netuid, uid, true)?;
        set(state, "Emission", netuid, uid, 0u64)?;
        for entry in ["Incentive", "Consensus", "Dividends", "Rank", "Trust", "ValidatorTrust"] {
            set(state, entry, netuid, uid, 0u16)?;
        }
        if let Some(axon) = self.axon {
            let axon = AxonInfo {
                block: registered.into(),
                version: 1,
                ip: match axon.ip() {
                    IpAddr::V4(ip) => u32::from(ip).into(),
                    IpAddr::V6(ip) => ip.into(),
                },
                port: axon.port(),
                ip_type: if axon.is_ipv4() { 4 } else { 6 },
                protocol: 4,
                ..AxonInfo::default()
            };
            state.put(SUBTENSOR, "Axons", &[number(netuid), hotkey], &axon.value())?;
        }
        Ok(())
    }
}

/// Sets one neuron's number in a row; nothing where the subnet has no such slot.
pub(crate) fn set<T>(
    state: &mut State<'_>,
    entry: &str,
    netuid: u16,
    uid: u16,
    value: T,
) -> Result<(), MetadataError>
where
    T: scale_decode::DecodeAsType + subxt::ext::scale_encode::EncodeAsType + Default + Clone,
{
    let size = subnet::size(state, netuid)?;
    let mut row = subnet::row::<T>(state, entry, netuid, size)?;
    let Some(number_of) = row.get_mut(usize::from(uid)) else { return Ok(()) };
    *number_of = value;
    state.put(SUBTENSOR, entry, &[number(netuid)], &row)
}
