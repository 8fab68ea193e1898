//! Exchanges, and the certificates that they are told through.

use std::time::Duration;

use domain::RoundId;
use kit::Certificate;
use tokio::net::TcpListener;

use super::keeper::{ASKED, ASKER, Peer, ROUND, Setting, tells};
use crate::{
    call::CallError,
    guests::{Limits, Open},
    testing::hotkey,
};

#[tokio::test]
async fn statements_go_both_ways_and_are_their_authors() {
    let peer = Peer::start(Setting::default()).await;
    let caller = peer.caller().await;
    for n in 1..3 {
        let told = caller.exchange(&hotkey(ASKED), &tells(ASKER, n)).await.unwrap();
        assert_eq!(told.statements[0].said(), tells(ASKED, n).statements[0].said());
    }
    let heard = peer.keeper.heard.lock().unwrap();
    assert_eq!(heard.len(), 2);
    for ((from, told), n) in heard.iter().zip(1..) {
        assert_eq!(*from, hotkey(ASKER));
        assert_eq!(told.statements[0].said(), tells(ASKER, n).statements[0].said());
    }
}

#[tokio::test]
async fn over_tls_the_certificate_is_vouched_for_by_the_hotkey() {
    let certificate = Certificate::self_signed().unwrap();
    let names = Some(certificate.fingerprint());
    let peer = Peer::start(Setting { shows: Some(certificate), names, ..Setting::default() }).await;
    let caller = peer.caller().await;
    for n in 1..3 {
        assert!(caller.exchange(&hotkey(ASKED), &tells(ASKER, n)).await.is_ok());
    }
}

#[tokio::test]
async fn another_certificate_than_the_named_one_is_noticed() {
    let own = Certificate::self_signed().unwrap();
    let named = Some(Certificate::self_signed().unwrap().fingerprint());
    // Somebody in between; a proxy that nobody told of; a way around TLS.
    for (shows, names) in [(Some(own.clone()), named), (Some(own), None), (None, named)] {
        let peer = Peer::start(Setting { shows, names, ..Setting::default() }).await;
        let caller = peer.caller().await;
        for _ in 0..2 {
            let error = caller.exchange(&hotkey(ASKED), &tells(ASKER, 1)).await.unwrap_err();
            assert!(matches!(error, CallError::OtherCertificate), "{error}");
            assert_eq!(error.reason(), "other_certificate");
        }
    }
}

#[tokio::test]
async fn nobody_there_is_said_as_such() {
    let peer = Peer::start(Setting::default()).await;
    let addr = testkit::unused_addr().unwrap();
    let caller = peer.caller_at(&format!("http://{addr}"), Duration::from_secs(60)).await;
    let error = caller.exchange(&hotkey(ASKED), &tells(ASKER, 1)).await.unwrap_err();
    assert_eq!(error.reason(), "not_reached");
    let error = caller.exchange(&hotkey(ASKER), &tells(ASKER, 1)).await.unwrap_err();
    assert_eq!(error.reason(), "not_found");
}

#[tokio::test]
async fn a_server_that_takes_a_connection_and_says_nothing_is_silent() {
    let peer = Peer::start(Setting::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let caller = peer.caller_at(&url, Duration::from_millis(200)).await;
    let error = caller.exchange(&hotkey(ASKED), &tells(ASKER, 1)).await.unwrap_err();
    assert_eq!(error.reason(), "silent");
}

#[tokio::test]
async fn a_newer_round_takes_the_place_of_an_older_one_and_never_the_reverse() {
    let peer = Peer::start(Setting::default()).await;
    let caller = peer.caller().await;
    let open = |round: u64| {
        let limits = Limits { requests: 1, transfers: 1 };
        let (me, others, stop) = (hotkey(ASKED), [hotkey(ASKER)], peer.round.clone());
        Open::new(RoundId(round), me, others, limits, peer.keeper.clone(), stop)
    };
    peer.desk.open(open(ROUND.0 - 1));
    assert!(caller.exchange(&hotkey(ASKED), &tells(ASKER, 1)).await.is_ok());
    peer.desk.open(open(ROUND.0 + 1));
    let error = caller.exchange(&hotkey(ASKED), &tells(ASKER, 1)).await.unwrap_err();
    assert_eq!(error.reason(), "refused");
    assert!(error.to_string().contains("old_round"), "{error}");
}
