//! Whose reveals count at the end of a cycle.

use super::*;
use crate::CycleIndex;

/// A validator's reveal of the model with this hash.
pub(super) fn commitment(k: u8, hash: u8) -> RawCommitment {
    let revealed = ValidatorCommitment {
        model_hash: Some(ModelHash([hash; 24])),
        version: Some(GlobalVersion(if hash == 0 { 0 } else { first(Phase::Merge) })),
        group: Some(ExpertGroup(0)),
        ..Default::default()
    };
    let (hotkey, data) = (key(k), revealed.to_json().unwrap().into_bytes());
    RawCommitment { hotkey, block: BlockNumber(first(Phase::ValidatorCommit2)), data }
}

/// The end of the first cycle, at which the two other validators have revealed this model.
pub(super) fn reveals(hash: u8) -> Reveals {
    let signed = |k: u8| {
        let signed = SignedHashCommitment { signature: Some("sig".to_owned()) };
        let (hotkey, data) = (key(k), signed.to_json().unwrap().into_bytes());
        RawCommitment { hotkey, block: BlockNumber(first(Phase::ValidatorCommit1)), data }
    };
    let mut metagraph = inputs().metagraph;
    metagraph.neurons.push(neuron(6, 3, true));
    metagraph.block = BlockNumber(policy().schedule.cycle_length());
    Reveals {
        metagraph,
        commit_1: vec![signed(OTHER), signed(3)],
        commit_2: vec![commitment(OTHER, hash), commitment(3, hash)],
        degradations: vec![],
    }
}

#[test]
fn reveals_without_their_signature_of_another_group_or_of_no_validator_do_not_count() {
    let most = |reveals: &Reveals| reveals.most_backed(CycleIndex(0), ExpertGroup(0), &policy());
    let base = reveals(7);
    assert_eq!(most(&base).unwrap().holders.len(), 2);

    let mut unsigned = base.clone();
    unsigned.commit_1.retain(|one| one.hotkey != key(OTHER));
    assert_eq!(most(&unsigned).unwrap().revealed, 1_000_000);

    let mut other_group = base.clone();
    for one in &mut other_group.commit_2 {
        let mut told = ValidatorCommitment::parse(&one.data).unwrap();
        told.group = Some(ExpertGroup(1));
        one.data = told.to_json().unwrap().into_bytes();
    }
    assert_eq!(most(&other_group), None);

    let mut nobody = base.clone();
    for neuron in &mut nobody.metagraph.neurons {
        neuron.validator_permit = false;
    }
    assert_eq!(most(&nobody), None);

    let mut garbage = base.clone();
    for one in &mut garbage.commit_2 {
        one.data = vec![0xff; 128];
    }
    assert_eq!(most(&garbage), None);

    let mut future = base;
    for one in &mut future.commit_2 {
        let mut told = ValidatorCommitment::parse(&one.data).unwrap();
        told.version = Some(GlobalVersion(policy().schedule.cycle_length()));
        one.data = told.to_json().unwrap().into_bytes();
    }
    assert_eq!(most(&future), None, "a model of the future");
}
