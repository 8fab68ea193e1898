//! What is committed in place of weights, and what opens it.

use codec::Encode as _;
use domain::Hotkey;
use drand::{Beacon, SealError};
use serde::{Deserialize, Serialize};
use subxt::config::{Hasher as _, substrate::BlakeTwo256};

use super::{Mode, Row};

/// Numbers of a salt, 16 bits each.
const SALT: usize = 16;
/// Blocks after the first one that can reveal, by which the beacon's round is on the chain for sure.
const SECURITY_BLOCKS: u64 = 3;

/// How weights were put on the chain: chosen before an extrinsic is signed, and stored with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub(crate) enum Commit {
    Plain,
    Hashed {
        #[serde(with = "hex::serde")]
        hash: [u8; 32],
        salt: Vec<u16>,
        version_key: u64,
    },
    Timelocked {
        #[serde(with = "hex::serde")]
        sealed: Vec<u8>,
        /// Round of the beacon that opens it.
        round: u64,
        /// First block at which the chain can open it, and the last.
        opens: u64,
        closes: u64,
    },
}

impl Commit {
    pub(crate) fn mode(&self) -> Mode {
        match self {
            Self::Plain => Mode::Plain,
            Self::Hashed { .. } => Mode::HashCommit,
            Self::Timelocked { .. } => Mode::Timelock,
        }
    }

    /// Commits to `row` by its salted hash.
    pub(crate) fn by_hash(
        hotkey: &Hotkey,
        index: u16,
        row: &Row,
        version_key: u64,
        entropy: [u8; 32],
    ) -> Self {
        let salt: Vec<u16> =
            entropy.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        debug_assert_eq!(salt.len(), SALT);
        let hash = hash(hotkey, index, row, &salt, version_key);
        Self::Hashed { hash, salt, version_key }
    }

    /// Seals `row` to the round of `beacon` that is on the chain when it can be opened.
    ///
    /// # Errors
    ///
    /// As [`drand::seal`].
    pub(crate) fn timelocked(
        hotkey: &Hotkey,
        row: &Row,
        version_key: u64,
        beacon: &Beacon,
        when: When,
        entropy: [u8; 32],
    ) -> Result<Self, SealError> {
        let (uids, values) = columns(row);
        let payload = (hotkey.public_key().to_vec(), uids, values, version_key).encode();
        let round = when.round(beacon);
        let sealed = drand::seal(beacon, round, &payload, entropy)?;
        Ok(Self::Timelocked { sealed, round, opens: when.opens, closes: when.closes })
    }
}

/// When a timelocked commit can be opened, and what time it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct When {
    /// The block that is known to be the newest, and the chain's time at it in Unix milliseconds.
    pub(crate) block: u64,
    pub(crate) now_ms: u64,
    /// Time between two blocks, in milliseconds.
    pub(crate) block_time_ms: u64,
    /// First block at which the chain can open it, and the last.
    pub(crate) opens: u64,
    pub(crate) closes: u64,
}

impl When {
    /// The round that the beacon publishes some blocks after the first one that can reveal (chain,
    /// section 3), and never one that is published already: anybody could read the weights at once.
    fn round(self, beacon: &Beacon) -> u64 {
        let blocks = (self.opens + SECURITY_BLOCKS).saturating_sub(self.block);
        let target_ms = self.now_ms.saturating_add(blocks.saturating_mul(self.block_time_ms));
        let since = (target_ms / 1000).saturating_sub(beacon.genesis_time());
        let next = beacon.round_at(self.now_ms / 1000) + 1;
        (since / beacon.period().max(1)).max(next)
    }
}

/// What is to become known of committed weights, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reveal {
    pub(crate) weights: Row,
    /// First and last block at which it can be.
    pub(crate) opens: u64,
    pub(crate) closes: u64,
    pub(crate) opening: Opening,
    #[serde(default)]
    pub(crate) stale_guard: bool,
}

/// Who opens a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub(crate) enum Opening {
    /// This service, with a second extrinsic.
    Extrinsic {
        #[serde(with = "hex::serde")]
        hash: [u8; 32],
        salt: Vec<u16>,
        version_key: u64,
    },
    /// The chain by itself, with the beacon's signature of `round`.
    Chain {
        #[serde(with = "hex::serde")]
        sealed: Vec<u8>,
        round: u64,
    },
}

