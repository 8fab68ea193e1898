//! The agreement's types on the wire: [`merge`] on one side, `connito.peer.v2` on the other.
//!
//! Reading checks shapes and bounds and names the field that is wrong. Whether a statement is its
//! author's is for whoever verifies it.

use bytes::Bytes;
use domain::{ExpertGroup, Hotkey, ModelHash, RoundId};
use merge::{
    Choice, Claim, Data, Digest, Gradient, MAX_ITEMS, MAX_ROSTER, MAX_TEXT, Offer, Said, Signature,
    Signed, Slice, Stage, Statement, Terms,
};
use proto::{
    InvalidField,
    convert::{bytes, parse, required},
    peer::v2::{self as wire, data::What as WireData, statement::What},
};

/// A digest on the wire.
pub(crate) fn digest(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(&digest.0)
}

/// Reads a digest.
pub(crate) fn read_digest(field: &'static str, raw: &[u8]) -> Result<Digest, InvalidField> {
    bytes(field, raw).map(Digest)
}

/// A digest that may be left out, on the wire.
pub(crate) fn optional(digest: Option<&Digest>) -> Bytes {
    digest.map_or_else(Bytes::new, self::digest)
}

/// Reads a digest that may be left out.
pub(crate) fn read_optional(
    field: &'static str,
    raw: &[u8],
) -> Result<Option<Digest>, InvalidField> {
    if raw.is_empty() { Ok(None) } else { read_digest(field, raw).map(Some) }
}

/// A signed statement on the wire.
pub(crate) fn statement(signed: &Signed) -> wire::SignedStatement {
    let Said { round, author, what } = &signed.said;
    let what = match what {
        Statement::Offer(offer) => What::Offer(self::offer(offer)),
        Statement::Slice(slice) => What::Slice(self::slice(slice)),
        Statement::Claim(claim) => {
            What::Claim(wire::Claim { statement: digest(&claim.statement), chunk: claim.chunk })
        }
        Statement::Vouch(items) => What::Vouch(wire::Digests { items: digests(items) }),
        Statement::Ready(choice) => What::Ready(self::choice(choice)),
        Statement::Final(choice) => What::Final(self::choice(choice)),
    };
    wire::SignedStatement {
        statement: Some(wire::Statement {
            round_id: round.0,
            author: author.to_string(),
            what: Some(what),
        }),
        signature: Bytes::copy_from_slice(&signed.signature.0),
    }
}

/// Reads a signed statement.
pub(crate) fn read_statement(signed: wire::SignedStatement) -> Result<Signed, InvalidField> {
    let wire::SignedStatement { statement, signature } = signed;
    let signature = Signature(bytes("statement.signature", &signature)?);
    let wire::Statement { round_id, author, what } = required("statement.statement", statement)?;
    let what = match required("statement.what", what)? {
        What::Offer(offer) => Statement::Offer(read_offer(offer)?),
        What::Slice(slice) => Statement::Slice(read_slice(slice)?),
        What::Claim(wire::Claim { statement, chunk }) => Statement::Claim(Claim {
            statement: read_digest("claim.statement", &statement)?,
            chunk,
        }),
        What::Vouch(items) => Statement::Vouch(read_digests("vouch.items", &items.items)?),
        What::Ready(choice) => Statement::Ready(read_choice(choice)?),
        What::Final(choice) => Statement::Final(read_choice(choice)?),
    };
    let author = parse("statement.author", &author)?;
    Ok(Signed { said: Said { round: RoundId(round_id), author, what }, signature })
}

/// What bytes are asked for or brought, on the wire.
pub(crate) fn data(data: &Data) -> wire::Data {
    let what = match data {
        Data::Piece { giver, slice } => {
            WireData::Piece(wire::Piece { giver: giver.to_string(), slice: (*slice).into() })
        }
        Data::Reduced(statement) => WireData::Reduced(digest(statement)),
    };
    wire::Data { what: Some(what) }
}

/// Reads what bytes are asked for or brought.
pub(crate) fn read_data(data: Option<wire::Data>) -> Result<Data, InvalidField> {
    match required("data.what", required("data", data)?.what)? {
        WireData::Piece(wire::Piece { giver, slice }) => Ok(Data::Piece {
            giver: parse("data.piece.giver", &giver)?,
            slice: narrow("data.piece.slice", slice)?,
        }),
        WireData::Reduced(statement) => read_digest("data.reduced", &statement).map(Data::Reduced),
    }
}

