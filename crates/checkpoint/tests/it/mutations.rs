//! Any bytes at all, and valid files with a few of them changed: a checkpoint or a named refusal, never a panic.

use std::fs;

use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::{fuzz_body, setup::vectors};

proptest! {
    #[test]
    fn any_bytes_are_a_checkpoint_or_a_refusal(bytes: Vec<u8>) {
        fuzz_body::file(&bytes);
        fuzz_body::pickle(&bytes);
        fuzz_body::header(&bytes);
        fuzz_body::file(&[b"PK\x03\x04", &bytes[..]].concat());
    }

    #[test]
    fn any_instructions_are_a_checkpoint_or_a_refusal(
        ops in prop::collection::vec(prop::sample::select(INSTRUCTIONS), 0..60),
    ) {
        fuzz_body::pickle(&[b"\x80\x02", &ops.concat()[..], b"."].concat());
    }
}

/// What pickles are made of, so that random ones get past the first instruction.
const INSTRUCTIONS: &[&[u8]] = &[
    b"}", b"]", b")", b"(", b"t", b"u", b"s", b"e", b"a", b"R", b"Q", b"b", b"N", b"\x85", b"\x86",
    b"\x87", b"K\x00", b"K\x01", b"K\x10", b"J\xff\xff\xff\xff", b"\x8a\x00", b"\x8a\x01\xff", b"q\x00",
    b"h\x00", b"q\x01", b"h\x01", b"X\x01\0\0\x000", b"X\x07\0\0\0storage", b"X\x10\0\0\0model_state_dict",
    b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n",
    b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000NK\x10tQ",
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000NK\x10tQK\0K\x04\x85K\x01\x85NNtR",
];

/// Changes a few bytes, cuts, repeats or joins.
pub(crate) fn mutate(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng, hot: std::ops::Range<usize>) {
    for _ in 0..rng.random_range(1..6) {
        if bytes.is_empty() {
            return;
        }
        let len = bytes.len();
        // Most of a file is data, where nothing can go wrong: aim at the parts that are parsed.
        let hot = hot.start.min(len - 1)..hot.end.clamp(hot.start.min(len - 1) + 1, len);
        let tail = len.saturating_sub(4000)..len;
        let region = if rng.random_bool(0.5) { hot } else { tail };
        let at = rng.random_range(region);
        match rng.random_range(0..8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..(at + rng.random_range(1..20)).min(len))),
            2 => bytes.insert(at, rng.random()),
            3 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
            4 => bytes[at] ^= 1 << rng.random_range(0..8),
            5 => bytes[at] = bytes[at].wrapping_add(1),
            6 => {
                let from = rng.random_range(0..len);
                let part = bytes[from..(from + 16).min(len)].to_vec();
                bytes.splice(at..at, part);
            }
            _ => bytes[at] = rng.random(),
        }
    }
}

#[test]
fn thousands_of_bent_vectors_are_checkpoints_or_refusals() {
    // The smallest files of each kind; their number keeps the test in seconds.
    let names = [
        "miner1_g0.pt",
        "hostile_exec.pt",
        "hostile_empty.pt",
        "outer_sgd.safetensors",
        "miner2_g1.safetensors",
    ];
    let files = names.map(|name| fs::read(vectors().join(name)).unwrap());
    let (mut read, mut refused) = (0, 0);
    for seed in 0..4000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let file = &files[rng.random_range(0..files.len())];
        let mut bytes = file.clone();
        mutate(&mut bytes, &mut rng, 0..3200);
        let outcome = std::panic::catch_unwind(|| fuzz_body::file(&bytes));
        match outcome.unwrap_or_else(|_| panic!("seed {seed}")) {
            true => read += 1,
            false => refused += 1,
        }
    }
    assert!(read > 100 && refused > 1000, "{read} read, {refused} refused");
}

#[test]
fn bent_pickles_and_headers_of_the_vectors_are_checkpoints_or_refusals() {
    let file = fs::read(vectors().join("miner1_g0.safetensors")).unwrap();
    let (length, rest) = file.split_first_chunk().unwrap();
    let header = &rest[..u64::from_le_bytes(*length) as usize];
    let pt = fs::read(vectors().join("miner1_g0.pt")).unwrap();
    let start = pt.windows(3).position(|w| w == b"\x80\x02}").unwrap();
    let len = pt[start..].windows(3).position(|w| w == b"us.").unwrap() + 3;
    let pickle = &pt[start..start + len];
    assert!(!fuzz_body::pickle(pickle), "its other storages are missing");
    for seed in 0..4000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut pickle, mut header) = (pickle.to_vec(), header.to_vec());
        mutate(&mut pickle, &mut rng, 0..len);
        mutate(&mut header, &mut rng, 0..len);
        let outcome = std::panic::catch_unwind(|| {
            fuzz_body::pickle(&pickle);
            fuzz_body::header(&header);
        });
        assert!(outcome.is_ok(), "seed {seed}");
    }
}

#[test]
fn the_unbent_vectors_pass_through_the_fuzz_body() {
    assert!(fuzz_body::file(&fs::read(vectors().join("miner1_g0.pt")).unwrap()));
    assert!(fuzz_body::file(&fs::read(vectors().join("outer_sgd.safetensors")).unwrap()));
    assert!(!fuzz_body::file(&fs::read(vectors().join("hostile_exec.pt")).unwrap()));
}
