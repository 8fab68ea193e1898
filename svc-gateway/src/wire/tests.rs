//! What goes out is the file, or nothing.

use std::io::Write as _;

use rustix::net::sockopt::tcp_cork;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::Semaphore,
};

use super::*;

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (listener.accept().await.unwrap().0, theirs)
}

async fn sending(content: &[u8]) -> Arc<Sending> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    let permit = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
    Arc::new(Sending::new(file, Slot::of(permit, None)))
}

/// As hyper does it: shows the buffers, then takes off them what was written.
async fn write_all(wire: &mut Wire, mut pieces: Vec<Piece>) -> io::Result<()> {
    while pieces.iter().any(Buf::has_remaining) {
        let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece.chunk())).collect();
        let mut written = wire.write_vectored(&slices).await?;
        for piece in &mut pieces {
            let of_this = written.min(piece.remaining());
            piece.advance(of_this);
            written -= of_this;
        }
    }
    Ok(())
}

#[tokio::test]
async fn bytes_and_parts_of_files_arrive_in_their_order() {
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    let from = sending(&content).await;
    let (socket, mut theirs) = connected().await;
    let lane = Arc::new(Lane::default());
    let mut wire = Wire::new(socket, Arc::clone(&lane));
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.map(|_| all)
    });
    let pieces = vec![
        Piece::Bytes(Bytes::from_static(b"head")),
        lane.piece(Arc::clone(&from), 5, PIECE, true),
        Piece::Bytes(Bytes::new()),
        lane.piece(Arc::clone(&from), 0, 10, false),
        Piece::Bytes(Bytes::from_static(b"between")),
        lane.piece(from, 2_000_000, 1_000_000, false),
    ];
    write_all(&mut wire, pieces).await.unwrap();
    drop(wire);
    let expected =
        [b"head", &content[5..5 + PIECE], &content[..10], b"between", &content[2_000_000..]];
    assert!(reading.await.unwrap().unwrap() == expected.concat());
    assert!(lane.lock().parts.is_empty() && lane.lock().sent == 0);
}

#[tokio::test]
async fn a_placeholder_that_was_copied_is_not_sent() {
    let from = sending(b"the file").await;
    let (socket, mut theirs) = connected().await;
    let lane = Arc::new(Lane::default());
    let mut wire = Wire::new(socket, Arc::clone(&lane));
    let mut piece = lane.piece(from, 0, 8, false);
    // As a writer would that gathers small buffers in a large one.
    let copy = piece.copy_to_bytes(8);
    wire.write_all(&copy).await.unwrap_err();
    drop(wire);
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    assert!(all.is_empty());
}

#[tokio::test]
async fn a_file_that_became_shorter_ends_the_connection() {
    let from = sending(b"short").await;
    let (socket, _theirs) = connected().await;
    let lane = Arc::new(Lane::default());
    let mut wire = Wire::new(socket, Arc::clone(&lane));
    let piece = lane.piece(from, 5, 100, false);
    let error = write_all(&mut wire, vec![piece]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn short_segments_wait_while_more_follows_and_never_longer() {
    const HEAD: &[u8] = b"head";
    let content = vec![7; 2000];
    let from = sending(&content).await;
    let (socket, mut theirs) = connected().await;
    let lane = Arc::new(Lane::default());
    let mut wire = Wire::new(socket, Arc::clone(&lane));
    let corked = |wire: &Wire| tcp_cork(&wire.socket).unwrap();
    let more =
        vec![Piece::Bytes(Bytes::from_static(HEAD)), lane.piece(Arc::clone(&from), 0, 1000, true)];
    write_all(&mut wire, more).await.unwrap();
    assert!(corked(&wire));
    let last = lane.piece(from, 1000, 1000, false);
    write_all(&mut wire, vec![last]).await.unwrap();
    assert!(!corked(&wire));
    let mut all = vec![0; HEAD.len() + content.len()];
    theirs.read_exact(&mut all).await.unwrap();
    assert!(all == [HEAD, &content].concat());
}
