//! Chunks both ways, and what becomes of them when somebody dies, stalls or lies.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use domain::Hotkey;
use futures::{StreamExt as _, stream, stream::BoxStream};
use kit::Shutdown;
use merge::{Data, Digest};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::keeper::{ASKED, FIRST, Kept, Peer, Setting, chunks, list, piece};
use crate::{
    call::{CallError, Caller, ChunkStream},
    guests::Limits,
    testing::hotkey,
};

fn asked() -> Hotkey {
    hotkey(ASKED)
}

fn whole(count: u32) -> Kept {
    let chunks = chunks(count);
    Kept { list: list(&chunks).to_vec(), chunks, whole: count, ..Kept::default() }
}

fn wanted(count: u32) -> Kept {
    Kept { whole: count, ..Kept::default() }
}

/// What must come about before long is tried without end, and given up for a failure at a limit.
async fn soon<T>(tries: impl AsyncFnOnce() -> T) -> T {
    tokio::time::timeout(Duration::from_secs(60), tries()).await.unwrap()
}

async fn rest(stream: &mut ChunkStream) -> Result<Vec<Bytes>, CallError> {
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.next().await? {
        chunks.push(chunk);
    }
    Ok(chunks)
}

#[tokio::test]
async fn any_range_of_chunks_is_fetched_after_its_list() {
    let peer = Peer::start(Setting::default()).await;
    let caller = peer.caller().await;
    peer.keeper.put(piece(), whole(7));
    for (first, count) in [(0, 7), (2, 3), (6, 1), (3, 0)] {
        let mut stream = caller.fetch(&asked(), &piece(), FIRST + first, count).await.unwrap();
        assert_eq!(stream.list(7).await.unwrap(), *list(&chunks(7)));
        let range = first as usize..(first + count) as usize;
        assert_eq!(rest(&mut stream).await.unwrap(), chunks(7)[range]);
        assert!(stream.next().await.unwrap().is_none(), "nor anything later");
    }
    let missing = Data::Reduced(Digest([1; 32]));
    let error = caller.fetch(&asked(), &missing, FIRST, 1).await.unwrap_err();
    assert!(error.to_string().contains("not_here"), "{error}");
}

#[tokio::test]
async fn a_list_that_is_longer_than_wanted_and_a_stream_that_is_shorter_are_noticed() {
    let peer = Peer::start(Setting::default()).await;
    let caller = peer.caller().await;
    peer.keeper.put(piece(), whole(7));
    let mut stream = caller.fetch(&asked(), &piece(), FIRST, 7).await.unwrap();
    assert_eq!(stream.list(6).await.unwrap_err().reason(), "garbage");
    drop(stream);

    let mut stream = caller.fetch(&asked(), &piece(), FIRST, 8).await.unwrap();
    stream.list(7).await.unwrap();
    assert_eq!(rest(&mut stream).await.unwrap_err().reason(), "cut_short");

    peer.keeper.put(piece(), Kept { broken: true, ..whole(2) });
    let mut stream = caller.fetch(&asked(), &piece(), FIRST, 7).await.unwrap();
    stream.list(7).await.unwrap();
    let error = rest(&mut stream).await.unwrap_err();
    assert!(error.to_string().contains("unreadable"), "{error}");
}

#[tokio::test]
async fn so_many_streams_at_once_and_no_more() {
    let limits = Limits { requests: 10_000, transfers: 2 };
    let peer = Peer::start(Setting { limits, ..Setting::default() }).await;
    let caller = peer.caller().await;
    peer.keeper.put(piece(), Kept { stuck: true, ..whole(1) });
    let open = async || {
        let mut stream = caller.fetch(&asked(), &piece(), FIRST, 2).await?;
        stream.list(2).await?;
        Ok::<_, CallError>(stream)
    };
    let (first, _second) = (open().await.unwrap(), open().await.unwrap());
    let error = open().await.unwrap_err();
    assert!(error.to_string().contains("too_many_streams"), "{error}");
    drop(first);
    soon(async || while open().await.is_err() {}).await;
}

