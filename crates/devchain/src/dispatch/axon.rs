//! `serve_axon`: where a neuron can be reached.

use scale_decode::DecodeAsType;

use super::{Rules, waited};
use crate::{
    encode::Failure,
    refusal::Custom,
    runtime::MetadataError,
    state::{Account, State, account, number},
    subnet::{self, AxonInfo, SUBTENSOR},
};

const LOOPBACK_V4: u128 = 0x7f00_0001;
const LOOPBACK_V6: u128 = 1;

#[derive(Debug, Clone, PartialEq, DecodeAsType)]
pub(crate) struct ServeAxon {
    netuid: u16,
    version: u32,
    ip: u128,
    port: u16,
    ip_type: u8,
    protocol: u8,
    placeholder1: u8,
    placeholder2: u8,
}

/// What is wrong with an axon, by both roads on which the chain says so.
type Fault = (&'static str, Custom);

impl ServeAxon {
    /// The live chain makes all its checks before it takes the extrinsic into its pool.
    pub(super) fn check_early(
        &self,
        signer: &Account,
        state: &State<'_>,
        rules: Rules,
    ) -> Result<Result<(), Custom>, MetadataError> {
        Ok(self.fault(signer, state, rules)?.map_or(Ok(()), |(_, custom)| Err(custom)))
    }

    pub(super) fn dispatch(
        &self,
        signer: &Account,
        state: &mut State<'_>,
        rules: Rules,
    ) -> Result<(), Failure> {
        if let Some((error, _)) = self.fault(signer, state, rules)? {
            return Err(Failure::subtensor(error));
        }
        let axon = AxonInfo {
            block: state.block().into(),
            version: self.version,
            ip: self.ip,
            port: self.port,
            ip_type: self.ip_type,
            protocol: self.protocol,
            placeholder1: self.placeholder1,
            placeholder2: self.placeholder2,
        };
        let keys = [number(self.netuid), account(signer)];
        state.put(SUBTENSOR, "Axons", &keys, &axon.value())?;
        state.emit(SUBTENSOR, "AxonServed", &keys)?;
        Ok(())
    }

    fn fault(
        &self,
        signer: &Account,
        state: &State<'_>,
        rules: Rules,
    ) -> Result<Option<Fault>, MetadataError> {
        if subnet::uid(state, self.netuid, signer)?.is_none() {
            return Ok(Some(("HotKeyNotRegisteredInNetwork", Custom::NotRegistered)));
        }
        if self.ip_type != 4 && self.ip_type != 6 {
            return Ok(Some(("InvalidIpType", Custom::BadRequest)));
        }
        if !self.is_reachable(rules.allow_loopback_axons) {
            return Ok(Some(("InvalidIpAddress", Custom::BadAddress)));
        }
        let last = subnet::axon(state, self.netuid, signer)?.map_or(0, |axon| axon.block);
        let limit: u64 = subnet::item(state, "ServingRateLimit", self.netuid)?.unwrap_or(0);
        if !waited(last, state.block(), limit) {
            return Ok(Some(("ServingRateLimitExceeded", Custom::ServingTooOften)));
        }
        if self.port == 0 {
            return Ok(Some(("InvalidPort", Custom::BadPort)));
        }
        Ok(None)
    }

    fn is_reachable(&self, allow_loopback: bool) -> bool {
        let (broadcast, loopback) = match self.ip_type {
            4 => (u128::from(u32::MAX), LOOPBACK_V4),
            _ => (u128::MAX, LOOPBACK_V6),
        };
        self.ip != 0 && self.ip < broadcast && (allow_loopback || self.ip != loopback)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(ip: u128, ip_type: u8) -> ServeAxon {
        let (version, port, protocol, placeholder1, placeholder2) = (1, 8091, 4, 0, 0);
        let netuid = 102;
        ServeAxon { netuid, version, ip, port, ip_type, protocol, placeholder1, placeholder2 }
    }

    #[test]
    fn addresses_that_no_one_can_reach_are_refused() {
        for (ip, ip_type) in
            [(0, 4), (0x7f00_0001, 4), (u32::MAX.into(), 4), (1 << 40, 4), (1, 6), (u128::MAX, 6)]
        {
            assert!(!served(ip, ip_type).is_reachable(false), "{ip} {ip_type}");
        }
        assert!(served(0x0808_0808, 4).is_reachable(false));
        assert!(served(1 << 40, 6).is_reachable(false));
    }

    #[test]
    fn loopback_and_nothing_else_can_be_allowed() {
        assert!(served(LOOPBACK_V4, 4).is_reachable(true));
        assert!(served(LOOPBACK_V6, 6).is_reachable(true));
        assert!(!served(0, 4).is_reachable(true));
    }
}
