//! A file that arrives in pieces is refused as early as its bytes allow.

use std::{fs, sync::Arc};

use checkpoint::{Flaw, Limits, Refusal, SliceLayout, Stream};

use crate::{
    archive::{Entry, pt, zip},
    hostile::{plain, state_dict},
    setup::vectors,
    stream::{layout_of, own_layout, safetensors},
};

/// Streams byte by byte: the refusal, and after how many bytes it came.
fn refused_at(
    bytes: &[u8],
    layout: &Arc<SliceLayout>,
    limits: Limits,
    announced: Option<u64>,
) -> (Refusal, usize) {
    let mut stream = Stream::new(layout.clone(), limits, None, announced).unwrap();
    for (at, byte) in bytes.iter().enumerate() {
        if let Err(refusal) = stream.push(&[*byte]) {
            assert_eq!(stream.push(b"more"), Err(refusal.clone()), "a refusal is final");
            assert_eq!(stream.finish().unwrap_err(), refusal);
            return (refusal, at + 1);
        }
    }
    (stream.finish().unwrap_err(), bytes.len() + 1)
}

fn flaw_at(bytes: &[u8], layout: &Arc<SliceLayout>) -> (Flaw, usize) {
    let (refusal, at) = refused_at(bytes, layout, Limits::default(), None);
    (refusal.flaw().unwrap_or_else(|| panic!("{refusal}")), at)
}

const A: &str = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;

#[test]
fn what_is_no_checkpoint_is_refused_by_its_first_bytes() {
    let layout = own_layout(&safetensors(A, &[0; 16]));
    assert_eq!(flaw_at(b"this is not a model", &layout), (Flaw::NotACheckpoint, 9));
    assert_eq!(flaw_at(&[0; 100], &layout), (Flaw::NotACheckpoint, 9));
    let endless = [&u64::MAX.to_le_bytes()[..], b"{{{{{{"].concat();
    assert_eq!(flaw_at(&endless, &layout), (Flaw::HeaderTooLarge, 9));
    // Too short to tell: at the end.
    assert_eq!(flaw_at(b"PK\x03\x04", &layout), (Flaw::Truncated, 5));
    assert_eq!(flaw_at(b"PK", &layout), (Flaw::NotACheckpoint, 3));
    assert_eq!(flaw_at(b"", &layout), (Flaw::EmptyFile, 1));
}

#[test]
fn a_header_is_judged_with_its_last_byte() {
    let layout = own_layout(&safetensors(A, &[0; 16]));
    let end = 8 + A.len();
    let bent = |from: &str, to: &str| {
        let header = A.replace(from, to);
        assert_eq!(header.len(), A.len());
        refused_at(&safetensors(&header, &[0; 16]), &layout, Limits::default(), None)
    };
    let cases = [
        ("\"a\"", "\"b\"", "foreign_tensor"),
        ("F32", "I32", "wrong_dtype"),
        ("[4]", "[5]", "malformed"),
        ("[0,16]", "[1,17]", "malformed"),
        ("F32", "F99", "malformed"),
        ("}}", "}]", "malformed"),
    ];
    for (from, to, reason) in cases {
        let (refusal, at) = bent(from, to);
        assert_eq!((refusal.reason(), at), (reason, end), "{to}");
    }
    let shape = A.replace("[4]", "[2,2]");
    let file = safetensors(&shape, &[0; 16]);
    let (refusal, at) = refused_at(&file, &layout, Limits::default(), None);
    assert_eq!((refusal.reason(), at), ("wrong_shape", 8 + shape.len()));
    let none = "{}";
    assert_eq!(flaw_at(&safetensors(none, &[0; 16]), &layout), (Flaw::NoTensors, 10));
    let shared = SliceLayout { shared: ["a".to_owned()].into(), ..SliceLayout::default() };
    let file = safetensors(A, &[0; 16]);
    let (refusal, at) = refused_at(&file, &Arc::new(shared), Limits::default(), None);
    assert_eq!((refusal.reason(), at), ("shared_weights", end));
}

