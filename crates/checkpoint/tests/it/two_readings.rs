//! Archives that read differently from the front and from the back: refused by both readers.

use std::{fs, sync::Arc};

use checkpoint::{Checkpoint, Flaw, Limits, SliceLayout};

use crate::{
    archive::{Entry, pt, zip},
    hostile::{plain, state_dict},
    setup::vectors,
    stream::layout_of,
    stream_body::{self, Agreed},
};

/// The whole file's flaw; a stream refuses it too, whatever the pieces.
fn flaw(bytes: &[u8], layout: &Arc<SliceLayout>) -> Flaw {
    for step in [1, 5, 1 << 20] {
        stream_body::streamed(bytes, layout, &[step]).unwrap_err();
    }
    let refusal = Checkpoint::from_bytes(bytes.to_vec(), Limits::default()).unwrap_err();
    refusal.flaw().unwrap_or_else(|| panic!("{refusal}"))
}

fn layout() -> Arc<SliceLayout> {
    crate::stream::own_layout(&pt(&state_dict(&plain()), &[0; 64]))
}

/// Puts bytes into an archive and moves what the directory says by as much.
fn insert(file: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut bent = file.to_vec();
    bent.splice(at..at, bytes.iter().copied());
    let move_by = |bent: &mut Vec<u8>, field: usize| {
        let value = u32::from_le_bytes(bent[field..field + 4].try_into().unwrap());
        if value as usize >= at {
            let moved = value + bytes.len() as u32;
            bent[field..field + 4].copy_from_slice(&moved.to_le_bytes());
        }
    };
    let end = bent.len() - 22;
    move_by(&mut bent, end + 16);
    let directory: Vec<_> =
        (0..bent.len()).filter(|at| bent[*at..].starts_with(b"PK\x01\x02")).collect();
    directory.into_iter().for_each(|entry| move_by(&mut bent, entry + 42));
    bent
}

#[test]
fn bytes_that_no_entry_has_are_refused() {
    let file = pt(&state_dict(&plain()), &[0; 64]);
    let places: Vec<_> = (1..file.len())
        .filter(|at| {
            file[*at..].starts_with(b"PK\x03\x04") || file[*at..].starts_with(b"PK\x01\x02")
        })
        .collect();
    // Before the second entry and before the directory.
    for at in &places[..2] {
        assert_eq!(flaw(&insert(&file, *at, b"x"), &layout()), Flaw::BadArchive);
        assert_eq!(flaw(&insert(&file, *at, &[0; 40]), &layout()), Flaw::BadArchive);
        let hidden = zip(&[Entry::stored("a/data/1", &[0; 8])]);
        let hidden = &hidden[..30 + 8 + 8];
        assert_eq!(flaw(&insert(&file, *at, hidden), &layout()), Flaw::BadArchive);
    }
}

#[test]
fn a_pickle_that_only_one_reader_sees_is_refused() {
    let (good, other) = (state_dict(&plain()), state_dict(b"cposix\nsystem\n"));
    // The directory tells of the second entry only; who reads from the front sees the first.
    let entries = |first: &[u8], second: &[u8]| {
        vec![
            Entry::stored("a/data.pkl", first),
            Entry::stored("a/data.pkl", second),
            Entry::stored("a/data/0", &[0; 64]),
        ]
    };
    for (first, second) in [(&good, &other), (&other, &good), (&good, &good)] {
        let mut file = zip(&entries(first, second));
        let directory = (0..file.len()).find(|at| file[*at..].starts_with(b"PK\x01\x02")).unwrap();
        file.drain(directory..directory + 46 + "a/data.pkl".len());
        let end = file.len() - 22;
        file[end + 8] = 2;
        file[end + 10] = 2;
        let len = (end - directory) as u32;
        file[end + 12..end + 16].copy_from_slice(&len.to_le_bytes());
        for step in [1, 1000] {
            stream_body::streamed(&file, &layout(), &[step]).unwrap_err();
        }
        let refusal = Checkpoint::from_bytes(file, Limits::default()).unwrap_err();
        assert!(["malformed", "forbidden_pickle"].contains(&refusal.reason()), "{refusal}");
    }
}

