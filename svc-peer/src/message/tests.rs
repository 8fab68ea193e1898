use domain::{ExpertGroup, ModelHash};
use merge::{
    Choice, Claim, Gradient, MAX_BYTES, MAX_ITEMS, MAX_ROSTER, MAX_TEXT, Offer, PROTOCOL, Said,
    Signed, Slice, Stage, Statement, Terms,
};
use proptest::prelude::*;

use super::*;
use crate::testing::{hotkey, sign};

fn envelope(from: u8, to: u8) -> Envelope {
    Envelope {
        round: RoundId(336),
        sender: hotkey(from),
        receiver: hotkey(to),
        nonce: [from; 16],
        in_reply_to: None,
    }
}

fn any_digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn any_digests() -> impl Strategy<Value = Vec<Digest>> {
    prop::collection::vec(any_digest(), 0..5)
}

fn any_hotkey() -> impl Strategy<Value = Hotkey> {
    any::<[u8; 32]>().prop_map(Hotkey::from_public_key)
}

prop_compose! {
    fn any_terms()(
        numbers in any::<[u32; 5]>(),
        base: [u8; 24],
        layout in any_digest(),
        roster in any_digest(),
        codec in "[ -~]{0,64}",
        reduction in "[ -~]{0,64}",
        max_faults: u8,
        deadline_ms: u64,
    ) -> Terms {
        let [protocol, group, chunks, min_group, target_group] = numbers;
        Terms {
            protocol,
            group: ExpertGroup(group),
            base: ModelHash(base),
            layout,
            codec,
            reduction,
            roster,
            chunks,
            min_group,
            target_group,
            max_faults,
            deadline_ms,
        }
    }
}

fn any_choice() -> impl Strategy<Value = Choice> {
    let stage = prop_oneof![Just(Stage::Group), any_digest().prop_map(Stage::Result)];
    (stage, any_digests()).prop_map(|(stage, items)| Choice { stage, items })
}

fn any_statement() -> impl Strategy<Value = Statement> {
    let gradient =
        (any::<u64>(), any_digest()).prop_map(|(bytes, chunks)| Gradient { bytes, chunks });
    let offer = (any_terms(), prop::option::of(gradient), any::<bool>()).prop_map(
        |(terms, gradient, callable)| Statement::Offer(Offer { terms, gradient, callable }),
    );
    let contributors = prop::collection::vec(any_hotkey(), 0..4);
    let slice = (any_digest(), any::<(u16, u16)>(), contributors, any_digest()).prop_map(
        |(group, (slice, attempt), contributors, chunks)| {
            Statement::Slice(Slice { group, slice, attempt, contributors, chunks })
        },
    );
    let claim = (any_digest(), any::<u32>())
        .prop_map(|(statement, chunk)| Statement::Claim(Claim { statement, chunk }));
    prop_oneof![
        offer,
        slice,
        claim,
        any_digests().prop_map(Statement::Vouch),
        any_choice().prop_map(Statement::Ready),
        any_choice().prop_map(Statement::Final),
    ]
}

fn any_data() -> impl Strategy<Value = Data> {
    prop_oneof![
        (any_hotkey(), any::<u16>()).prop_map(|(giver, slice)| Data::Piece { giver, slice }),
        any_digest().prop_map(Data::Reduced),
    ]
}

fn any_envelope() -> impl Strategy<Value = Envelope> {
    let nonces = any::<([u8; 16], Option<[u8; 16]>)>();
    (any::<u64>(), any_hotkey(), nonces).prop_map(|(round, receiver, (nonce, in_reply_to))| {
        Envelope { round: RoundId(round), sender: hotkey(1), receiver, nonce, in_reply_to }
    })
}

fn said(by: u8, what: Statement) -> Signed {
    let said = Said { round: RoundId(336), author: hotkey(by), what };
    let signature = Signature(sign(by, &said.digest().0));
    Signed { said, signature }
}

fn exchange(envelope: Envelope, statements: Vec<Signed>) -> Exchange {
    let exchange = merge::Exchange { incarnation: 7, group: None, had: None, statements };
    Exchange { envelope, exchange, certificate: None }
}

fn sealed<M: Body>(by: u8, message: &M) -> (Bytes, [u8; 64]) {
    let body = message.encode();
    let signature = sign(by, &M::digest(&body));
    (body, signature)
}

fn returns<M: Body + PartialEq + std::fmt::Debug>(message: &M) -> Result<(), TestCaseError> {
    let (body, signature) = sealed(1, message);
    prop_assert_eq!(&Envelope::peek(&body).unwrap(), message.envelope());
    prop_assert_eq!(&M::open(&body, &signature).unwrap(), message);
    Ok(())
}