#[tokio::test]
async fn a_reader_that_stalls_loses_its_stream() {
    let limits = Limits { requests: 10_000, transfers: 1 };
    let idle = Duration::from_millis(100);
    let peer = Peer::start(Setting { limits, idle, ..Setting::default() }).await;
    let caller = peer.caller().await;
    // More than connections have room for.
    let chunks = vec![Bytes::from(vec![1; 1 << 20]); 32];
    peer.keeper.put(piece(), Kept { list: list(&chunks).to_vec(), chunks, ..Kept::default() });
    let mut stalled = caller.fetch(&asked(), &piece(), FIRST, 32).await.unwrap();
    stalled.list(32).await.unwrap();
    soon(async || while caller.fetch(&asked(), &piece(), FIRST, 1).await.is_err() {}).await;
    assert_eq!(rest(&mut stalled).await.unwrap_err().reason(), "cut_short");
}

#[tokio::test]
async fn streams_end_with_their_round() {
    let peer = Peer::start(Setting::default()).await;
    let caller = peer.caller().await;
    peer.keeper.put(piece(), Kept { stuck: true, ..whole(1) });
    let mut stream = caller.fetch(&asked(), &piece(), FIRST, 2).await.unwrap();
    stream.list(1).await.unwrap();
    stream.next().await.unwrap().unwrap();
    peer.round.cancel();
    let error = stream.next().await.unwrap_err();
    assert!(error.to_string().contains("stopping"), "{error}");
}

#[tokio::test]
async fn who_stalls_is_silent() {
    let peer = Peer::start(Setting::default()).await;
    let url = format!("http://{}", peer.addr);
    let caller = peer.caller_at(&url, Duration::from_millis(200)).await;
    peer.keeper.put(piece(), Kept { stuck: true, ..whole(1) });
    let mut stream = caller.fetch(&asked(), &piece(), FIRST, 2).await.unwrap();
    stream.list(1).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(stream.next().await.unwrap_err().reason(), "silent");

    peer.keeper.put(piece(), wanted(3));
    let stuck = ready(chunks(1)).chain(stream::pending());
    let error = caller.push(&asked(), &piece(), list(&chunks(3)), stuck.boxed()).await.unwrap_err();
    assert_eq!(error.reason(), "silent");
}

#[tokio::test]
async fn a_push_that_stalls_is_ended_by_the_receiver() {
    let idle = Duration::from_millis(200);
    let peer = Peer::start(Setting { idle, ..Setting::default() }).await;
    let caller = peer.caller().await;
    peer.keeper.put(piece(), wanted(3));
    let stuck = ready(chunks(1)).chain(stream::pending());
    let error = caller.push(&asked(), &piece(), list(&chunks(3)), stuck.boxed()).await.unwrap_err();
    assert!(error.to_string().contains("stalled"), "{error}");
    assert_eq!(peer.keeper.kept(&piece()).unwrap().chunks, chunks(1));
}

/// Passes connections on until told to cut them; new ones go through again.
async fn proxy(to: SocketAddr, shutdown: &Shutdown) -> (SocketAddr, watch::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (cut, cuts) = watch::channel(());
    let stop = shutdown.clone();
    shutdown.spawn(async move {
        loop {
            let mut inside = tokio::select! {
                accepted = listener.accept() => accepted.unwrap().0,
                () = stop.cancelled() => return,
            };
            let mut cuts = cuts.clone();
            cuts.mark_unchanged();
            let stopped = stop.clone();
            stop.spawn(async move {
                let mut outside = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut inside, &mut outside) => {}
                    _ = cuts.changed() => {}
                    () = stopped.cancelled() => {}
                }
            });
        }
    });
    (addr, cut)
}

#[tokio::test]
async fn a_connection_that_is_cut_ends_the_stream_and_a_later_call_goes_through() {
    let peer = Peer::start(Setting::default()).await;
    let (addr, cut) = proxy(peer.addr, &peer.shutdown).await;
    let caller = peer.caller_at(&format!("http://{addr}"), Duration::from_secs(60)).await;
    peer.keeper.put(piece(), Kept { stuck: true, ..whole(3) });
    let mut stream = caller.fetch(&asked(), &piece(), FIRST, 4).await.unwrap();
    stream.list(3).await.unwrap();
    for chunk in chunks(3) {
        assert_eq!(stream.next().await.unwrap(), Some(chunk));
    }
    cut.send(()).unwrap();
    assert_eq!(stream.next().await.unwrap_err().reason(), "cut_short");
    let mut stream = soon(async || {
        loop {
            if let Ok(stream) = caller.fetch(&asked(), &piece(), FIRST + 1, 1).await {
                break stream;
            }
        }
    })
    .await;
    stream.list(3).await.unwrap();
    assert_eq!(rest(&mut stream).await.unwrap(), chunks(3)[1..2]);
}

