//! What is written to the chain, as calls by name (chain, section 3).
//!
//! Arguments are matched by their names with the node's own metadata; [`crate::selfcheck`] lists
//! the same names.

use std::net::IpAddr;

use scale_value::{Composite, Value};
use subxt::{Metadata, dynamic, transactions::DynamicPayload};

use crate::{
    outbox::Payload,
    selfcheck,
    weights::{Commit, Opening, Row, commit, mode::TIMELOCK_VERSION},
};

pub(crate) type Call = DynamicPayload<Composite<()>>;

/// Version that axons announce: the one today's tools announce.
const AXON_VERSION: u32 = 10_001_000;
/// Protocol that axons announce: TCP with HTTP on it, as today's tools have it.
const AXON_PROTOCOL: u8 = 4;

/// Where weights and commitments go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) netuid: u16,
    pub(crate) mechanism: u8,
    pub(crate) version_key: u64,
}

/// The call that carries out a payload on this runtime; weights go the way that `how` says. `None`
/// when this runtime has no such call, or nothing is to be sent at all.
pub(crate) fn of(
    payload: &Payload,
    how: Option<&Commit>,
    target: Target,
    metadata: &Metadata,
) -> Option<Call> {
    match payload {
        Payload::Commitment { data } => Some(commitment(data, target)),
        Payload::Weights { weights, .. } => match how? {
            Commit::Plain => Some(weights_call(weights, target, metadata)),
            Commit::Hashed { hash, .. } => commit_hash(*hash, target, metadata),
            Commit::Timelocked { sealed, round, .. } => timelock(sealed, *round, target, metadata),
        },
        Payload::Reveal(reveal) => match &reveal.opening {
            Opening::Extrinsic { salt, version_key, .. } => {
                reveal_call(&reveal.weights, salt, *version_key, target, metadata)
            }
            Opening::Chain { .. } => None,
        },
        Payload::Axon { ip, port } => Some(axon(*ip, *port, target)),
    }
}

fn commitment(data: &[u8], target: Target) -> Call {
    let field = Value::unnamed_variant(format!("Raw{}", data.len()), [Value::from_bytes(data)]);
    let info = Value::named_composite([("fields", Value::unnamed_composite([field]))]);
    named("Commitments", "set_commitment", [("netuid", number(target.netuid)), ("info", info)])
}

fn weights_call(weights: &Row, target: Target, metadata: &Metadata) -> Call {
    let (uids, values) = commit::columns(weights);
    let (uids, values) = (numbers(&uids), numbers(&values));
    let (netuid, version) = (number(target.netuid), Value::u128(target.version_key.into()));
    if selfcheck::has_mechanism_weights(metadata) {
        let mechanism = number(u16::from(target.mechanism));
        named(
            "SubtensorModule",
            "set_mechanism_weights",
            [
                ("netuid", netuid),
                ("mecid", mechanism),
                ("dests", uids),
                ("weights", values),
                ("version_key", version),
            ],
        )
    } else {
        named(
            "SubtensorModule",
            "set_weights",
            [("netuid", netuid), ("dests", uids), ("weights", values), ("version_key", version)],
        )
    }
}

/// Of a call for one subnet or for one of its mechanisms, the arguments that say which.
fn aim(target: Target, of_mechanism: bool) -> Vec<(&'static str, Value)> {
    let mut aim = vec![("netuid", number(target.netuid))];
    if of_mechanism {
        aim.push(("mecid", number(target.mechanism.into())));
    }
    aim
}

fn commit_hash(hash: [u8; 32], target: Target, metadata: &Metadata) -> Option<Call> {
    let ([name, _], of_mechanism) = selfcheck::hash_calls(metadata)?;
    let mut arguments = aim(target, of_mechanism);
    arguments.push(("commit_hash", Value::from_bytes(hash)));
    Some(named("SubtensorModule", name, arguments))
}

fn reveal_call(
    weights: &Row,
    salt: &[u16],
    version_key: u64,
    target: Target,
    metadata: &Metadata,
) -> Option<Call> {
    let ([_, name], of_mechanism) = selfcheck::hash_calls(metadata)?;
    let (uids, values) = commit::columns(weights);
    let mut arguments = aim(target, of_mechanism);
    arguments.extend([
        ("uids", numbers(&uids)),
        ("values", numbers(&values)),
        ("salt", numbers(salt)),
        ("version_key", Value::u128(version_key.into())),
    ]);
    Some(named("SubtensorModule", name, arguments))
}

fn timelock(sealed: &[u8], round: u64, target: Target, metadata: &Metadata) -> Option<Call> {
    let (name, of_mechanism) = selfcheck::timelock_call(metadata)?;
    let mut arguments = aim(target, of_mechanism);
    arguments.extend([
        ("commit", Value::from_bytes(sealed)),
        ("reveal_round", Value::u128(round.into())),
        ("commit_reveal_version", number(TIMELOCK_VERSION)),
    ]);
    Some(named("SubtensorModule", name, arguments))
}

fn axon(ip: IpAddr, port: u16, target: Target) -> Call {
    let (bits, ip_type) = ip_bits(ip);
    named(
        "SubtensorModule",
        "serve_axon",
        [
            ("netuid", number(target.netuid)),
            ("version", Value::u128(AXON_VERSION.into())),
            ("ip", Value::u128(bits)),
            ("port", number(port)),
            ("ip_type", number(ip_type.into())),
            ("protocol", number(AXON_PROTOCOL.into())),
            ("placeholder1", number(0)),
            ("placeholder2", number(0)),
        ],
    )
}

/// An address as the chain holds it: a number, and 4 or 6.
pub(crate) fn ip_bits(ip: IpAddr) -> (u128, u8) {
    match ip {
        IpAddr::V4(ip) => (ip.to_bits().into(), 4),
        IpAddr::V6(ip) => (ip.to_bits(), 6),
    }
}

fn number(value: u16) -> Value {
    Value::u128(value.into())
}

fn numbers(values: &[u16]) -> Value {
    Value::unnamed_composite(values.iter().copied().map(number))
}

fn named<'a>(
    pallet: &str,
    call: &str,
    arguments: impl IntoIterator<Item = (&'a str, Value)>,
) -> Call {
    let arguments = arguments.into_iter().map(|(name, value)| (name.to_owned(), value));
    dynamic::transaction(pallet, call, Composite::Named(arguments.collect()))
}
