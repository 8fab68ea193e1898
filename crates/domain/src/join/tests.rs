use proptest::prelude::*;

use super::*;
use crate::BlockHash;

const CYCLE: u64 = 472;

fn hotkey(uid: u16) -> Hotkey {
    Hotkey::from_public_key([uid as u8; 32])
}

fn neuron(uid: u16) -> Neuron {
    Neuron {
        uid: Uid(uid),
        hotkey: hotkey(uid),
        coldkey: None,
        axon: "192.0.2.1:8091".to_owned(),
        stake: 10,
        incentive: 0,
        validator_permit: uid == 0,
        last_update: BlockNumber(1000),
        registered_at: BlockNumber(0),
    }
}

fn metagraph(neurons: impl IntoIterator<Item = Neuron>) -> Metagraph {
    Metagraph {
        block: BlockNumber(1000 + CYCLE),
        block_hash: BlockHash([0; 32]),
        neurons: neurons.into_iter().collect(),
        weights_rate_limit: 0,
        min_allowed_weights: 0,
        weights_version: 0,
        commit_reveal: false,
    }
}

fn hash(byte: u8) -> ModelHash {
    ModelHash([byte; 24])
}

fn slots<const N: usize>(slots: [(u16, String); N]) -> Slots {
    slots.map(|(uid, json)| (hotkey(uid), json.into_bytes())).into()
}

fn signed() -> String {
    r#"{"m":"c2lnbmVk"}"#.to_owned()
}