fn reason<T: std::fmt::Debug>(refused: Result<T, Refused>) -> &'static str {
    refused.unwrap_err().reason()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn statements_of_every_kind_are_read_as_they_were_said_and_verify(
        envelope in any_envelope(),
        statements in prop::collection::vec((2_u8..5, any_statement()), 0..4),
        incarnation: u64,
        group in prop::option::of(any_digest()),
        had in prop::option::of(any_digest()),
        certificate: Option<[u8; 32]>,
    ) {
        let statements = statements.into_iter().map(|(by, what)| said(by, what)).collect();
        let exchange = merge::Exchange { incarnation, group, had, statements };
        let message = Exchange { envelope, exchange, certificate };
        returns(&message)?;
        let opened = message.exchange.clone().open(&Keys).unwrap();
        prop_assert_eq!(Exchange::new(message.envelope.clone(), &opened, certificate), message);
    }

    #[test]
    fn requests_are_read_as_they_were_written(
        envelope in any_envelope(), data in any_data(), first: u32, count: u32,
    ) {
        returns(&Push { envelope: envelope.clone(), data: data.clone() })?;
        let count = count.min(u32::MAX - first);
        returns(&Fetch { envelope, data, first, count })?;
    }

    #[test]
    fn a_statement_that_was_changed_is_not_its_authors(
        one in any_statement(), other in any_statement(),
    ) {
        let statement = Signed { said: said(2, other.clone()).said, ..said(2, one.clone()) };
        let opened = exchange(envelope(1, 2), vec![statement]).exchange.open(&Keys);
        prop_assert_eq!(opened.is_ok(), one == other);
    }

    #[test]
    fn any_bytes_are_a_named_refusal_for_want_of_a_signature(
        body in prop::collection::vec(any::<u8>(), 0..300),
        signature in prop::collection::vec(any::<u8>(), 0..70),
    ) {
        prop_assert!(Exchange::open(&body, &signature).is_err());
        prop_assert!(Fetch::open(&body, &signature).is_err());
        prop_assert!(Push::open(&body, &signature).is_err());
    }

    #[test]
    fn signed_garbage_is_read_without_a_panic(
        envelope in any_envelope(),
        garbage in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let head = Head { envelope: Some(envelope.to_wire()) }.encode_to_vec();
        let body = [head, garbage].concat();
        for open in [
            |body: &[u8]| Exchange::open(body, &sign(1, &Exchange::digest(body))).map(|_| ()),
            |body: &[u8]| Fetch::open(body, &sign(1, &Fetch::digest(body))).map(|_| ()),
            |body: &[u8]| Push::open(body, &sign(1, &Push::digest(body))).map(|_| ()),
        ] {
            if let Err(refused) = open(&body) {
                // Garbage may be a field that changes the envelope.
                prop_assert!(["malformed", "bad_signature"].contains(&refused.reason()));
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused(what in any_statement(), at: usize, bit in 0_u8..8) {
        let (body, signature) = sealed(1, &exchange(envelope(1, 2), vec![said(2, what)]));
        let mut all = [&body[..], &signature[..]].concat();
        let at = at % all.len();
        all[at] ^= 1 << bit;
        let (body, signature) = all.split_at(body.len());
        prop_assert!(Exchange::open(body, signature).is_err());
    }
}

#[test]
fn a_message_that_somebody_else_signed_or_changed_is_refused() {
    let message = |to| exchange(envelope(1, to), Vec::new());
    let (body, signature) = sealed(2, &message(2));
    assert_eq!(reason(Exchange::open(&body, &signature)), "bad_signature");

    let (_, signature) = sealed(1, &message(2));
    let changed = message(3).encode();
    assert_eq!(reason(Exchange::open(&changed, &signature)), "bad_signature");
    assert_eq!(reason(Exchange::open(&changed, &signature[..63])), "bad_signature");
}

#[test]
fn a_signature_of_one_kind_is_worth_nothing_as_another() {
    let push = Push { envelope: envelope(1, 2), data: Data::Reduced(Digest([5; 32])) };
    let body = push.encode();
    let opened: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| Push::open(&body, &sign(1, &kind.digest(&body))).is_ok())
        .collect();
    assert_eq!(opened, [Kind::Push]);
    // Nor is that of a statement with the same bytes.
    assert!(!Keys.verify(&hotkey(1), &body, &Signature(sign(1, &Push::digest(&body)))));
}

#[test]
fn an_answer_must_be_the_askeds_for_the_asker_in_the_round_and_to_the_question() {
    let asked = envelope(1, 2);
    let good = asked.answer([2; 16]);
    let answer = |by: u8, envelope: Envelope| {
        let (body, signature) = sealed(by, &exchange(envelope, Vec::new()));
        Exchange::open_answer(&asked, &body, &signature)
    };
    assert!(answer(2, good.clone()).is_ok());
    assert_eq!(reason(answer(3, good.clone())), "bad_signature");
    assert_eq!(reason(answer(3, Envelope { sender: hotkey(3), ..good.clone() })), "wrong_sender");
    assert_eq!(
        reason(answer(2, Envelope { receiver: hotkey(3), ..good.clone() })),
        "wrong_receiver"
    );
    assert_eq!(reason(answer(2, Envelope { round: RoundId(808), ..good.clone() })), "wrong_round");
    assert_eq!(reason(answer(2, Envelope { in_reply_to: None, ..good.clone() })), "replayed");
    assert_eq!(reason(answer(2, Envelope { in_reply_to: Some([7; 16]), ..good })), "replayed");
}

fn refused_field(wire: &wire::Exchange) -> &'static str {
    Exchange::decode(&wire.encode_to_vec()).unwrap_err().field
}

