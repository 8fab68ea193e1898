//! Who is in the subnet, and what they put on chain.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::{
    BlockNumber, ExpertGroup, GlobalVersion, Hotkey, MinerCommitment, ModelHash, Neuron,
    SignedHashCommitment, Uid, ValidatorCommitment, model_hash_message,
};
use proto::chain::v1 as chain;
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey};

/// Blocks of a cycle in the tests: nine phases of four.
pub(crate) const CYCLE: u64 = 36;
/// The validator under test.
pub(crate) const ME: u8 = 1;
/// Another validator.
pub(crate) const OTHER: u8 = 2;
/// Miners, from UID 2 on.
pub(crate) const MINERS: [u8; 5] = [10, 11, 12, 13, 14];
/// The one of them that commits garbage.
const CARELESS: u8 = 13;
/// Version of the model that everybody starts with.
pub(crate) const BASE_VERSION: u64 = 4;

pub(crate) fn keypair(seed: u8) -> Keypair {
    MiniSecretKey::from_bytes(&[seed; 32]).unwrap().expand_to_keypair(ExpansionMode::Ed25519)
}

pub(crate) fn hotkey(seed: u8) -> Hotkey {
    Hotkey::from_public_key(keypair(seed).public.to_bytes())
}

/// Everybody, as of `block`: the validators first, then the miners. One that was never paid has set
/// no weights since the chain began: the validator under test.
pub(crate) fn neurons(
    block: u64,
    never_paid: bool,
    others_stake: Option<u64>,
) -> Vec<chain::Neuron> {
    let neuron = |(seed, uid): (u8, u16)| Neuron {
        uid: Uid(uid),
        hotkey: hotkey(seed),
        coldkey: None,
        axon: format!("127.0.0.1:{}", 8000 + uid),
        stake: match uid {
            1 => others_stake.unwrap_or(1_000_000),
            0 => 1_000_000,
            _ => 0,
        },
        incentive: 0,
        validator_permit: uid < 2,
        last_update: BlockNumber(if never_paid && seed == ME { 0 } else { block }),
        registered_at: BlockNumber(0),
    };
    [ME, OTHER].into_iter().chain(MINERS).zip(0..).map(neuron).map(Into::into).collect()
}

/// After MinerCommit1: seeds of the validators (this one's as it was written), signatures of miners.
pub(crate) fn first_commitments(own: Option<Vec<u8>>) -> Vec<(u8, Vec<u8>)> {
    let seed = ValidatorCommitment { seed: Some(6), ..Default::default() };
    let signed = SignedHashCommitment { signature: Some("sig".to_owned()) };
    let signed = signed.to_json().unwrap().into_bytes();
    let miners = careful().map(|miner| (miner, signed.clone()));
    let own = own.map(|own| (ME, own));
    own.into_iter().chain([(OTHER, seed.to_json().unwrap().into_bytes())]).chain(miners).collect()
}

/// After MinerCommit2: what the miners reveal, and garbage.
pub(crate) fn second_commitments() -> Vec<(u8, Vec<u8>)> {
    let revealed = |miner: u8| {
        let commitment = MinerCommitment {
            model_hash: Some(ModelHash([miner; 24])),
            version: Some(GlobalVersion(BASE_VERSION)),
            group: Some(ExpertGroup(0)),
            ..Default::default()
        };
        (miner, commitment.to_json().unwrap().into_bytes())
    };
    careful().map(revealed).chain([(CARELESS, b"garbage".to_vec())]).collect()
}

/// After ValidatorCommit1: this validator's signature as it was written, and the other one's.
pub(crate) fn signatures(
    own: Option<Vec<u8>>,
    other: Option<(ModelHash, u64, u64)>,
) -> Vec<(u8, Vec<u8>)> {
    let signed = other.map(|(hash, _, _)| {
        let signature = keypair(OTHER).sign_simple(b"substrate", &model_hash_message(&hash));
        let signature = Some(URL_SAFE_NO_PAD.encode(signature.to_bytes()));
        (OTHER, SignedHashCommitment { signature }.to_json().unwrap().into_bytes())
    });
    own.map(|own| (ME, own)).into_iter().chain(signed).collect()
}

/// After ValidatorCommit2: this validator's reveal as it was written, and the other one's.
pub(crate) fn reveals(
    own: Option<Vec<u8>>,
    other: Option<(ModelHash, u64, u64)>,
) -> Vec<(u8, Vec<u8>)> {
    let revealed = other.map(|(hash, version, _)| {
        let commitment = ValidatorCommitment {
            model_hash: Some(hash),
            version: Some(GlobalVersion(version)),
            group: Some(ExpertGroup(0)),
            ..Default::default()
        };
        (OTHER, commitment.to_json().unwrap().into_bytes())
    });
    own.map(|own| (ME, own)).into_iter().chain(revealed).collect()
}

fn careful() -> impl Iterator<Item = u8> {
    MINERS.into_iter().filter(|miner| *miner != CARELESS)
}