fn revealed(group: u32, version: u64) -> String {
    format!(r#"{{"b":330,"e":{group},"h":"{}","v":{version},"i":3}}"#, hash(1))
}

const WINDOW: VersionWindow = VersionWindow { min: GlobalVersion(100), max: GlobalVersion(200) };

fn reason_of(first: &Slots, second: &Slots, neuron: Neuron) -> Result<Checkpoint, Unusable> {
    let key = neuron.hotkey.clone();
    let graph = metagraph([neuron]);
    join_miners(first, second, &graph, &BTreeSet::new(), WINDOW, ExpertGroup(1)).checkpoints[&key]
        .clone()
}

#[test]
fn a_complete_pair_of_commitments_is_a_checkpoint() {
    let found =
        reason_of(&slots([(1, signed())]), &slots([(1, revealed(1, 150))]), neuron(1)).unwrap();
    assert_eq!((found.model_hash, found.signature.as_str()), (hash(1), "c2lnbmVk"));
    assert_eq!((found.uid, found.version, found.inner_step), (Uid(1), GlobalVersion(150), Some(3)));
}

#[test]
fn every_way_to_be_unusable_has_its_reason() {
    let none = || Slots::new();
    let first = || slots([(1, signed())]);
    let second = |group, version| slots([(1, revealed(group, version))]);
    let garbage = || slots([(1, "\u{0}".to_owned())]);
    let homeless = Neuron { axon: String::new(), ..neuron(1) };
    let cases = [
        (none(), none(), neuron(1), Reason::NothingCommitted, "no commitment on chain"),
        (first(), none(), neuron(1), Reason::CommitmentIncomplete, "second commit phase"),
        (none(), second(1, 150), neuron(1), Reason::CommitmentIncomplete, "no signed hash"),
        (first(), first(), neuron(1), Reason::CommitmentIncomplete, "no model hash"),
        (garbage(), garbage(), neuron(1), Reason::CommitmentIncomplete, "no signed hash"),
        (first(), second(1, 150), homeless, Reason::CommitmentIncomplete, "no axon address"),
        (first(), second(1, 99), neuron(1), Reason::VersionOutOfRange, "99 is not within 100"),
        (first(), second(1, 201), neuron(1), Reason::VersionOutOfRange, "201 is not within"),
        (first(), second(2, 150), neuron(1), Reason::WrongGroup, "group 2 instead of 1"),
    ];
    for (first, second, neuron, reason, detail) in cases {
        let unusable = reason_of(&first, &second, neuron).unwrap_err();
        assert_eq!(unusable.reason, reason, "{unusable}");
        assert!(unusable.detail.contains(detail), "{unusable}");
    }
}

#[test]
fn garbage_is_named_and_harms_nobody_else() {
    let first = slots([(1, signed()), (2, "spam".to_owned())]);
    let second = slots([(1, revealed(1, 150)), (2, revealed(1, 150)), (9, "unknown".to_owned())]);
    let graph = metagraph([neuron(1), neuron(2)]);
    let joined = join_miners(&first, &second, &graph, &BTreeSet::new(), WINDOW, ExpertGroup(1));
    assert_eq!(joined.usable().map(|found| found.uid).collect::<Vec<_>>(), [Uid(1)]);
    assert_eq!(
        joined.garbage,
        [Garbage { hotkey: hotkey(2), slot: 1, error: CommitmentError::NotAnObject }]
    );
}

#[test]
fn a_validator_of_the_round_is_not_a_miner_and_an_idle_one_is() {
    let late = Neuron { last_update: BlockNumber(999), ..neuron(3) };
    let graph = metagraph([neuron(3), neuron(1), late.clone()].map(|mut neuron| {
        neuron.validator_permit = true;
        neuron
    }));
    let allowed: BTreeSet<Hotkey> = [hotkey(1), hotkey(3)].into();
    let uids = |set: &ValidatorSet| -> Vec<u16> {
        round_validators(&graph, set, CYCLE).iter().map(|neuron| neuron.uid.0).collect()
    };
    assert_eq!(uids(&ValidatorSet::Permits), [1, 3]);
    assert_eq!(uids(&ValidatorSet::AllowList(allowed)), [1, 3]);
    assert_eq!(uids(&ValidatorSet::AllowList([hotkey(3)].into())), [3]);

    let first = slots([(1, signed()), (3, signed())]);
    let second = slots([(1, revealed(1, 150)), (3, revealed(1, 150))]);
    let graph = metagraph([neuron(1), late]);
    let validators: BTreeSet<Hotkey> = round_validators(&graph, &ValidatorSet::Permits, CYCLE)
        .iter()
        .map(|neuron| neuron.hotkey.clone())
        .collect();
    let joined = join_miners(&first, &second, &graph, &validators, WINDOW, ExpertGroup(1));
    assert_eq!(joined.usable().count(), 2 - validators.len());
    assert!(joined.checkpoints.contains_key(&hotkey(3)));
}

#[test]
fn validators_checkpoints_are_joined_whatever_their_group() {
    let second = |group| format!(r#"{{"h":"{}","v":150,"e":{group},"s":4}}"#, hash(7));
    let graph = metagraph([neuron(1), neuron(2), neuron(3)]);
    let joined = join_validators(
        &slots([(1, signed()), (2, signed())]),
        &slots([(1, second(1)), (2, second(2))]),
        &graph,
        &[hotkey(1), hotkey(2)].into(),
        WINDOW,
    );
    assert_eq!(joined.usable().map(|found| found.group.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(joined.checkpoints.len(), 2);
}

#[test]
fn a_validator_without_a_readable_seed_counts_as_zero() {
    let slots = slots([(1, r#"{"s":77}"#.to_owned()), (2, "{".to_owned()), (3, signed())]);
    let neurons = [1, 2, 3, 4].map(neuron);
    let (seeds, garbage) = validator_seeds(&slots, &neurons.iter().collect::<Vec<_>>());
    assert_eq!(seeds.iter().map(|(_, seed)| *seed).collect::<Vec<_>>(), [77, 0, 0, 0]);
    assert_eq!(
        garbage.iter().map(|g| g.error.kind()).collect::<Vec<_>>(),
        ["not_an_object", "foreign"]
    );
}

#[test]
fn the_version_window_reaches_back_whole_cycles_from_the_latest_miner_commit() {
    let schedule = Schedule::default();
    let window = VersionWindow::of_cycle(&schedule, CycleIndex(10), 2);
    let max = 10 * CYCLE + 320;
    assert_eq!(
        window,
        VersionWindow { min: GlobalVersion(max - 2 * CYCLE), max: GlobalVersion(max) }
    );
    assert_eq!(VersionWindow::at(&schedule, BlockNumber(max + 1), 2), window);
    assert_eq!(VersionWindow::at(&schedule, BlockNumber(max + CYCLE), 2), window);
    let first = VersionWindow::at(&schedule, BlockNumber(5), 2);
    assert!(first.contains(GlobalVersion(0)) && !first.contains(GlobalVersion(1)));
}

#[test]
fn stake_decides_which_model_is_the_networks() {
    let checkpoint = |uid, model, stake| Checkpoint {
        hotkey: hotkey(uid),
        uid: Uid(uid),
        axon: String::new(),
        stake,
        model_hash: hash(model),
        signature: String::new(),
        version: GlobalVersion(0),
        group: ExpertGroup(0),
        inner_step: None,
        repo: None,
        revision: None,
    };
    let split = [checkpoint(1, 9, 6), checkpoint(2, 8, 5), checkpoint(3, 8, 2)];
    assert_eq!(authoritative(&split), Some(hash(8)));
    let tied = [checkpoint(1, 9, u64::MAX), checkpoint(2, 8, u64::MAX)];
    assert_eq!(authoritative(&tied), Some(hash(8)));
    assert_eq!(authoritative(&[]), None);
}

proptest! {
    #[test]
    fn any_bytes_in_the_slots_give_every_neuron_a_checkpoint_or_a_reason(
        first in prop::collection::btree_map(0u16..5, prop::collection::vec(any::<u8>(), 0..140), 0..5),
        second in prop::collection::btree_map(0u16..5, prop::collection::vec(any::<u8>(), 0..140), 0..5),
    ) {
        let slots = |bytes: BTreeMap<u16, Vec<u8>>| -> Slots {
            bytes.into_iter().map(|(uid, bytes)| (hotkey(uid), bytes)).collect()
        };
        let graph = metagraph((0..4).map(neuron));
        let (first, second) = (slots(first), slots(second));
        let joined = join_miners(&first, &second, &graph, &BTreeSet::new(), WINDOW, ExpertGroup(1));
        prop_assert_eq!(joined.checkpoints.len(), 4);
        prop_assert_eq!(joined.usable().count(), 0);
    }
}