/// An encodable exchange around one statement.
fn wire_of(what: Statement) -> wire::Exchange {
    let body = exchange(envelope(1, 2), vec![said(1, what)]).encode();
    read(&body).unwrap()
}

fn offer(codec: String) -> Statement {
    let digest = Digest([4; 32]);
    let terms = Terms {
        protocol: PROTOCOL,
        group: ExpertGroup(1),
        base: ModelHash([3; 24]),
        layout: digest,
        codec,
        reduction: "mean".to_owned(),
        roster: digest,
        chunks: 9,
        min_group: 2,
        target_group: 8,
        max_faults: 1,
        deadline_ms: 60_000,
    };
    Statement::Offer(Offer { terms, gradient: None, callable: true })
}

#[test]
fn more_than_anything_honest_names_the_field() {
    let digest = Digest([4; 32]);
    assert_eq!(refused_field(&wire_of(offer("x".repeat(MAX_TEXT + 1)))), "terms.codec");
    assert_eq!(
        refused_field(&wire_of(Statement::Vouch(vec![digest; MAX_ITEMS + 1]))),
        "vouch.items"
    );
    let contributors = vec![hotkey(1); MAX_ROSTER + 1];
    let slice = Slice { group: digest, slice: 0, attempt: 0, contributors, chunks: digest };
    assert_eq!(refused_field(&wire_of(Statement::Slice(slice))), "slice.contributors");

    let mut many = wire_of(Statement::Vouch(Vec::new()));
    many.statements = vec![many.statements[0].clone(); MAX_STATEMENTS + 1];
    assert_eq!(refused_field(&many), "statements");
    assert_eq!(reason(Exchange::open(&vec![0; MAX_BODY + 1], &[0; 64])), "malformed");
}

#[test]
fn as_much_as_goes_into_an_exchange_fits_into_a_message() {
    let digest = Digest([0xff; 32]);
    let contributors = vec![hotkey(1); MAX_ROSTER];
    let (group, most) = (digest, u16::MAX);
    let largest = [
        offer("x".repeat(MAX_TEXT)),
        Statement::Slice(Slice { group, slice: most, attempt: most, contributors, chunks: digest }),
        Statement::Vouch(vec![digest; MAX_ITEMS]),
        Statement::Ready(Choice { stage: Stage::Result(digest), items: vec![digest; MAX_ITEMS] }),
    ];
    for what in largest {
        let one = said(1, what);
        let count = (MAX_BYTES / one.said.bytes().len()).min(MAX_STATEMENTS);
        assert!(count > 0);
        let body = exchange(envelope(1, 2), vec![one; count]).encode();
        assert!(body.len() <= MAX_BODY, "{count} statements take {} bytes", body.len());
    }
}

#[test]
fn numbers_that_do_not_fit_and_digests_of_another_length_name_the_field() {
    use wire::statement::What;

    let change = |what: Statement, change: fn(&mut What)| {
        let mut wire = wire_of(what);
        let statement = wire.statements[0].statement.as_mut().unwrap();
        change(statement.what.as_mut().unwrap());
        refused_field(&wire)
    };
    let field = change(offer("float32".to_owned()), |what| {
        let What::Offer(offer) = what else { unreachable!("it is an offer") };
        offer.terms.as_mut().unwrap().max_faults = 256;
    });
    assert_eq!(field, "terms.max_faults");
    let digest = Digest([4; 32]);
    let slice =
        Slice { group: digest, slice: 1, attempt: 0, contributors: Vec::new(), chunks: digest };
    let field = change(Statement::Slice(slice.clone()), |what| {
        let What::Slice(slice) = what else { unreachable!("it is a slice") };
        slice.slice = 1 << 16;
    });
    assert_eq!(field, "slice.slice");
    let field = change(Statement::Slice(slice), |what| {
        let What::Slice(slice) = what else { unreachable!("it is a slice") };
        slice.chunks = Bytes::from_static(&[1; 31]);
    });
    assert_eq!(field, "slice.chunks");
    let mut nothing = wire_of(Statement::Vouch(Vec::new()));
    nothing.statements[0].statement.as_mut().unwrap().what = None;
    assert_eq!(refused_field(&nothing), "statement.what");

    let fetch =
        Fetch { envelope: envelope(1, 2), data: Data::Reduced(digest), first: u32::MAX, count: 1 };
    assert_eq!(Fetch::decode(&fetch.encode()).unwrap_err().field, "count");
}
