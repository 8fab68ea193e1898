//! How often, and how many times at once, one address or one hotkey may ask.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

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

/// All limits on rate, and that on requests at once.
#[derive(Debug)]
pub(crate) struct Limits {
    addresses: Keyed<IpAddr>,
    hotkeys: Keyed<Hotkey>,
    /// Behind a proxy: how many requests a client has under way. Without one, its connections are counted.
    clients: Option<AtOnce>,
    /// How many files a client is sent.
    downloads: AtOnce,
}

/// How many of something a client may have at once.
#[derive(Debug)]
struct AtOnce {
    counts: Counts,
    limit: usize,
}

impl AtOnce {
    fn of(limit: usize) -> Self {
        Self { counts: Arc::default(), limit: limit.max(1) }
    }

    fn begin(&self, client: IpAddr) -> Result<UnderWay, Error> {
        let client = counted_as(client);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(client).or_default();
        if *count >= self.limit {
            return Err(Error::Crowded { limit: self.limit });
        }
        *count += 1;
        drop(counts);
        Ok(UnderWay(Some((Arc::clone(&self.counts), client))))
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct UnderWay(Option<(Counts, IpAddr)>);

/// How many each has; who has none is not there.
type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// What counts as one address: whoever has one IPv6 address has 2^64 of them.
pub(crate) fn counted_as(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        },
    }
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
            clients: (!config.client_address_header.is_empty())
                .then(|| AtOnce::of(config.max_connections_per_address)),
            downloads: AtOnce::of(config.max_downloads_per_address),
        }
    }

    /// Counts a request from this address.
    pub(crate) fn address(&self, address: IpAddr) -> Result<(), Error> {
        self.addresses.check(&counted_as(address))
    }

    /// Counts a request of this client as under way, as long as what is returned is kept.
    pub(crate) fn under_way(&self, client: IpAddr) -> Result<UnderWay, Error> {
        self.clients.as_ref().map_or(Ok(UnderWay(None)), |clients| clients.begin(client))
    }

    /// Counts a file that this client is sent, as long as what is returned is kept: whoever has a key may sign
    /// for one, and must not have them all.
    pub(crate) fn download(&self, client: IpAddr) -> Result<UnderWay, Error> {
        self.downloads.begin(client)
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

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Some((clients, client)) = self.0.take() else { return };
        let mut counts = clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_downloads_no_client_has_more_than_its_share() {
        let config = Config { max_downloads_per_address: 2, ..Config::default() };
        let limits = Limits::new(&config);
        let (one, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let first = limits.download(one).unwrap();
        let _second = limits.download(one).unwrap();
        assert_eq!(limits.download(one).unwrap_err().reason(), "too_many_connections");
        let _others = limits.download(other).unwrap();
        drop(first);
        let _third = limits.download(one).unwrap();
    }

    #[test]
    fn behind_a_proxy_a_client_has_so_many_requests_at_once_and_others_have_theirs() {
        let config = Config {
            client_address_header: "x-real-ip".into(),
            max_connections_per_address: 2,
            ..Config::default()
        };
        let limits = Limits::new(&config);
        let (one, other): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let first = limits.under_way(one).unwrap();
        let _second = limits.under_way(one).unwrap();
        let refused = limits.under_way(one).unwrap_err();
        assert_eq!(refused.reason(), "too_many_connections");
        let others = limits.under_way(other).unwrap();
        drop(first);
        let _third = limits.under_way(one).unwrap();
        drop(others);
        let clients = limits.clients.as_ref().unwrap();
        assert_eq!(clients.counts.lock().unwrap().len(), 1, "who has none is forgotten");
    }

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
