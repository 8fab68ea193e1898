//! Files made to hurt a reader: each is refused at once and says what it tried.

use checkpoint::{Checkpoint, Flaw, Limits, Refusal};

use crate::archive::{Entry, pt, zip};

fn refusal(file: Vec<u8>) -> Refusal {
    Checkpoint::from_bytes(file, Limits::default()).unwrap_err()
}

fn flaw(file: Vec<u8>) -> Flaw {
    let refusal = refusal(file);
    refusal.flaw().unwrap_or_else(|| panic!("{refusal}"))
}

/// A pickled `{"model_state_dict": {"t": <value>}}`.
pub(crate) fn state_dict(value: &[u8]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}X\x10\0\0\0model_state_dict}X\x01\0\0\0t".to_vec();
    pickle.extend(value);
    pickle.extend(b"ss.");
    pickle
}

/// A tensor over a storage of 16 floats, given the pickled offset, shape and strides.
pub(crate) fn tensor(offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    tensor_over(b"K\x10", offset, shape, strides)
}

/// As [`tensor`], over a storage of this many floats.
pub(crate) fn tensor_over(elements: &[u8], offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let parts: [&[u8]; 8] = [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu",
        elements,
        b"tQ",
        offset,
        shape,
        strides,
        b"\x89ccollections\nOrderedDict\n)RtR",
    ];
    parts.concat()
}

fn tensor_file(offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    pt(&state_dict(&tensor(offset, shape, strides)), &[0; 64])
}

const PLAIN: [&[u8]; 3] = [b"K\0", b"K\x04K\x04\x86", b"K\x04K\x01\x86"];

pub(crate) fn plain() -> Vec<u8> {
    tensor(PLAIN[0], PLAIN[1], PLAIN[2])
}

#[test]
fn the_plain_tensor_that_the_others_are_bent_from_is_read() {
    let file = Checkpoint::from_bytes(pt(&state_dict(&plain()), &[0; 64]), Limits::default());
    assert_eq!(file.unwrap().tensors()["t"].shape(), [4, 4]);
}

