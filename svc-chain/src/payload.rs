//! What a caller wants written, checked before it is recorded.

use std::{collections::BTreeMap, net::IpAddr};

use domain::{MAX_COMMITMENT_BYTES, Uid, to_u16};
use proto::{
    InvalidField,
    chain::v1::{self, submit_intent_request::Payload as Wire},
    convert,
};

use crate::outbox::{Kind, Payload, Slot};

/// Checks a payload against what its kind holds and what the chain takes.
pub(crate) fn parse(kind: Kind, payload: Option<Wire>) -> Result<Payload, InvalidField> {
    let payload = convert::required("payload", payload)?;
    match (kind.slot(), payload) {
        (Slot::Commitment, Wire::Commitment(commitment)) => self::commitment(&commitment),
        (Slot::Weights, Wire::Weights(weights)) => self::weights(weights),
        (Slot::Axon, Wire::Axon(axon)) => self::axon(&axon),
        (Slot::Reveal, _) => {
            let reason = "reveals are recorded by the service itself, after weights".to_owned();
            Err(InvalidField::new("key.kind", reason))
        }
        (Slot::Commitment | Slot::Weights | Slot::Axon, _) => {
            Err(InvalidField::new("payload", format!("it is not what `{}` holds", kind.as_str())))
        }
    }
}

fn commitment(commitment: &v1::CommitmentPayload) -> Result<Payload, InvalidField> {
    let length = commitment.data.len();
    if length == 0 || length > MAX_COMMITMENT_BYTES {
        let reason = format!("{length} bytes instead of 1 to {MAX_COMMITMENT_BYTES}");
        return Err(InvalidField::new("commitment.data", reason));
    }
    Ok(Payload::Commitment { data: commitment.data.to_vec() })
}

fn weights(payload: v1::WeightsPayload) -> Result<Payload, InvalidField> {
    let mut shares = BTreeMap::new();
    for weight in &payload.weights {
        let uid = u16::try_from(weight.uid)
            .map_err(|_| InvalidField::new("weights.uid", format!("{} is none", weight.uid)))?;
        if !weight.value.is_finite() || weight.value < 0.0 {
            let reason = format!("{} of UID {uid} is no share", weight.value);
            return Err(InvalidField::new("weights.value", reason));
        }
        if shares.insert(Uid(uid), weight.value).is_some() {
            return Err(InvalidField::new("weights.uid", format!("{uid} is there twice")));
        }
    }
    let weights: Vec<_> = to_u16(&shares).into_iter().map(|(uid, value)| (uid.0, value)).collect();
    if weights.is_empty() {
        return Err(InvalidField::new("weights", "none is positive"));
    }
    Ok(Payload::Weights { weights, stale_guard: payload.stale_guard })
}

fn axon(axon: &v1::AxonPayload) -> Result<Payload, InvalidField> {
    let ip: IpAddr = convert::parse("axon.ip", &axon.ip)?;
    let port = u16::try_from(axon.port).ok().filter(|port| *port != 0);
    let port =
        port.ok_or_else(|| InvalidField::new("axon.port", format!("{} is none", axon.port)))?;
    Ok(Payload::Axon { ip, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(pairs: &[(u32, f64)]) -> Option<Wire> {
        let weights = pairs.iter().map(|(uid, value)| v1::FloatWeight { uid: *uid, value: *value });
        Some(Wire::Weights(v1::WeightsPayload { weights: weights.collect(), stale_guard: false }))
    }

    #[test]
    fn shares_become_the_chains_integers_ascending_without_zeros() {
        let payload = parse(Kind::Weights, shares(&[(7, 0.5), (2, 0.25), (9, 0.0)])).unwrap();
        let weights = vec![(2, 32768), (7, 65535)];
        assert_eq!(payload, Payload::Weights { weights, stale_guard: false });
    }

    #[test]
    fn shares_that_mean_nothing_are_refused_by_field() {
        for (pairs, field) in [
            (&[(1, f64::NAN)][..], "weights.value"),
            (&[(1, -0.5)][..], "weights.value"),
            (&[(70_000, 0.5)][..], "weights.uid"),
            (&[(1, 0.5), (1, 0.5)][..], "weights.uid"),
            (&[(1, 0.0)][..], "weights"),
            (&[][..], "weights"),
        ] {
            assert_eq!(parse(Kind::Weights, shares(pairs)).unwrap_err().field, field, "{pairs:?}");
        }
    }

    #[test]
    fn a_commitment_longer_than_the_protocol_allows_is_refused() {
        let commit = |length: usize| {
            let data = vec![b'x'; length].into();
            parse(Kind::Seed, Some(Wire::Commitment(v1::CommitmentPayload { data })))
        };
        assert!(commit(128).is_ok());
        assert_eq!(commit(129).unwrap_err().field, "commitment.data");
        assert_eq!(commit(0).unwrap_err().field, "commitment.data");
    }

    #[test]
    fn an_address_is_parsed_and_a_port_is_needed() {
        let axon = |ip: &str, port| {
            let axon = v1::AxonPayload { ip: ip.to_owned(), port };
            parse(Kind::Axon, Some(Wire::Axon(axon)))
        };
        assert_eq!(
            axon("8.8.8.8", 8091).unwrap(),
            Payload::Axon { ip: "8.8.8.8".parse().unwrap(), port: 8091 }
        );
        assert!(axon("::1", 1).is_ok());
        assert_eq!(axon("example.org", 80).unwrap_err().field, "axon.ip");
        assert_eq!(axon("8.8.8.8", 0).unwrap_err().field, "axon.port");
        assert_eq!(axon("8.8.8.8", 65_536).unwrap_err().field, "axon.port");
    }

    #[test]
    fn a_payload_of_another_kind_is_refused() {
        assert_eq!(parse(Kind::Seed, shares(&[(1, 1.0)])).unwrap_err().field, "payload");
        assert_eq!(parse(Kind::Weights, None).unwrap_err().field, "payload");
        assert_eq!(parse(Kind::Reveal, shares(&[(1, 1.0)])).unwrap_err().field, "key.kind");
    }
}
