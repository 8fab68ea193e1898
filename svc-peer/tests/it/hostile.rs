//! A validator of the round that forges, replays and asks for what is not its: refused with a
//! reason.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use domain::{ExpertGroup, Hotkey, RoundId};
use proto::peer::v1 as wire;
use svc_peer::{
    messages::{Body, Confirm, Envelope, Hello, Offer, PROTOCOL, SliceRequest, What},
    reduce,
};
use tonic::{Code, Status};

use crate::network::{Member, ROUND, hotkey, miner, sign};

pub(crate) const HONEST: u8 = 1;
pub(crate) const LIAR: u8 = 2;
pub(crate) const STRANGER: u8 = 3;

pub(crate) fn both() -> BTreeSet<Hotkey> {
    [hotkey(HONEST), hotkey(LIAR)].into()
}

pub(crate) fn place(seed: u8) -> usize {
    both().iter().position(|member| *member == hotkey(seed)).unwrap()
}

pub(crate) fn envelope(nonce: u8) -> Envelope {
    Envelope {
        round: RoundId(ROUND),
        sender: hotkey(LIAR),
        receiver: hotkey(HONEST),
        nonce: [nonce; 16],
        in_reply_to: None,
    }
}

pub(crate) fn sealed<M: Body>(by: u8, message: &M) -> (Bytes, Bytes) {
    let body = message.encode();
    let signature = sign(by, &M::digest(&body)).to_vec().into();
    (body, signature)
}

fn offer(honest: &Member, layout: [u8; 32]) -> Offer {
    let base = honest.base.model_hash.parse().unwrap();
    Offer { group: ExpertGroup(0), base, layout, has_gradient: true, protocol: PROTOCOL }
}

async fn say_hello(to: &Member, by: u8, hello: &Hello) -> Result<Hello, Status> {
    let (body, signature) = sealed(by, hello);
    let request = wire::SignedHello { body, signature };
    let answer = to.peer().hello(request).await?.into_inner();
    Ok(Hello::open_answer(&hello.envelope, &answer.body, &answer.signature).unwrap())
}

#[track_caller]
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    code: Code,
    reason: &str,
) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(status.message().starts_with(&format!("{reason}:")), "{}", status.message());
}

async fn honest(others: &[Hotkey]) -> Member {
    let mut honest = Member::new(HONEST, 0.0).await;
    honest.config.answer_wait = Duration::from_millis(200);
    honest.start().await;
    let mut request = honest.request(others, &[miner(11, "miner1_g0.safetensors", 1.0)]);
    request.deadline_ms = 600_000;
    honest.begin(request).await;
    honest
}