fn ready(chunks: Vec<Bytes>) -> BoxStream<'static, io::Result<Bytes>> {
    stream::iter(chunks.into_iter().map(Ok)).boxed()
}

async fn push(caller: &Caller, chunks: Vec<Bytes>, of: u32) -> Result<bool, CallError> {
    caller.push(&asked(), &piece(), list(&self::chunks(of)), ready(chunks)).await
}

#[tokio::test]
async fn what_is_brought_is_taken_whole() {
    let peer = Peer::start(Setting::default()).await;
    let caller = peer.caller().await;
    peer.keeper.put(piece(), wanted(7));
    assert!(push(&caller, chunks(7), 7).await.unwrap());
    assert_eq!(peer.keeper.kept(&piece()).unwrap().chunks, chunks(7));
    // Again: there is nothing to take, and that is said.
    assert!(push(&caller, chunks(7), 7).await.unwrap());
    let unwanted = Data::Reduced(Digest([1; 32]));
    let error = caller.push(&asked(), &unwanted, list(&[]), ready(Vec::new())).await.unwrap_err();
    assert!(error.to_string().contains("not_wanted"), "{error}");
}

#[tokio::test]
async fn a_push_goes_on_where_one_has_ended() {
    let peer = Peer::start(Setting::default()).await;
    let caller = peer.caller().await;
    peer.keeper.put(piece(), wanted(7));
    let error = push(&caller, chunks(3), 7).await.unwrap_err();
    assert!(error.to_string().contains("cut_short"), "{error}");
    assert_eq!(peer.keeper.kept(&piece()).unwrap().chunks, chunks(3));

    let failing = ready(chunks(5)).chain(stream::iter([Err(io::Error::other("the disk fails"))]));
    let error =
        caller.push(&asked(), &piece(), list(&chunks(7)), failing.boxed()).await.unwrap_err();
    assert_eq!(error.reason(), "own_fault");
    assert_eq!(peer.keeper.kept(&piece()).unwrap().chunks, chunks(5));

    assert!(push(&caller, chunks(7), 7).await.unwrap());
    assert_eq!(peer.keeper.kept(&piece()).unwrap().chunks, chunks(7));
}

#[tokio::test]
async fn garbage_that_is_brought_is_refused_and_what_was_right_is_kept() {
    let peer = Peer::start(Setting::default()).await;
    let caller = peer.caller().await;
    peer.keeper.put(piece(), wanted(7));
    let mut wrong = chunks(7);
    wrong[4] = Bytes::from_static(b"something else");
    let error = push(&caller, wrong, 7).await.unwrap_err();
    assert!(error.to_string().contains("garbage"), "{error}");
    assert_eq!(peer.keeper.kept(&piece()).unwrap().chunks, chunks(4));
    let error = push(&caller, chunks(7), 8).await.unwrap_err();
    assert!(error.to_string().contains("longer than asked for"), "{error}");
}

#[tokio::test]
async fn a_pusher_that_dies_leaves_its_room_to_the_next() {
    let limits = Limits { requests: 10_000, transfers: 1 };
    let peer = Peer::start(Setting { limits, ..Setting::default() }).await;
    let (addr, cut) = proxy(peer.addr, &peer.shutdown).await;
    let dying = peer.caller_at(&format!("http://{addr}"), Duration::from_secs(60)).await;
    peer.keeper.put(piece(), wanted(7));
    let stuck = ready(chunks(2)).chain(stream::once(async move {
        cut.send(()).unwrap();
        std::future::pending().await
    }));
    let error = dying.push(&asked(), &piece(), list(&chunks(7)), stuck.boxed()).await.unwrap_err();
    assert_eq!(error.reason(), "not_reached", "{error}");

    let caller = peer.caller().await;
    soon(async || while push(&caller, chunks(7), 7).await.is_err() {}).await;
    assert_eq!(peer.keeper.kept(&piece()).unwrap().chunks, chunks(7));
}
