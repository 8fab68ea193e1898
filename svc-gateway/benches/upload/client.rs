//! A miner that costs little, and strangers that do nothing.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
};

use anyhow::{Context as _, ensure};
use tokio::net::TcpSocket;

use crate::hashes::own_time;

/// Sends a form whose file is empty with this file in its place, and reads the answer. Seconds on a processor.
pub(crate) fn send(
    addr: SocketAddr,
    form: &[u8],
    boundary: &str,
    path: &Path,
) -> anyhow::Result<f64> {
    let processor = own_time();
    let end = format!("\r\n--{boundary}--\r\n");
    let before = form.len().checked_sub(end.len()).context("a form")?;
    let (before, end) = form.split_at(before);
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut stream = TcpStream::connect(addr)?;
    let head = format!(
        "POST /submit-checkpoint HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\
         Content-Type: multipart/form-data; boundary={boundary}\r\nContent-Length: {}\r\n\r\n",
        length + form.len() as u64
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(before)?;
    let mut sent = 0;
    while sent < length {
        let some = rustix::fs::sendfile(&stream, &file, Some(&mut sent), 1 << 20)?;
        ensure!(some > 0, "the file became shorter");
    }
    stream.write_all(end)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(own_time() - processor)
}

/// Connects from an address of one's own: all of 127.0.0.0/8 is this machine.
pub(crate) async fn connect_from(
    number: u16,
    to: SocketAddr,
) -> anyhow::Result<tokio::net::TcpStream> {
    let [high, low] = number.to_be_bytes();
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 1, high, low.max(1)), 0).into())?;
    Ok(socket.connect(to).await?)
}
