//! Ports of this host.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::bail;
use tokio::{net::TcpStream, time::Instant};

/// Returns a port on loopback that nobody listens on at the moment.
///
/// Another process may take it before the caller does: bind port 0 instead where that is possible.
///
/// # Errors
///
/// When there is none.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
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
