//! The Redis of tests itself.

use testkit::RedisServer;
use tokio::net::TcpStream;

#[tokio::test]
async fn two_servers_are_apart_and_each_is_gone_with_its_handle() {
    let (one, mut other) =
        (RedisServer::start().await.unwrap(), RedisServer::start().await.unwrap());
    assert_ne!(one.port(), other.port());
    assert!(one.url().ends_with(&format!("{}/0", one.port())));
    let (gone, port) = (("127.0.0.1", one.port()), other.port());
    drop(one);
    assert!(TcpStream::connect(gone).await.is_err());

    other.kill();
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    other.revive().await.unwrap();
    assert_eq!(other.port(), port);
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_ok());
}