#[test]
fn tensors_that_lie_about_their_storage_are_refused() {
    let [zero, shape, strides] = PLAIN;
    let cases: [(&str, Vec<u8>, Flaw); 8] = [
        ("behind the end", tensor_file(b"K\x01", shape, strides), Flaw::OutOfStorage),
        ("before the start", tensor_file(b"J\xff\xff\xff\xff", shape, strides), Flaw::OutOfStorage),
        (
            "4e18 elements over 64 bytes",
            tensor_file(zero, b"J\0\x94\x35\x77J\0\x94\x35\x77\x86", b"K\0K\0\x86"),
            Flaw::HugeShape,
        ),
        (
            "16 elements in one place",
            tensor_file(zero, shape, b"K\0K\0\x86"),
            Flaw::OverlappingStrides,
        ),
        ("windows", tensor_file(zero, shape, b"K\x01K\x01\x86"), Flaw::OverlappingStrides),
        (
            "a negative dimension",
            tensor_file(zero, b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
            Flaw::BadPickle,
        ),
        ("a dimension too many", tensor_file(zero, shape, b"K\x01\x85"), Flaw::BadPickle),
        (
            "nine dimensions",
            tensor_file(zero, b"(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t", strides),
            Flaw::TooManyDimensions,
        ),
    ];
    for (what, file, expected) in cases {
        assert_eq!(flaw(file), expected, "{what}");
    }
    let other_size = pt(&state_dict(&plain()), &[0; 60]);
    assert_eq!(flaw(other_size), Flaw::OutOfStorage);
}

#[test]
fn nothing_but_a_plain_tensor_dictionary_is_understood() {
    for global in [
        "posix\nsystem",
        "os\nsystem",
        "builtins\neval",
        "__builtin__\nexec",
        "torch\nload",
        "torch._utils\n_rebuild_tensor",
        "torch.jit\nload",
        "collections\ndefaultdict",
        "torch\nUntypedStorage",
        "numpy.core.multiarray\nscalar",
    ] {
        let value = format!("c{global}\nX\x02\0\0\0id\u{0}");
        let refusal = refusal(pt(&state_dict(&value.into_bytes()), b""));
        assert_eq!(refusal.reason(), "forbidden_pickle", "{global}: {refusal}");
        assert!(refusal.to_string().contains(&global.replace('\n', ".")), "{refusal}");
    }
    // INST, OBJ, NEWOBJ, STACK_GLOBAL, EXT1, PERSID, BYTEARRAY8, FRAME and an unknown one.
    for opcode in [b'i', b'o', 0x81, 0x93, 0x82, b'P', 0x96, 0x95, 0xff] {
        let refusal = refusal(pt(&state_dict(&[opcode]), b""));
        assert_eq!(refusal.reason(), "forbidden_pickle", "{opcode:#x}: {refusal}");
    }
    let called = [&plain()[..], b")R"].concat();
    assert_eq!(refusal(pt(&state_dict(&called), &[0; 64])).reason(), "forbidden_pickle");
    let storage = b"ctorch\nFloatStorage\nK\x10\x85R";
    assert_eq!(refusal(pt(&state_dict(storage), b"")).reason(), "forbidden_pickle");
    let built = [&plain()[..], b"}b"].concat();
    assert_eq!(refusal(pt(&state_dict(&built), &[0; 64])).reason(), "forbidden_pickle");
    let protocol4 = [b"\x80\x04", &state_dict(&plain())[2..]].concat();
    assert_eq!(refusal(pt(&protocol4, &[0; 64])).reason(), "forbidden_pickle");
}

#[test]
fn broken_pickles_are_refused_by_name() {
    let cases: [(&str, Vec<u8>, Flaw); 13] = [
        (
            "rebuild without arguments",
            state_dict(b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
            Flaw::BadPickle,
        ),
        (
            "an integer of 32 bytes",
            state_dict(&[&[0x8a, 32][..], &[1; 32]].concat()),
            Flaw::BadPickle,
        ),
        ("an unknown memo", state_dict(b"h\x07"), Flaw::BadPickle),
        ("an empty stack", b"\x80\x02ss.".to_vec(), Flaw::BadPickle),
        ("no mark", b"\x80\x02}u.".to_vec(), Flaw::BadPickle),
        ("a mark in between", b"\x80\x02}(.".to_vec(), Flaw::BadPickle),
        ("a key without a value", b"\x80\x02}(K\x01u.".to_vec(), Flaw::BadPickle),
        ("a text of 4 GiB", b"\x80\x02X\xff\xff\xff\xffabc".to_vec(), Flaw::BadPickle),
        (
            "a persistent id of another kind",
            state_dict(b"(K\x01K\x01K\x01K\x01K\x01tQ"),
            Flaw::BadPickle,
        ),
        ("bytes after the end", [&state_dict(&plain())[..], b"."].concat(), Flaw::BadPickle),
        ("no protocol", b"}.".to_vec(), Flaw::BadPickle),
        ("a number for a tensor", state_dict(b"K\x01"), Flaw::NotAStateDict),
        ("a list for the root", b"\x80\x02].".to_vec(), Flaw::NotAStateDict),
    ];
    for (what, pickle, expected) in cases {
        assert_eq!(flaw(pt(&pickle, &[0; 64])), expected, "{what}");
    }
    let twice = [&plain()[..], b"sX\x01\0\0\0t", &plain()].concat();
    assert_eq!(flaw(pt(&state_dict(&twice), &[0; 64])), Flaw::DuplicateTensor);
    let other_key = b"\x80\x02}X\x05\0\0\0model}s.";
    assert_eq!(flaw(pt(other_key, b"")), Flaw::NotAStateDict);
}

#[test]
fn a_memo_bomb_stays_small_and_deep_nesting_does_not_recurse() {
    // Each level holds the one before twice: a tree of 2^60 leaves in 300 bytes.
    let mut bomb = b"()q\0".to_vec();
    for level in 0..60u8 {
        bomb.extend([b'h', level, b'h', level, 0x86, b'q', level + 1]);
    }
    bomb.push(b't');
    assert_eq!(flaw(pt(&state_dict(&bomb), b"")), Flaw::NotAStateDict);
    let deep = |levels| state_dict(&[b")", &[0x85].repeat(levels)[..]].concat());
    assert_eq!(flaw(pt(&deep(1_000_000), b"")), Flaw::NotAStateDict);
    // A million values are kept; ten million, one for each byte, are not.
    assert_eq!(flaw(pt(&deep(10_000_000), b"")), Flaw::PickleTooLarge);
    let marks = b"(".repeat(1_000_000);
    assert_eq!(flaw(pt(&state_dict(&marks), b"")), Flaw::BadPickle);
    // A dictionary that is its own value.
    let own = b"\x80\x02}q\0X\x10\0\0\0model_state_dicth\0s.";
    assert_eq!(flaw(pt(own, b"")), Flaw::NotAStateDict);
}

#[test]
fn many_views_of_one_storage_do_not_multiply_it() {
    let views = |tensor: &[u8], storage: usize| {
        let mut pickle = b"\x80\x02}X\x10\0\0\0model_state_dict}(".to_vec();
        for name in b'a'..=b'z' {
            pickle.extend([b'X', 1, 0, 0, 0, name]);
            pickle.extend(tensor);
        }
        pickle.extend(b"us.");
        Checkpoint::from_bytes(pt(&pickle, &vec![0; storage]), Limits::default())
    };
    assert!(views(&plain(), 64).is_ok(), "26 small ones are harmless");
    let count = b"J\0\0\x04\0";
    let large = tensor_over(count, b"K\0", &[&count[..], b"\x85"].concat(), b"K\x01\x85");
    assert_eq!(views(&large, 4 << 18).unwrap_err().flaw(), Some(Flaw::StorageBomb));
}

#[test]
fn archives_that_torch_would_not_write_are_refused() {
    let pickle = state_dict(&plain());
    let entries =
        || vec![Entry::stored("a/data.pkl", &pickle), Entry::stored("a/data/0", &[0; 64])];
    let with = |entry: Entry| {
        let mut entries = entries();
        entries.push(entry);
        zip(&entries)
    };
    assert_eq!(flaw(with(Entry::stored("a/data/0", &[0; 64]))), Flaw::DuplicateEntry);
    assert_eq!(flaw(with(Entry::stored("b/data.pkl", &pickle))), Flaw::MissingEntry);
    assert_eq!(flaw(with(Entry::stored("a/byteorder", b"big"))), Flaw::BigEndian);
    let deflated = Entry { method: 8, ..Entry::stored("a/data/1", &[0; 64]) };
    assert_eq!(flaw(with(deflated)), Flaw::CompressedEntry);
    let encrypted = Entry { flags: 1, ..Entry::stored("a/data/1", &[0; 64]) };
    assert_eq!(flaw(with(encrypted)), Flaw::EncryptedEntry);
    assert_eq!(flaw(zip(&entries()[1..])), Flaw::MissingEntry);
    assert_eq!(flaw(zip(&entries()[..1])), Flaw::MissingEntry);
    assert_eq!(flaw([zip(&entries()), b"tail".to_vec()].concat()), Flaw::Truncated);
}

/// Offsets of the directory's entries in an archive.
fn directory(file: &[u8]) -> Vec<usize> {
    (0..file.len()).filter(|at| file[*at..].starts_with(b"PK\x01\x02")).collect()
}

#[test]
fn directories_that_lie_are_refused() {
    let entries = [
        Entry::stored("a/data.pkl", &state_dict(&plain())),
        Entry::stored("a/data/0", &[0; 64]),
        Entry::stored("a/data/1", &[0; 64]),
    ];
    let honest = zip(&entries);
    let at = directory(&honest);
    let bend = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = honest.clone();
        change(&mut file);
        flaw(file)
    };
    let both_sizes = |file: &mut Vec<u8>, at: usize, size: u32| {
        file[at + 20..at + 24].copy_from_slice(&size.to_le_bytes());
        file[at + 24..at + 28].copy_from_slice(&size.to_le_bytes());
    };
    assert_eq!(bend(&|file| both_sizes(file, at[1], 100)), Flaw::OverlappingEntries);
    assert_eq!(bend(&|file| both_sizes(file, at[2], 100)), Flaw::OverlappingEntries);
    assert_eq!(bend(&|file| both_sizes(file, at[2], 1 << 30)), Flaw::Truncated);
    assert_eq!(bend(&|file| file[at[1] + 24] = 65), Flaw::CompressedEntry);
    assert_eq!(bend(&|file| file[at[1] + 42] ^= 1), Flaw::BadArchive, "no local header there");
    let other_name = |file: &mut Vec<u8>| file[at[2] + 46 + 7] = b'9';
    assert_eq!(bend(&other_name), Flaw::BadArchive, "another name than in the local header");
    let end = honest.len() - 22;
    assert_eq!(bend(&|file| file[end + 10] = 2), Flaw::BadArchive, "fewer entries than there are");
    assert_eq!(bend(&|file| file[end + 10] = 9), Flaw::BadArchive, "more entries than there are");
    assert_eq!(bend(&|file| file[end + 19] = 0xff), Flaw::BadArchive, "a directory far away");
}

#[test]
fn the_limits_are_kept() {
    let file = pt(&state_dict(&plain()), &[0; 64]);
    let limited =
        |limits| Checkpoint::from_bytes(file.clone(), limits).unwrap_err().flaw().unwrap();
    let limits = Limits::default();
    assert_eq!(limited(Limits { max_file_bytes: 100, ..limits }), Flaw::FileTooLarge);
    assert_eq!(limited(Limits { max_header_bytes: 110, ..limits }), Flaw::PickleTooLarge);
    assert_eq!(limited(Limits { max_header_bytes: 10, ..limits }), Flaw::HeaderTooLarge);
    assert_eq!(limited(Limits { max_tensors: 0, ..limits }), Flaw::TooManyTensors);
}
