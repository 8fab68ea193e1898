//! A validator of the round that forges, replays and asks too much, and one that answers so.

use std::{sync::Mutex, time::Duration};

use domain::RoundId;
use futures::stream;
use kit::GrpcServer;
use merge::{Signature, Signed};
use proto::peer::v2::{
    Chunk, PushPart, PushReceipt, SignedMessage,
    peer_service_client::PeerServiceClient,
    peer_service_server::{PeerService, PeerServiceServer},
    push_part::Part,
};
use tonic::{Code, Request, Response, Status, Streaming};

use super::keeper::{ASKED, ASKER, Kept, Peer, ROUND, STRANGER, Setting, piece, tells};
use crate::{
    guests::Limits,
    message::{Body, Envelope, Exchange, Fetch, Push},
    testing::{hotkey, sign},
};

fn envelope(nonce: u8) -> Envelope {
    Envelope {
        round: ROUND,
        sender: hotkey(ASKER),
        receiver: hotkey(ASKED),
        nonce: [nonce; 16],
        in_reply_to: None,
    }
}

fn sealed<M: Body>(by: u8, message: &M) -> SignedMessage {
    let body = message.encode();
    let signature = sign(by, &M::digest(&body)).to_vec().into();
    SignedMessage { body, signature }
}

fn exchange(envelope: Envelope) -> Exchange {
    Exchange::new(envelope, &tells(ASKER, 1), None)
}

type Client = PeerServiceClient<kit::Channel>;

fn client(peer: &Peer) -> Client {
    let url = format!("http://{}", peer.addr);
    Client::new(kit::channel(&url, &kit::Tls::default()).unwrap())
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, reason: &str) {
    let status = answer.unwrap_err();
    assert!(status.message().starts_with(&format!("{reason}:")), "{status:?}");
    assert_eq!(status.code(), code, "{}", status.message());
}

#[tokio::test]
async fn forged_replayed_and_misdirected_messages_are_refused_with_their_reason() {
    let peer = Peer::start(Setting::default()).await;
    let mut client = client(&peer);
    let good = sealed(ASKER, &exchange(envelope(1)));
    assert!(client.exchange(good.clone()).await.is_ok());
    assert_refused(client.exchange(good).await, Code::PermissionDenied, "replayed");

    let mut say = async |by, envelope| client.exchange(sealed(by, &exchange(envelope))).await;
    let forged = say(STRANGER, envelope(2)).await;
    assert_refused(forged, Code::Unauthenticated, "bad_signature");
    let stranger = say(STRANGER, Envelope { sender: hotkey(STRANGER), ..envelope(3) }).await;
    assert_refused(stranger, Code::PermissionDenied, "not_a_validator");
    let mirrored = say(ASKED, Envelope { sender: hotkey(ASKED), ..envelope(4) }).await;
    assert_refused(mirrored, Code::PermissionDenied, "not_a_validator");
    let elsewhere = say(ASKER, Envelope { receiver: hotkey(STRANGER), ..envelope(5) }).await;
    assert_refused(elsewhere, Code::PermissionDenied, "wrong_receiver");
    let future = say(ASKER, Envelope { round: RoundId(ROUND.0 + 1), ..envelope(6) }).await;
    assert_refused(future, Code::Unavailable, "not_started");
    let past = say(ASKER, Envelope { round: RoundId(ROUND.0 - 1), ..envelope(7) }).await;
    assert_refused(past, Code::FailedPrecondition, "old_round");

    let as_fetch = client.fetch(sealed(ASKER, &exchange(envelope(8)))).await;
    assert_refused(as_fetch, Code::Unauthenticated, "bad_signature");
    assert_eq!(peer.keeper.heard.lock().unwrap().len(), 1, "only the first was heard");
}

#[tokio::test]
async fn a_message_with_a_statement_that_is_not_its_authors_is_refused_as_a_whole() {
    let peer = Peer::start(Setting::default()).await;
    let mut message = exchange(envelope(1));
    let said = tells(ASKED, 1).statements[0].said().clone();
    let signature = Signature(sign(ASKER, &said.digest().0));
    message.exchange.statements.push(Signed { said, signature });
    let answer = client(&peer).exchange(sealed(ASKER, &message)).await;
    assert_refused(answer, Code::InvalidArgument, "bad_statement");
    assert!(peer.keeper.heard.lock().unwrap().is_empty());
}

