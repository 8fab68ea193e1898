//! Ports of this host.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::bail;
use tokio::{net::TcpStream, time::Instant};

/// Returns a port on loopback that nobody listens on at the moment.
///
/// It lies below the ports that the kernel gives to connections and to whoever binds port 0, and is not
/// given twice in this process. Another process may still take it before the caller does: bind port 0
/// instead where that is possible.
///
/// # Errors
///
/// When there is none.
pub fn free_port() -> io::Result<u16> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    const FIRST: u16 = 10_240;
    const SPAN: u16 = 32_768 - FIRST;
    // Processes beside this one begin somewhere else.
    let begin = std::process::id().wrapping_mul(0x9e37_79b1);
    for _ in 0..SPAN {
        let place = begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let Ok(place) = u16::try_from(place % u32::from(SPAN)) else { continue };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, FIRST + place)).is_ok() {
            return Ok(FIRST + place);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no port below the kernel's own is free"))
}

/// As [`free_port`], with the address of loopback.
///
/// # Errors
///
/// As [`free_port`].
pub fn unused_addr() -> io::Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)))
}

/// Waits until somebody listens on `addr`.
///
/// # Errors
///
/// When nobody does after `within`.
pub async fn connects(addr: SocketAddr, within: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + within;
    while TcpStream::connect(addr).await.is_err() {
        if Instant::now() >= end {
            bail!("nobody listens on {addr} after {within:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_port_is_given_twice_and_none_is_one_of_the_kernels_own() {
        let ports: BTreeSet<u16> = (0..200).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 200);
        assert!(ports.iter().all(|port| (10_240..32_768).contains(port)));
    }
}