#[test]
fn a_local_header_that_tells_another_size_is_refused() {
    let file = pt(&state_dict(&plain()), &[0; 64]);
    let second = (1..file.len()).find(|at| file[*at..].starts_with(b"PK\x03\x04")).unwrap();
    for size in [0u32, 63, 65, 1 << 20, u32::MAX] {
        let mut bent = file.clone();
        bent[second + 18..second + 22].copy_from_slice(&size.to_le_bytes());
        bent[second + 22..second + 26].copy_from_slice(&size.to_le_bytes());
        assert!([Flaw::BadArchive, Flaw::Truncated].contains(&flaw(&bent, &layout())), "{size}");
    }
    for (at, bit, expected) in [
        (6, 1, Flaw::EncryptedEntry),
        (8, 8, Flaw::CompressedEntry),
        (18, 1, Flaw::CompressedEntry),
    ] {
        let mut bent = file.clone();
        bent[second + at] ^= bit;
        assert_eq!(flaw(&bent, &layout()), expected, "only the local header says so");
    }
}

/// torch writes sizes behind the data.
#[test]
fn a_size_behind_the_data_is_held_against_the_pickle() {
    let file = fs::read(vectors().join("miner1_g0.pt")).unwrap();
    let layout = layout_of("miner1_g0.pt");
    let descriptors: Vec<_> =
        (0..file.len()).filter(|at| file[*at..].starts_with(b"PK\x07\x08")).collect();
    assert!(descriptors.len() > 24, "{}", descriptors.len());
    for at in descriptors {
        for bent_byte in [0, 8, 9, 12, 15] {
            let mut bent = file.clone();
            bent[at + bent_byte] ^= 1;
            // The last entry's end is then looked for up to the end of the file.
            let flaw = flaw(&bent, &layout);
            assert!(
                [Flaw::BadArchive, Flaw::Truncated].contains(&flaw),
                "{at} + {bent_byte}: {flaw}"
            );
        }
    }
    // Nobody looks at the archive's own checksums.
    let mut bent = file.clone();
    let first = (0..file.len()).find(|at| file[*at..].starts_with(b"PK\x07\x08")).unwrap();
    bent[first + 4] ^= 1;
    assert_eq!(stream_body::stream(&bent, &layout, &[777]), Agreed::Accepted);
}

#[test]
fn an_end_that_an_entry_pretends_to_have_is_the_only_one_or_none() {
    let pickle = state_dict(&plain());
    // A small entry whose data hold a descriptor of the bytes before it and a whole entry of the storage.
    let storage = zip(&[Entry::stored("a/data/0", &[1; 64])]);
    let storage = &storage[..30 + 8 + 64];
    let mut data = b"note".to_vec();
    data.extend(b"PK\x07\x08\0\0\0\0\x04\0\0\0\x04\0\0\0");
    data.extend(storage);
    let file = |data: &[u8]| {
        zip(&[
            Entry::stored("a/data.pkl", &pickle),
            Entry { flags: 8, ..Entry::stored("a/note", data) },
            Entry::stored("a/data/0", &[0; 64]),
        ])
    };
    assert_eq!(flaw(&file(&data), &layout()), Flaw::BadArchive);
    // Without the pretence it is an archive as torch writes it; but nobody waits long for an end.
    for honest in [&b"note"[..], b"", &[0; 4096]] {
        assert_eq!(stream_body::stream(&file(honest), &layout(), &[3]), Agreed::Accepted);
    }
    assert_eq!(flaw(&file(&[0; 5000]), &layout()), Flaw::BadArchive);
    let mut described = zip(&[
        Entry { flags: 8, ..Entry::stored("a/data.pkl", &pickle) },
        Entry { flags: 8, ..Entry::stored("a/data/0", &[0; 64]) },
    ]);
    assert_eq!(stream_body::stream(&described, &layout(), &[1]), Agreed::Accepted);
    // What follows the pickle's end is no part of it, whatever it is.
    let end = described.windows(4).position(|w| w == b"PK\x07\x08").unwrap();
    described.splice(end..end, *b"N.");
    assert_eq!(flaw(&described, &layout()), Flaw::BadArchive);
}