#[tokio::test]
async fn who_asks_too_often_is_refused_whatever_it_asks() {
    let limits = Limits { requests: 2, transfers: 8 };
    let peer = Peer::start(Setting { limits, ..Setting::default() }).await;
    let mut client = client(&peer);
    assert!(client.exchange(sealed(ASKER, &exchange(envelope(1)))).await.is_ok());
    let fetch = |nonce| Fetch { envelope: envelope(nonce), data: piece(), first: 0, count: 0 };
    let missing = client.fetch(sealed(ASKER, &fetch(2))).await;
    assert_refused(missing, Code::NotFound, "not_here");
    let third = client.fetch(sealed(ASKER, &fetch(3))).await;
    assert_refused(third, Code::ResourceExhausted, "too_many");
}

#[tokio::test]
async fn a_push_is_one_request_then_its_bytes_and_nothing_else() {
    let peer = Peer::start(Setting::default()).await;
    let mut client = client(&peer);
    let mut push = async |parts: Vec<Part>| {
        let parts = parts.into_iter().map(|part| PushPart { part: Some(part) });
        client.push(stream::iter(parts.collect::<Vec<_>>())).await
    };
    let request =
        |nonce| Part::Request(sealed(ASKER, &Push { envelope: envelope(nonce), data: piece() }));
    let chunk = Part::Chunk(Chunk { part: None });
    assert_refused(push(vec![chunk.clone()]).await, Code::InvalidArgument, "malformed");
    assert_refused(push(Vec::new()).await, Code::Aborted, "cut_short");
    assert_refused(push(vec![request(1)]).await, Code::FailedPrecondition, "not_wanted");

    peer.keeper.put(piece(), Kept { whole: 2, ..Kept::default() });
    let malformed = push(vec![request(2), chunk]).await;
    assert_refused(malformed, Code::InvalidArgument, "malformed");
    let twice = push(vec![request(3), request(4)]).await;
    assert_refused(twice, Code::InvalidArgument, "malformed");
    assert_refused(push(vec![request(5)]).await, Code::Aborted, "cut_short");
}

/// Answers every exchange with what it was told to answer, and every fetch with nothing.
struct Liar(Mutex<Vec<SignedMessage>>);

#[tonic::async_trait]
impl PeerService for Liar {
    type FetchStream = stream::Empty<Result<Chunk, Status>>;

    async fn exchange(&self, _: Request<SignedMessage>) -> Result<Response<SignedMessage>, Status> {
        let answer = self.0.lock().unwrap().pop();
        answer.map(Response::new).ok_or_else(|| Status::unknown("nothing more to say"))
    }

    async fn fetch(
        &self,
        _: Request<SignedMessage>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        Ok(Response::new(stream::empty()))
    }

    async fn push(&self, _: Request<Streaming<PushPart>>) -> Result<Response<PushReceipt>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

#[tokio::test]
async fn an_answer_that_is_old_or_somebody_elses_is_not_believed() {
    let peer = Peer::start(Setting::default()).await;
    let old = client(&peer).exchange(sealed(ASKER, &exchange(envelope(1)))).await;
    let old = old.unwrap().into_inner();
    let mirrored = sealed(ASKER, &exchange(envelope(9)));
    let garbage = SignedMessage { body: vec![7; 100].into(), signature: vec![7; 64].into() };
    let answers = vec![old, mirrored, garbage];

    let count = answers.len();
    let server = GrpcServer::bind_public("127.0.0.1:0".parse().unwrap(), None).await.unwrap();
    let url = format!("http://{}", server.local_addr());
    let server = server.add(PeerServiceServer::new(Liar(Mutex::new(answers))));
    let stop = peer.shutdown.clone();
    peer.shutdown.spawn(async move { kit::serve(server, stop).await.unwrap() });
    let caller = peer.caller_at(&url, Duration::from_secs(60)).await;
    for _ in 0..count {
        let error = caller.exchange(&hotkey(ASKED), &tells(ASKER, 1)).await.unwrap_err();
        assert_eq!(error.reason(), "untrusted", "{error}");
    }
    let mut chunks = caller.fetch(&hotkey(ASKED), &piece(), 0, 0).await.unwrap();
    assert_eq!(chunks.list(1).await.unwrap_err().reason(), "cut_short");
}
