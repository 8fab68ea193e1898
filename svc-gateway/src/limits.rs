//! How often one address or one hotkey may ask.

use std::{hash::Hash, net::IpAddr, num::NonZeroU32, time::Duration};

use domain::Hotkey;
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::DashMapStateStore,
};

use crate::{Config, error::Error};

/// A limit per key.
#[derive(Debug)]
struct Keyed<K: Hash + Eq + Clone>(RateLimiter<K, DashMapStateStore<K>, DefaultClock>);

impl<K: Hash + Eq + Clone> Keyed<K> {
    fn new(quota: Quota) -> Self {
        Self(RateLimiter::dashmap(quota))
    }

    fn check(&self, key: &K) -> Result<(), Error> {
        self.0.check_key(key).map_err(|until| Error::RateLimited {
            retry: until.wait_time_from(self.0.clock().now()),
        })
    }

    fn forget(&self) {
        self.0.retain_recent();
        self.0.shrink_to_fit();
    }
}

/// All limits on rate.
#[derive(Debug)]
pub(crate) struct Limits {
    addresses: Keyed<IpAddr>,
    hotkeys: Keyed<Hotkey>,
}

impl Limits {
    /// How long an unused key is kept.
    pub(crate) const FORGET_EVERY: Duration = Duration::from_secs(60);

    /// The limits that the configuration names; zero counts as one.
    pub(crate) fn new(config: &Config) -> Self {
        let at_least_one = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        Self {
            addresses: Keyed::new(
                Quota::per_second(at_least_one(config.requests_per_address))
                    .allow_burst(at_least_one(config.burst_per_address)),
            ),
            hotkeys: Keyed::new(
                Quota::per_minute(at_least_one(config.requests_per_hotkey))
                    .allow_burst(at_least_one(config.burst_per_hotkey)),
            ),
        }
    }

    /// Counts a request from this address.
    pub(crate) fn address(&self, address: IpAddr) -> Result<(), Error> {
        // Whoever has one IPv6 address has 2^64 of them.
        let address = match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => v4.into(),
                None => std::net::Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
            },
        };
        self.addresses.check(&address)
    }

    /// Counts a request that this hotkey signed.
    pub(crate) fn hotkey(&self, hotkey: &Hotkey) -> Result<(), Error> {
        self.hotkeys.check(hotkey)
    }

    /// Drops the keys that have not been seen for long.
    pub(crate) fn forget(&self) {
        self.addresses.forget();
        self.hotkeys.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_ipv6_network_share_a_limit() {
        let config = Config { burst_per_address: 2, ..Config::default() };
        let limits = Limits::new(&config);
        assert!(limits.address("2001:db8::1".parse().unwrap()).is_ok());
        assert!(limits.address("2001:db8::2".parse().unwrap()).is_ok());
        let error = limits.address("2001:db8::3".parse().unwrap()).unwrap_err();
        assert_eq!(error.reason(), "rate_limited");
        assert!(limits.address("2001:db8:0:1::1".parse().unwrap()).is_ok());
    }

    #[test]
    fn a_hotkey_that_asks_too_often_does_not_use_up_anothers_share() {
        let config = Config { burst_per_hotkey: 1, ..Config::default() };
        let limits = Limits::new(&config);
        let (one, other) = (Hotkey::from_public_key([1; 32]), Hotkey::from_public_key([2; 32]));
        assert!(limits.hotkey(&one).is_ok());
        assert!(limits.hotkey(&one).is_err());
        limits.forget();
        assert!(limits.hotkey(&other).is_ok());
    }
}