/// The hash by which the chain knows weights that are revealed later: BLAKE2b-256 over the SCALE of
/// account, storage index, UIDs, values, salt and version key (chain, section 3).
pub(crate) fn hash(
    hotkey: &Hotkey,
    index: u16,
    row: &Row,
    salt: &[u16],
    version_key: u64,
) -> [u8; 32] {
    let (uids, values) = columns(row);
    let committed = (hotkey.public_key(), index, uids, values, salt, version_key).encode();
    BlakeTwo256.hash(&committed).0
}

/// UIDs and values, as two lists of one length.
pub(crate) fn columns(row: &Row) -> (Vec<u16>, Vec<u16>) {
    row.iter().copied().unzip()
}

#[cfg(test)]
mod tests {
    use drand::SecretBeacon;
    use proptest::prelude::*;

    use super::*;

    fn hotkey() -> Hotkey {
        Hotkey::from_public_key([7; 32])
    }

    fn when(block: u64, opens: u64) -> When {
        let now_ms = 1_764_547_200_000;
        When { block, now_ms, block_time_ms: 12_000, opens, closes: opens + 360 }
    }

    #[test]
    fn the_hash_is_over_scale_without_lengths_of_account_and_numbers() {
        let mut bytes = [7; 32].to_vec();
        bytes.extend(102_u16.to_le_bytes());
        bytes.extend([2 << 2, 1, 0, 2, 0]); // two UIDs
        bytes.extend([2 << 2, 0xff, 0xff, 9, 0]); // two values
        bytes.extend([1 << 2, 5, 0]); // a salt of one number
        bytes.extend(10_001_000_u64.to_le_bytes());
        let expected = BlakeTwo256.hash(&bytes).0;
        assert_eq!(hash(&hotkey(), 102, &vec![(1, 65535), (2, 9)], &[5], 10_001_000), expected);
    }

    #[test]
    fn the_round_is_the_one_of_the_third_block_after_the_first_that_can_reveal() {
        let beacon = Beacon::quicknet();
        // 100 + 3 blocks of 12 s after 1 764 547 200.
        let target = 1_764_547_200 + 103 * 12;
        assert_eq!(when(900, 1000).round(&beacon), (target - 1_692_803_367) / 3);
    }

    #[test]
    fn no_round_is_taken_that_is_published_already() {
        let beacon = Beacon::quicknet();
        let short = When { block_time_ms: 50, ..when(900, 901) };
        assert_eq!(short.round(&beacon), beacon.round_at(1_764_547_200) + 1);
    }

    #[test]
    fn sealed_weights_open_with_the_rounds_signature_and_no_other() {
        let secret = SecretBeacon::from_seed([3; 32], 1_692_803_367, 3).unwrap();
        let row = vec![(1, 65535), (200, 77)];
        let commit = Commit::timelocked(&hotkey(), &row, 9, secret.beacon(), when(5, 9), [1; 32]);
        let Commit::Timelocked { sealed, round, .. } = commit.unwrap() else { panic!("another") };
        let payload = drand::open(&sealed, &secret.sign(round)).unwrap();
        assert_eq!(
            payload,
            ([7_u8; 32].to_vec(), vec![1_u16, 200], vec![65535_u16, 77], 9_u64).encode()
        );
        assert!(drand::open(&sealed, &secret.sign(round + 1)).is_err());
    }

    proptest! {
        #[test]
        fn a_commit_by_hash_survives_the_store_and_differs_with_its_salt(
            row in proptest::collection::vec(any::<(u16, u16)>(), 0..8), entropy: [u8; 32],
        ) {
            let commit = Commit::by_hash(&hotkey(), 102, &row, 1, entropy);
            let json = serde_json::to_string(&commit).unwrap();
            prop_assert_eq!(serde_json::from_str::<Commit>(&json).unwrap(), commit.clone());
            let mut other = entropy;
            other[31] ^= 1;
            prop_assert_ne!(Commit::by_hash(&hotkey(), 102, &row, 1, other), commit);
        }
    }
}
