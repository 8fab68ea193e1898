//! The names of things: newtypes that are parsed at the edge and trusted behind it.

use std::{fmt, str::FromStr};

use blake2::{Blake2b512, Digest as _};
use serde::{Deserialize, Serialize, de};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize,
            Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A block height of the chain.
    BlockNumber(u64)
);
number!(
    /// A slot of the subnet. It changes hands: its hotkey can change.
    Uid(u16)
);
number!(
    /// A subnet.
    NetUid(u16)
);
number!(
    /// Counts cycles from the chain's first block.
    CycleIndex(u64)
);
number!(
    /// The validator's unit of work: first block of its cycle's Submission phase.
    RoundId(u64)
);
number!(
    /// A numbered subset of the routed experts of the base model.
    ExpertGroup(u32)
);
number!(
    /// The block number stamped on a global model (`global_ver`).
    GlobalVersion(u64)
);

/// A text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    #[error("`{text}` is not an SS58 address: {why}")]
    Hotkey { text: String, why: &'static str },
    #[error("`{text}` is not {bytes} bytes of lower-case hex")]
    Hex { text: String, bytes: usize },
}

/// SS58 address format of Substrate chains without one of their own, Subtensor among them.
const SS58_FORMAT: u8 = 42;

/// A neuron's signing key (sr25519), ordered by its SS58 text as the protocol asks.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Hotkey {
    text: String,
    key: [u8; 32],
}

impl Hotkey {
    /// The hotkey with this public key.
    pub fn from_public_key(key: [u8; 32]) -> Self {
        let mut bytes = Vec::with_capacity(35);
        bytes.push(SS58_FORMAT);
        bytes.extend(key);
        bytes.extend(ss58_checksum(&bytes));
        Self { text: bs58::encode(bytes).into_string(), key }
    }

    /// The sr25519 public key.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.key
    }

    /// The SS58 text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first characters, for people.
    pub fn short(&self) -> &str {
        self.text.get(..8).unwrap_or(&self.text)
    }
}

fn ss58_checksum(bytes: &[u8]) -> [u8; 2] {
    let hash = Blake2b512::new().chain_update(b"SS58PRE").chain_update(bytes).finalize();
    [hash[0], hash[1]]
}

impl FromStr for Hotkey {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let bad = |why| ParseIdError::Hotkey { text: text.chars().take(64).collect(), why };
        if text.len() > 64 {
            return Err(bad("too long"));
        }
        let bytes = bs58::decode(text).into_vec().map_err(|_| bad("not base58"))?;
        let bytes: [u8; 35] = bytes.try_into().map_err(|_| bad("not 35 bytes"))?;
        if bytes[0] != SS58_FORMAT {
            return Err(bad("not of format 42"));
        }
        if bytes[33..] != ss58_checksum(&bytes[..33]) {
            return Err(bad("wrong checksum"));
        }
        let mut key = [0; 32];
        key.copy_from_slice(&bytes[1..33]);
        Ok(Self { text: text.to_owned(), key })
    }
}

impl AsRef<str> for Hotkey {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl Ord for Hotkey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl PartialOrd for Hotkey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for Hotkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Hotkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

macro_rules! bytes {
    ($(#[$doc:meta])* $name:ident[$len:literal]) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Lower-case hex, without a prefix.
            pub fn to_hex(&self) -> String {
                hex::encode(self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let bad =
                    || ParseIdError::Hex { text: text.chars().take(80).collect(), bytes: $len };
                let mut bytes = [0; $len];
                if text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(bad());
                }
                hex::decode_to_slice(text, &mut bytes).map_err(|_| bad())?;
                Ok(Self(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.to_hex())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

bytes!(
    /// BLAKE2b with a 24-byte digest over a model's tensors (protocol, section 3).
    ModelHash[24]
);
bytes!(
    /// Hash of a block's header, BLAKE2b-256.
    BlockHash[32]
);
bytes!(
    /// SHA-256 over the validators' seeds; its lower-case hex is what goes into further hashes.
    CombinedSeed[32]
);
bytes!(
    /// A 32-byte seed that evaluation batches are drawn from.
    Seed[32]
);

impl Serialize for Hotkey {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Hotkey {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn alices_public_key_has_her_well_known_address() {
        let alice: Hotkey = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY".parse().unwrap();
        assert_eq!(
            hex::encode(alice.public_key()),
            "d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d"
        );
    }

    #[test]
    fn an_address_with_one_wrong_letter_is_refused() {
        let err = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQZ".parse::<Hotkey>();
        assert!(err.unwrap_err().to_string().contains("checksum"));
    }

    proptest! {
        #[test]
        fn every_public_key_survives_its_address(key: [u8; 32]) {
            let hotkey = Hotkey::from_public_key(key);
            prop_assert_eq!(hotkey.as_str().parse::<Hotkey>().unwrap(), hotkey);
        }

        #[test]
        fn any_text_is_an_address_or_a_named_error(text: String) {
            let _ = text.parse::<Hotkey>();
        }
    }
}
