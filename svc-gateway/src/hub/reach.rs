//! Where the hub may send this gateway: to public addresses, and to those of the kind that the hub itself
//! has. A hub, or a miner through it, must not make the gateway talk to what only the gateway can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// What kind of address one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Realm {
    Public,
    /// Of a site's own network.
    Private,
    Loopback,
    /// Nobody's home: this link, groups, documentation, and what is to come.
    Never,
}

fn realm(address: IpAddr) -> Realm {
    match address {
        IpAddr::V4(v4) => realm_v4(v4),
        IpAddr::V6(v6) => realm_v6(v6),
    }
}

fn realm_v4(address: Ipv4Addr) -> Realm {
    match address.octets() {
        [127, ..] => Realm::Loopback,
        [10, ..] | [192, 168, ..] | [172, 16..=31, ..] | [100, 64..=127, ..] => Realm::Private,
        [0, ..] | [169, 254, ..] | [192, 0, 0 | 2, _] | [198, 18 | 19, ..] | [224..=255, ..] => {
            Realm::Never
        }
        [198, 51, 100, _] | [203, 0, 113, _] => Realm::Never,
        _ => Realm::Public,
    }
}

fn realm_v6(address: Ipv6Addr) -> Realm {
    let within = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        realm_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Realm::Loopback,
        // IPv4 in other clothes: mapped, compatible, translated, and 6to4.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] => within(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => within(high, low),
        [0x2002, high, low, ..] => within(high, low),
        [0xfc00..=0xfdff, ..] => Realm::Private,
        [0x2001, 0 | 0xdb8, ..] => Realm::Never,
        [0x2000..=0x3fff, ..] => Realm::Public,
        _ => Realm::Never,
    }
}

/// Why a name leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OutOfReach {
    #[error("{host} is at {address}, where the hub has no business")]
    Address { host: String, address: IpAddr },
    #[error("{host} can't be found: {why}")]
    Unknown { host: String, why: String },
}

/// Finds addresses of other hosts than the hub's.
#[derive(Debug, Clone)]
pub(crate) struct Reach {
    /// The hub's own host.
    hub: String,
}

impl Reach {
    pub(crate) fn of(hub: &str) -> Self {
        Self { hub: hub.to_owned() }
    }

    /// The addresses of `host`, a name or an address, if the hub may send there.
    pub(crate) async fn find(&self, host: &str) -> Result<Vec<SocketAddr>, OutOfReach> {
        let found = lookup(host).await?;
        let mut like_the_hub = None;
        for address in &found {
            let allowed = match realm(address.ip()) {
                Realm::Public => true,
                Realm::Never => false,
                own @ (Realm::Private | Realm::Loopback) => {
                    if like_the_hub.is_none() {
                        like_the_hub = Some(lookup(&self.hub).await?);
                    }
                    like_the_hub.iter().flatten().any(|hub| realm(hub.ip()) == own)
                }
            };
            if !allowed {
                return Err(OutOfReach::Address { host: host.to_owned(), address: address.ip() });
            }
        }
        Ok(found)
    }
}

impl Resolve for Reach {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found: Addrs = Box::new(this.find(name.as_str()).await?.into_iter());
            Ok(found)
        })
    }
}

/// The address that `host` is, where it is no name.
pub(crate) fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

async fn lookup(host: &str) -> Result<Vec<SocketAddr>, OutOfReach> {
    if let Some(address) = literal(host) {
        return Ok(vec![SocketAddr::new(address, 0)]);
    }
    let unknown =
        |why: std::io::Error| OutOfReach::Unknown { host: host.to_owned(), why: why.to_string() };
    Ok(tokio::net::lookup_host((host, 0)).await.map_err(unknown)?.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_the_kind_that_they_are_in_whatever_clothes() {
        for (address, expected) in [
            ("1.1.1.1", Realm::Public),
            ("2606:4700::1111", Realm::Public),
            ("64:ff9b::101:101", Realm::Public),
            ("10.1.2.3", Realm::Private),
            ("172.31.0.1", Realm::Private),
            ("192.168.0.1", Realm::Private),
            ("100.64.0.1", Realm::Private),
            ("fd00::1", Realm::Private),
            ("::ffff:10.0.0.1", Realm::Private),
            ("127.0.0.1", Realm::Loopback),
            ("127.9.9.9", Realm::Loopback),
            ("::1", Realm::Loopback),
            ("::ffff:127.0.0.1", Realm::Loopback),
            ("64:ff9b::7f00:1", Realm::Loopback),
            ("2002:7f00:1::", Realm::Loopback),
            ("0.0.0.0", Realm::Never),
            ("::", Realm::Never),
            ("169.254.169.254", Realm::Never),
            ("::ffff:169.254.169.254", Realm::Never),
            ("fe80::1", Realm::Never),
            ("224.0.0.1", Realm::Never),
            ("255.255.255.255", Realm::Never),
            ("2001:db8::1", Realm::Never),
            ("ff02::1", Realm::Never),
        ] {
            assert_eq!(realm(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[tokio::test]
    async fn a_hub_sends_to_public_places_and_to_its_own_kind_and_never_to_this_link() {
        let public = Reach::of("1.1.1.1");
        assert!(public.find("9.9.9.9").await.is_ok());
        for host in ["127.0.0.1", "[::1]", "10.0.0.1", "169.254.169.254", "localhost"] {
            assert!(public.find(host).await.is_err(), "{host}");
        }
        let local = Reach::of("127.0.0.1");
        assert!(local.find("localhost").await.is_ok());
        for host in ["10.0.0.1", "169.254.169.254", "[fd00::1]", "0.0.0.0"] {
            assert!(local.find(host).await.is_err(), "{host}");
        }
        let private = Reach::of("10.0.0.1");
        assert!(private.find("192.168.7.7").await.is_ok());
        assert!(private.find("127.0.0.1").await.is_err());
    }
}