#[test]
fn a_value_that_is_not_finite_is_refused_with_its_last_byte() {
    let layout = own_layout(&safetensors(A, &[0; 16]));
    let values = [1.0, 2.0, f32::NEG_INFINITY, f32::NAN];
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let file = safetensors(A, &data);
    let (refusal, at) = refused_at(&file, &layout, Limits::default(), None);
    assert_eq!(refusal.to_string(), "non_finite: a[2] is -inf");
    assert_eq!(at, 8 + A.len() + 12);

    let mut storage: Vec<u8> = [1.0f32; 16].iter().flat_map(|v| v.to_le_bytes()).collect();
    storage[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
    let file = pt(&state_dict(&plain()), &storage);
    let start = file.windows(64).position(|window| window == storage).unwrap();
    let (refusal, at) = refused_at(&file, &own_layout(&file), Limits::default(), None);
    assert_eq!(refusal.to_string(), "non_finite: t[3] is NaN");
    assert_eq!(at, start + 16);
}

#[test]
fn bytes_behind_the_last_tensor_are_refused_with_the_first_of_them() {
    let layout = own_layout(&safetensors(A, &[0; 16]));
    let file = safetensors(A, &[0; 30]);
    assert_eq!(flaw_at(&file, &layout), (Flaw::BadOffsets, 8 + A.len() + 17));
    let file = safetensors(A, &[0; 15]);
    assert_eq!(flaw_at(&file, &layout), (Flaw::Truncated, file.len() + 1));
    let file = &safetensors(A, b"")[..20];
    assert_eq!(flaw_at(file, &layout), (Flaw::Truncated, 21));
}

#[test]
fn an_archive_is_judged_by_its_pickle_and_by_each_local_header() {
    let pickle = state_dict(&plain());
    let file = pt(&pickle, &[0; 64]);
    let layout = own_layout(&file);
    let pickle_end = 30 + "a/data.pkl".len() + pickle.len();
    let forbidden = pt(&state_dict(b"cposix\nsystem\nX\x02\0\0\0id\x85R"), &[0; 64]);
    let (refusal, at) = refused_at(&forbidden, &layout, Limits::default(), None);
    assert_eq!(refusal.reason(), "forbidden_pickle");
    assert!(at < forbidden.len() - 200, "{at} of {}", forbidden.len());
    let foreign = Arc::new(SliceLayout::default());
    let (refusal, at) = refused_at(&file, &foreign, Limits::default(), None);
    assert_eq!((refusal.reason(), at), ("foreign_tensor", pickle_end));

    let next = pickle_end + 30 + "a/data/0".len();
    let with =
        |second: Entry| flaw_at(&zip(&[Entry::stored("a/data.pkl", &pickle), second]), &layout);
    assert_eq!(with(Entry::stored("a/data/0", &[0; 60])), (Flaw::OutOfStorage, next));
    let deflated = Entry { method: 8, ..Entry::stored("a/data/0", &[0; 64]) };
    assert_eq!(with(deflated), (Flaw::CompressedEntry, next));
    let encrypted = Entry { flags: 1, ..Entry::stored("a/data/0", &[0; 64]) };
    assert_eq!(with(encrypted), (Flaw::EncryptedEntry, next));
    assert_eq!(with(Entry::stored("b/data.pkl", &pickle)), (Flaw::MissingEntry, next + 2));
    let twice = zip(&[
        Entry::stored("a/data.pkl", &pickle),
        Entry::stored("a/data/0", &[0; 64]),
        Entry::stored("a/data/0", &[0; 64]),
    ]);
    assert_eq!(flaw_at(&twice, &layout), (Flaw::DuplicateEntry, next + 64 + 38));
}

#[test]
fn an_announced_size_is_held_against_the_file() {
    let file = safetensors(A, &[0; 16]);
    let (layout, len) = (own_layout(&file), file.len() as u64);
    let limits = Limits::default();
    let refused = |announced| {
        let (refusal, at) = refused_at(&file, &layout, limits, Some(announced));
        (refusal.flaw().unwrap(), at)
    };
    let end = 8 + A.len();
    assert_eq!(refused(len - 1), (Flaw::Truncated, end), "the header tells of more");
    assert_eq!(refused(len + 1), (Flaw::BadOffsets, end), "the header tells of less");
    assert_eq!(refused(20), (Flaw::Truncated, 9), "not even the header fits");
    let new = |announced, limits| Stream::new(layout.clone(), limits, None, Some(announced));
    assert_eq!(new(0, limits).unwrap_err().flaw(), Some(Flaw::EmptyFile));
    let small = Limits { max_file_bytes: 99, ..limits };
    assert_eq!(new(100, small).unwrap_err().flaw(), Some(Flaw::FileTooLarge));

    let file = pt(&state_dict(&plain()), &[0; 64]);
    let layout = own_layout(&file);
    let refused = |announced| {
        let (refusal, at) = refused_at(&file, &layout, limits, Some(announced));
        (refusal.flaw().unwrap(), at)
    };
    assert_eq!(refused(file.len() as u64 - 1), (Flaw::WrongLength, file.len()));
    assert_eq!(refused(file.len() as u64 + 1), (Flaw::WrongLength, file.len() + 1));
}

#[test]
fn a_file_without_an_announced_size_ends_at_the_limit() {
    let file = fs::read(vectors().join("miner1_g0.pt")).unwrap();
    let layout = layout_of("miner1_g0.pt");
    let limits = Limits { max_file_bytes: 152_000, ..Limits::default() };
    let (refusal, at) = refused_at(&file, &layout, limits, None);
    assert_eq!((refusal.flaw(), at), (Some(Flaw::FileTooLarge), 152_001));
    // What the storages add up to is known with the pickle.
    let limits = Limits { max_file_bytes: 100_000, ..Limits::default() };
    let (refusal, at) = refused_at(&file, &layout, limits, None);
    assert_eq!(refusal.flaw(), Some(Flaw::FileTooLarge));
    assert!(at < 3000, "{at}");
    let limits = Limits { max_header_bytes: 1000, ..Limits::default() };
    let (refusal, at) = refused_at(&file, &layout, limits, None);
    assert_eq!(refusal.flaw(), Some(Flaw::PickleTooLarge));
    assert!(at < 1100, "{at}");
}
