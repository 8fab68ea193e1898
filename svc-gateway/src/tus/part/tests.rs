//! Folders of unfinished uploads, over processes that come and go.

use super::*;

fn claim() -> Claim {
    Claim {
        round: RoundId(336),
        hotkey: Hotkey::from_public_key([1; 32]),
        uid: Uid(1),
        model_hash: ModelHash([2; 24]),
        file_name: "m.pt".into(),
        nonce: "00".into(),
        transport: Transport::Upload,
    }
}

fn part(parts: &Parts) -> Part {
    parts.create(UploadId::random().unwrap(), &claim(), 10, "a YQ==".into()).unwrap()
}

#[test]
fn what_a_dead_process_left_is_taken_over_by_one_and_what_a_living_one_has_is_not() {
    let root = tempfile::tempdir().unwrap();
    let (first, found) = Parts::open(root.path(), "boot").unwrap();
    assert!(found.is_empty());
    let mut left = part(&first);
    left.append(b"123").unwrap();
    left.append(b"45").unwrap();
    let info = left.info.clone();
    // It lives.
    let (second, found) = Parts::open(root.path(), "boot").unwrap();
    assert!(found.is_empty());
    part(&second).append(b"1").unwrap();
    drop((left, first));
    let (_third, mut found) = Parts::open(root.path(), "boot").unwrap();
    assert_eq!(found.len(), 1);
    let taken = found.pop().unwrap();
    assert_eq!((&taken.info, taken.offset, taken.is_whole()), (&info, 5, false));
    assert_eq!(taken.info.claim(), claim());
    assert_eq!(fs::read(taken.path()).unwrap(), b"12345");
    let (_fourth, found) = Parts::open(root.path(), "boot").unwrap();
    assert!(found.is_empty());
}

#[test]
fn folders_that_dead_processes_left_empty_do_not_pile_up() {
    let root = tempfile::tempdir().unwrap();
    for _ in 0..4 {
        let (_parts, _) = Parts::open(root.path(), "boot").unwrap();
        let (other, _) = Parts::open(root.path(), "boot").unwrap();
        part(&other).delete();
    }
    let (_parts, found) = Parts::open(root.path(), "boot").unwrap();
    assert!(found.is_empty());
    let folders = fs::read_dir(root.path()).unwrap();
    assert_eq!(folders.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count(), 1);
}

#[test]
fn a_file_that_is_moved_away_leaves_the_part_where_it_is() {
    let root = tempfile::tempdir().unwrap();
    let (parts, _) = Parts::open(root.path(), "boot").unwrap();
    let mut part = part(&parts);
    part.append(b"0123456789").unwrap();
    assert!(part.is_whole());
    let away = root.path().join("stored");
    whole(&part.path()).unwrap().persist(&away).unwrap();
    drop(whole(&part.path()).unwrap());
    assert_eq!(fs::read(part.path()).unwrap(), b"0123456789");
    part.delete();
    assert_eq!(fs::read(&away).unwrap(), b"0123456789");
    assert_eq!(parts.folders.len(), 1);
    assert_eq!(fs::read_dir(&parts.folders[0]).unwrap().count(), 1, "the lock");
}

#[test]
fn a_name_is_a_capability_that_logs_do_not_have() {
    let id = UploadId::random().unwrap();
    assert_ne!(id, UploadId::random().unwrap());
    assert_eq!(id.as_str().parse(), Ok(id.clone()));
    assert!(!format!("{id:?}").contains(&id.as_str()[8..]));
    for text in ["", "../../../../../../etc/passwd/etc/p", &"g".repeat(32), &"A".repeat(32)] {
        assert!(text.parse::<UploadId>().is_err(), "{text}");
    }
}
