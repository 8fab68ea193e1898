//! What is written to the chain, as calls by name (chain, section 3).
//!
//! Arguments are matched by their names with the node's own metadata; [`crate::selfcheck`] lists
//! the same names.

use std::net::IpAddr;

use scale_value::{Composite, Value};
use subxt::{Metadata, dynamic, transactions::DynamicPayload};

use crate::{outbox::Payload, selfcheck};

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

/// The call that carries out a payload on this runtime.
pub(crate) fn of(payload: &Payload, target: Target, metadata: &Metadata) -> Call {
    match payload {
        Payload::Commitment { data } => commitment(data, target),
        Payload::Weights { weights } => weights_call(weights, target, metadata),
        Payload::Axon { ip, port } => axon(*ip, *port, target),
    }
}

fn commitment(data: &[u8], target: Target) -> Call {
    let field = Value::unnamed_variant(format!("Raw{}", data.len()), [Value::from_bytes(data)]);
    let info = Value::named_composite([("fields", Value::unnamed_composite([field]))]);
    named("Commitments", "set_commitment", [("netuid", number(target.netuid)), ("info", info)])
}

fn weights_call(weights: &[(u16, u16)], target: Target, metadata: &Metadata) -> Call {
    let column = |pick: fn(&(u16, u16)) -> u16| {
        Value::unnamed_composite(weights.iter().map(|pair| number(pick(pair))))
    };
    let (uids, values) = (column(|pair| pair.0), column(|pair| pair.1));
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

fn named<const N: usize>(pallet: &str, call: &str, arguments: [(&str, Value); N]) -> Call {
    let arguments = arguments.into_iter().map(|(name, value)| (name.to_owned(), value));
    dynamic::transaction(pallet, call, Composite::Named(arguments.collect()))
}
