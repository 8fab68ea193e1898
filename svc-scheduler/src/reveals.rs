//! Reads what the validators have revealed at the end of a cycle, as of fixed blocks and as several
//! endpoints of the chain agree on it: it decides which model the next round stands on.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::{
    CycleIndex, Hotkey, ModelHash, Neuron, Phase, RawCommitment, Reveals, SignedHashCommitment,
    ValidatorCommitment, model_hash_message,
};
use proto::{
    chain::v1::{At, GetMetagraphRequest, at},
    convert,
};
use tracing::warn;

use crate::{
    effects::{Failure, Outside},
    freeze::{Reader, moved},
};

/// Reads the end of `cycle`.
pub(crate) async fn read(outside: &Outside, cycle: CycleIndex) -> Result<Reveals, Failure> {
    let schedule = &outside.policy().schedule;
    let signed = schedule.phase_range(cycle, Phase::ValidatorCommit2).0;
    let block = schedule.cycle_start(CycleIndex(cycle.0 + 1));

    let mut reader = Reader::new(outside);
    let header = reader.header(block).await?;
    let at = Some(At { block: Some(at::Block::Hash(header.hash.clone())) });
    let metagraph = outside.chain().get_metagraph(GetMetagraphRequest { at }).await?.into_inner();
    let metagraph = convert::metagraph(metagraph)?;
    // ValidatorCommit2 follows on ValidatorCommit1, and the next cycle on it.
    let (commit_1, _) = reader.commitments(signed).await?;
    let (mut commit_2, as_of) = reader.commitments(block).await?;
    if as_of.is_some_and(|as_of| as_of.number == block.0 && as_of.hash != header.hash) {
        return Err(moved(block));
    }
    let set = outside.policy().validator_set();
    for Neuron { hotkey, .. } in metagraph.neurons.iter().filter(|neuron| set.contains(neuron)) {
        if is_forged(hotkey, &commit_1, &commit_2) {
            warn!(%hotkey, cycle = cycle.0, "revealed a hash that it has not signed before");
            commit_2.retain(|one| one.hotkey != *hotkey);
        }
    }
    Ok(Reveals { metagraph, commit_1, commit_2, degradations: reader.degradations })
}

/// Whether a hotkey has revealed another hash than it has signed. What cannot be read is not: it counts
/// for nothing.
fn is_forged(hotkey: &Hotkey, signed: &[RawCommitment], revealed: &[RawCommitment]) -> bool {
    let data = |list: &[RawCommitment]| {
        list.iter().find(|one| one.hotkey == *hotkey).map(|one| one.data.clone())
    };
    let signature = data(signed).and_then(|data| SignedHashCommitment::parse(&data).ok());
    let hash = data(revealed).and_then(|data| ValidatorCommitment::parse(&data).ok());
    let signature = signature.and_then(|commitment| commitment.signature);
    let hash = hash.and_then(|commitment| commitment.model_hash);
    hash.zip(signature).is_some_and(|(hash, signature)| !is_signed(hotkey, &hash, &signature))
}

/// Whether `signature` is the hotkey's over `hash` (protocol, section 3).
fn is_signed(hotkey: &Hotkey, hash: &ModelHash, signature: &str) -> bool {
    let Ok(signature) = URL_SAFE_NO_PAD.decode(signature) else { return false };
    let Ok(signature) = schnorrkel::Signature::from_bytes(&signature) else { return false };
    let Ok(key) = schnorrkel::PublicKey::from_bytes(hotkey.public_key()) else { return false };
    key.verify_simple(b"substrate", &model_hash_message(hash), &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use domain::BlockNumber;
    use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey};

    use super::*;

    fn keypair(seed: u8) -> Keypair {
        MiniSecretKey::from_bytes(&[seed; 32]).unwrap().expand_to_keypair(ExpansionMode::Ed25519)
    }

    fn raw(seed: u8, json: String) -> Vec<RawCommitment> {
        let hotkey = Hotkey::from_public_key(keypair(seed).public.to_bytes());
        vec![RawCommitment { hotkey, block: BlockNumber(1), data: json.into_bytes() }]
    }

    /// What `signer` has signed of the model with this hash, in the slot of the first key.
    fn signed(signer: u8, hash: u8) -> Vec<RawCommitment> {
        let message = model_hash_message(&ModelHash([hash; 24]));
        let signature = keypair(signer).sign_simple(b"substrate", &message).to_bytes();
        let signature = Some(URL_SAFE_NO_PAD.encode(signature));
        raw(1, SignedHashCommitment { signature }.to_json().unwrap())
    }

    fn revealed(hash: u8) -> Vec<RawCommitment> {
        let model_hash = Some(ModelHash([hash; 24]));
        let commitment = ValidatorCommitment { model_hash, ..Default::default() };
        raw(1, commitment.to_json().unwrap())
    }

    #[test]
    fn a_reveal_counts_with_the_signature_of_its_own_hash_by_its_own_key_alone() {
        let key = Hotkey::from_public_key(keypair(1).public.to_bytes());
        assert!(!is_forged(&key, &signed(1, 9), &revealed(9)));
        assert!(is_forged(&key, &signed(1, 8), &revealed(9)), "another hash");
        assert!(is_forged(&key, &signed(2, 9), &revealed(9)), "another key");
        let none = raw(1, r#"{"m":"not base64!"}"#.to_owned());
        assert!(is_forged(&key, &none, &revealed(9)));
        // What is missing or garbage is for the rules to tell.
        assert!(!is_forged(&key, &[], &revealed(9)));
        assert!(!is_forged(&key, &signed(1, 9), &raw(1, "garbage".to_owned())));
    }
}