fn digests(digests: &[Digest]) -> Vec<Bytes> {
    digests.iter().map(digest).collect()
}

fn read_digests(field: &'static str, items: &[Bytes]) -> Result<Vec<Digest>, InvalidField> {
    at_most(field, items.len(), MAX_ITEMS)?;
    items.iter().map(|item| read_digest(field, item)).collect()
}

fn at_most(field: &'static str, len: usize, most: usize) -> Result<(), InvalidField> {
    if len > most { Err(InvalidField::new(field, format!("more than {most}"))) } else { Ok(()) }
}

fn narrow<T: TryFrom<u32>>(field: &'static str, number: u32) -> Result<T, InvalidField> {
    T::try_from(number).map_err(|_| InvalidField::new(field, "too large"))
}

fn offer(Offer { terms, gradient, callable }: &Offer) -> wire::Offer {
    wire::Offer {
        terms: Some(wire::Terms {
            protocol: terms.protocol,
            expert_group: terms.group.0,
            base_hash: Bytes::copy_from_slice(&terms.base.0),
            layout: digest(&terms.layout),
            codec: terms.codec.clone(),
            reduction: terms.reduction.clone(),
            roster: digest(&terms.roster),
            chunks: terms.chunks,
            min_group: terms.min_group,
            target_group: terms.target_group,
            max_faults: terms.max_faults.into(),
            deadline_ms: terms.deadline_ms,
        }),
        gradient: gradient.as_ref().map(|gradient| wire::Gradient {
            bytes: gradient.bytes,
            chunks: digest(&gradient.chunks),
        }),
        callable: *callable,
    }
}

fn read_offer(offer: wire::Offer) -> Result<Offer, InvalidField> {
    let terms = required("offer.terms", offer.terms)?;
    at_most("terms.codec", terms.codec.len(), MAX_TEXT)?;
    at_most("terms.reduction", terms.reduction.len(), MAX_TEXT)?;
    let gradient = offer.gradient.map(|gradient| {
        read_digest("gradient.chunks", &gradient.chunks)
            .map(|chunks| Gradient { bytes: gradient.bytes, chunks })
    });
    Ok(Offer {
        terms: Terms {
            protocol: terms.protocol,
            group: ExpertGroup(terms.expert_group),
            base: ModelHash(bytes("terms.base_hash", &terms.base_hash)?),
            layout: read_digest("terms.layout", &terms.layout)?,
            codec: terms.codec,
            reduction: terms.reduction,
            roster: read_digest("terms.roster", &terms.roster)?,
            chunks: terms.chunks,
            min_group: terms.min_group,
            target_group: terms.target_group,
            max_faults: narrow("terms.max_faults", terms.max_faults)?,
            deadline_ms: terms.deadline_ms,
        },
        gradient: gradient.transpose()?,
        callable: offer.callable,
    })
}

fn slice(Slice { group, slice, attempt, contributors, chunks }: &Slice) -> wire::Slice {
    wire::Slice {
        group: digest(group),
        slice: (*slice).into(),
        attempt: (*attempt).into(),
        contributors: contributors.iter().map(Hotkey::to_string).collect(),
        chunks: digest(chunks),
    }
}

fn read_slice(slice: wire::Slice) -> Result<Slice, InvalidField> {
    const CONTRIBUTORS: &str = "slice.contributors";
    at_most(CONTRIBUTORS, slice.contributors.len(), MAX_ROSTER)?;
    let contributors: Result<_, _> =
        slice.contributors.iter().map(|hotkey| parse(CONTRIBUTORS, hotkey)).collect();
    Ok(Slice {
        group: read_digest("slice.group", &slice.group)?,
        slice: narrow("slice.slice", slice.slice)?,
        attempt: narrow("slice.attempt", slice.attempt)?,
        contributors: contributors?,
        chunks: read_digest("slice.chunks", &slice.chunks)?,
    })
}

fn choice(Choice { stage, items }: &Choice) -> wire::Choice {
    let result_of = match stage {
        Stage::Group => Bytes::new(),
        Stage::Result(group) => digest(group),
    };
    wire::Choice { result_of, items: digests(items) }
}

fn read_choice(choice: wire::Choice) -> Result<Choice, InvalidField> {
    let result_of = read_optional("choice.result_of", &choice.result_of)?;
    Ok(Choice {
        stage: result_of.map_or(Stage::Group, Stage::Result),
        items: read_digests("choice.items", &choice.items)?,
    })
}
