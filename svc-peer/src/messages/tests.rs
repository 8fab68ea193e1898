use proptest::prelude::*;
use schnorrkel::Keypair;

use super::*;

fn keypair(seed: u8) -> Keypair {
    let secret = schnorrkel::MiniSecretKey::from_bytes(&[seed; 32]).unwrap();
    secret.expand_to_keypair(schnorrkel::ExpansionMode::Ed25519)
}

fn hotkey(seed: u8) -> Hotkey {
    Hotkey::from_public_key(keypair(seed).public.to_bytes())
}

fn sign(seed: u8, digest: &[u8; 32]) -> [u8; 64] {
    keypair(seed).sign_simple(CONTEXT, &signed_bytes(digest)).to_bytes()
}

fn envelope(from: u8, to: u8) -> Envelope {
    Envelope {
        round: RoundId(336),
        sender: hotkey(from),
        receiver: hotkey(to),
        nonce: [from; 16],
        in_reply_to: None,
    }
}

fn hello(envelope: Envelope) -> Hello {
    let offer = Offer {
        group: ExpertGroup(1),
        base: ModelHash([3; 24]),
        layout: [4; 32],
        has_gradient: true,
        protocol: PROTOCOL,
    };
    Hello { envelope, offer, met: [hotkey(1), hotkey(2)].into() }
}

fn sealed<M: Body>(by: u8, message: &M) -> (Bytes, [u8; 64]) {
    let body = message.encode();
    let signature = sign(by, &M::digest(&body));
    (body, signature)
}

fn reason<T: std::fmt::Debug>(refused: Result<T, Refused>) -> &'static str {
    refused.unwrap_err().reason()
}

#[test]
fn every_message_is_read_as_it_was_written() {
    let said = hello(Envelope { in_reply_to: Some([9; 16]), ..envelope(1, 2) });
    let (body, signature) = sealed(1, &said);
    assert_eq!(Hello::open(&body, &signature).unwrap(), said);

    let said = SliceRequest {
        envelope: envelope(1, 2),
        slice: 3,
        members: [hotkey(1), hotkey(2)].into(),
        what: What::Reduced,
    };
    let (body, signature) = sealed(1, &said);
    assert_eq!(SliceRequest::open(&body, &signature).unwrap(), said);

    let said = Confirm { envelope: envelope(1, 2), digest: [8; 32] };
    let (body, signature) = sealed(1, &said);
    assert_eq!(Confirm::open(&body, &signature).unwrap(), said);
}

#[test]
fn a_message_that_somebody_else_signed_or_changed_is_refused() {
    let (body, signature) = sealed(2, &hello(envelope(1, 2)));
    assert_eq!(reason(Hello::open(&body, &signature)), "bad_signature");

    let (_, signature) = sealed(1, &hello(envelope(1, 2)));
    let changed = hello(envelope(1, 3)).encode();
    assert_eq!(reason(Hello::open(&changed, &signature)), "bad_signature");
    assert_eq!(reason(Hello::open(&changed, &signature[..63])), "bad_signature");
}

#[test]
fn a_signature_of_one_kind_is_worth_nothing_as_another() {
    let body = Confirm { envelope: envelope(1, 2), digest: [8; 32] }.encode();
    let kinds = [Kind::Hello, Kind::Slice, Kind::Chunk, Kind::Confirm];
    for signed in kinds {
        let signature = sign(1, &signed.digest(&[&body]));
        assert_eq!(Confirm::open(&body, &signature).is_ok(), signed == Kind::Confirm);
    }
}

#[test]
fn an_answer_must_be_the_askeds_for_the_asker_in_the_round_and_to_the_question() {
    let asked = envelope(1, 2);
    let good = Envelope { in_reply_to: Some(asked.nonce), ..envelope(2, 1) };
    let answer = |by: u8, envelope: Envelope| {
        let (body, signature) = sealed(by, &hello(envelope));
        Hello::open_answer(&asked, &body, &signature)
    };
    assert!(answer(2, good.clone()).is_ok());
    assert_eq!(reason(answer(3, Envelope { sender: hotkey(3), ..good.clone() })), "wrong_sender");
    assert_eq!(
        reason(answer(2, Envelope { receiver: hotkey(3), ..good.clone() })),
        "wrong_receiver"
    );
    assert_eq!(reason(answer(2, Envelope { round: RoundId(808), ..good.clone() })), "wrong_round");
    assert_eq!(reason(answer(2, Envelope { in_reply_to: None, ..good.clone() })), "replayed");
    assert_eq!(reason(answer(2, Envelope { in_reply_to: Some([7; 16]), ..good })), "replayed");
}

#[test]
fn members_out_of_order_or_named_twice_are_malformed() {
    let (mut one, mut other) = (hotkey(1).to_string(), hotkey(2).to_string());
    if one > other {
        std::mem::swap(&mut one, &mut other);
    }
    assert!(hotkeys("met", &[one.clone(), other.clone()]).is_ok());
    assert!(hotkeys("met", &[other, one.clone()]).is_err());
    assert!(hotkeys("met", &[one.clone(), one]).is_err());
}

#[test]
fn a_body_that_is_too_long_is_not_read() {
    let body = vec![0; MAX_BODY + 1];
    assert_eq!(reason(Hello::open(&body, &[0; 64])), "malformed");
}

proptest! {
    #[test]
    fn any_bytes_are_a_named_refusal_for_want_of_a_signature(
        body in prop::collection::vec(any::<u8>(), 0..300),
        signature in prop::collection::vec(any::<u8>(), 0..70),
    ) {
        prop_assert!(Hello::open(&body, &signature).is_err());
        prop_assert!(SliceRequest::open(&body, &signature).is_err());
        prop_assert!(Confirm::open(&body, &signature).is_err());
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused(at in 0_usize..10_000, bit in 0_u8..8) {
        let (body, signature) = sealed(1, &hello(envelope(1, 2)));
        let mut all = [&body[..], &signature[..]].concat();
        let at = at % all.len();
        all[at] ^= 1 << bit;
        let (body, signature) = all.split_at(body.len());
        prop_assert!(Hello::open(body, signature).is_err());
    }
}