/// Says hello until the honest validator has added its gradient up.
async fn hello_when_ready(honest: &Member, met: BTreeSet<Hotkey>) -> Hello {
    for nonce in 100.. {
        let offer = offer(honest, [0; 32]);
        let hello = Hello { envelope: envelope(nonce), offer, met: met.clone() };
        match say_hello(honest, LIAR, &hello).await {
            Ok(answer) => return answer,
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{}", status.message()),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    unreachable!("there are nonces enough")
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_replayed_and_misdirected_messages_are_refused_with_their_reason() {
    let honest = honest(&[hotkey(LIAR)]).await;
    // Another layout: it is answered and left out, and the merge does not go on with it.
    let answer = hello_when_ready(&honest, both()).await;
    assert_eq!(answer.envelope.sender, honest.hotkey);

    let hello = |envelope| Hello { envelope, offer: offer(&honest, [0; 32]), met: both() };
    let good = hello(envelope(1));
    assert!(say_hello(&honest, LIAR, &good).await.is_ok());
    let again = say_hello(&honest, LIAR, &good).await;
    assert_refused(again, Code::PermissionDenied, "replayed");

    let forged = say_hello(&honest, STRANGER, &hello(envelope(2))).await;
    assert_refused(forged, Code::Unauthenticated, "bad_signature");

    let stranger = Envelope { sender: hotkey(STRANGER), ..envelope(3) };
    let stranger = say_hello(&honest, STRANGER, &hello(stranger)).await;
    assert_refused(stranger, Code::PermissionDenied, "not_a_validator");

    let mirrored = Envelope { sender: hotkey(HONEST), ..envelope(4) };
    let mirrored = say_hello(&honest, HONEST, &hello(mirrored)).await;
    assert_refused(mirrored, Code::PermissionDenied, "not_a_validator");

    let elsewhere = Envelope { receiver: hotkey(STRANGER), ..envelope(5) };
    let elsewhere = say_hello(&honest, LIAR, &hello(elsewhere)).await;
    assert_refused(elsewhere, Code::PermissionDenied, "wrong_receiver");

    let future = Envelope { round: RoundId(ROUND + 472), ..envelope(6) };
    let future = say_hello(&honest, LIAR, &hello(future)).await;
    assert_refused(future, Code::Unavailable, "not_started");

    let past = Envelope { round: RoundId(ROUND - 1), ..envelope(7) };
    let past = say_hello(&honest, LIAR, &hello(past)).await;
    assert_refused(past, Code::FailedPrecondition, "old_round");

    let confirm = Confirm { envelope: envelope(8), digest: [0; 32] };
    let (body, signature) = sealed(LIAR, &confirm);
    let as_hello = wire::SignedHello { body, signature };
    let as_hello = honest.peer().hello(as_hello).await;
    assert_refused(as_hello, Code::InvalidArgument, "malformed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_is_for_its_owner_among_the_same_members_only() {
    let honest = honest(&[hotkey(LIAR)]).await;
    let slice = |nonce, index, what, members: BTreeSet<Hotkey>| {
        let request = SliceRequest { envelope: envelope(nonce), slice: index, members, what };
        let (body, signature) = sealed(LIAR, &request);
        wire::SliceRequest { body, signature }
    };
    let mine = place(LIAR);
    let ask = async |request| honest.peer().get_gradient(request).await.map(|_| ());
    let early = ask(slice(1, mine, What::Gradient, both())).await;
    assert_refused(early, Code::Unavailable, "not_ready");

    // A compatible hello: nobody else can come, the members are agreed.
    let mut hello = Hello { envelope: envelope(2), offer: offer(&honest, [0; 32]), met: both() };
    hello.offer.layout = layout(&honest);
    while say_hello(&honest, LIAR, &hello).await.is_err() {
        hello.envelope.nonce[0] += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let other = [hotkey(LIAR), hotkey(HONEST), hotkey(STRANGER)].into();
    let other = ask(slice(51, mine, What::Gradient, other)).await;
    assert_refused(other, Code::FailedPrecondition, "members_differ");
    let foreign = ask(slice(52, place(HONEST), What::Gradient, both())).await;
    assert_refused(foreign, Code::InvalidArgument, "foreign_slice");
    let disguised = ask(slice(53, mine, What::Reduced, both())).await;
    assert_refused(disguised, Code::InvalidArgument, "malformed");
    let not_its_own = slice(54, mine, What::Reduced, both());
    let not_its_own = honest.peer().get_reduced(not_its_own).await.map(|_| ());
    assert_refused(not_its_own, Code::InvalidArgument, "foreign_slice");
    assert!(ask(slice(55, mine, What::Gradient, both())).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_that_asks_too_often_is_refused() {
    let mut honest = Member::new(HONEST, 0.0).await;
    honest.config.max_requests = 3;
    honest.start().await;
    let mut request = honest.request(&[hotkey(LIAR)], &[]);
    request.deadline_ms = 600_000;
    honest.begin(request).await;
    let mut answers = Vec::new();
    for nonce in 0..4 {
        let offer = offer(&honest, [0; 32]);
        let hello = Hello { envelope: envelope(nonce), offer, met: both() };
        answers.push(say_hello(&honest, LIAR, &hello).await);
    }
    assert_refused(answers.pop().unwrap(), Code::ResourceExhausted, "too_many");
}

fn layout(honest: &Member) -> [u8; 32] {
    let folder = honest.artifacts().join(&honest.base.prefix);
    let manifest = checkpoint::Manifest::read(&folder).unwrap();
    let layout = manifest.layout(ExpertGroup(0)).unwrap();
    reduce::layout_digest(&layout.tensors, &checkpoint::OuterSgd::default(), None)
}
