//! A file that arrives in pieces is judged as the whole file is.

use std::{fs, sync::Arc};

use bytes::Bytes;
use checkpoint::{
    Checkpoint, Dtype, Limits, MemoryTensors, Outcome, RereadReason, SliceLayout, Stream, Streamed,
    TensorSource as _, TensorSpec, model_hash, verify, write_pt, write_safetensors,
};
use domain::ModelHash;
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

use crate::{
    archive::{Entry, pt, zip},
    hostile::{plain, state_dict, tensor, tensor_over},
    mutations::mutate,
    setup::{open_vector, vectors},
    stream_body::{self, Agreed},
};

/// The layout that a vector's tensors have.
pub(crate) fn layout_of(name: &str) -> Arc<SliceLayout> {
    let tensors = open_vector(name).specs().clone();
    Arc::new(SliceLayout { tensors, ..SliceLayout::default() })
}

/// The layout of a file in memory.
pub(crate) fn own_layout(bytes: &[u8]) -> Arc<SliceLayout> {
    let file = Checkpoint::from_bytes(bytes.to_vec(), Limits::default()).unwrap();
    Arc::new(SliceLayout { tensors: file.specs().clone(), ..SliceLayout::default() })
}

/// Streams a file that nothing is found against.
pub(crate) fn stream(bytes: &[u8], layout: &Arc<SliceLayout>, step: usize) -> Streamed {
    let announced = Some(bytes.len() as u64);
    let mut stream = Stream::new(layout.clone(), Limits::default(), None, announced).unwrap();
    bytes.chunks(step).for_each(|piece| stream.push(piece).unwrap());
    stream.finish().unwrap()
}

/// A safetensors file with this header.
pub(crate) fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    file
}

fn reread_reason(streamed: &Streamed) -> Option<RereadReason> {
    match &streamed.outcome {
        Outcome::Verified(_) => None,
        Outcome::NeedsReread(reread) => Some(reread.reason()),
    }
}

/// Sizes of pieces: bytes, a few, many, or a mixture.
fn steps(rng: &mut ChaCha8Rng) -> Vec<usize> {
    let most = [1, 7, 300, 5000, 200_000][rng.random_range(0..5)];
    (0..rng.random_range(1..8)).map(|_| rng.random_range(1..=most)).collect()
}

#[test]
fn every_vector_is_judged_in_pieces_as_it_is_judged_whole() {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let (mut accepted, mut refused) = (0, 0);
    let layout = layout_of("miner1_g0.pt");
    let names = fs::read_dir(vectors()).unwrap().map(|e| e.unwrap().file_name());
    for name in names.filter_map(|name| name.into_string().ok()) {
        if !name.ends_with(".pt") && !name.ends_with(".safetensors") {
            continue;
        }
        let bytes = fs::read(vectors().join(&name)).unwrap();
        for _ in 0..6 {
            match stream_body::stream(&bytes, &layout, &steps(&mut rng)) {
                Agreed::Accepted => accepted += 1,
                Agreed::Refused => refused += 1,
                Agreed::RefusedOtherwise => panic!("{name}: another reason"),
            }
        }
    }
    assert!(accepted >= 24 && refused >= 72, "{accepted} accepted, {refused} refused");
}

#[test]
fn a_stream_goes_to_another_thread_between_two_pieces() {
    let bytes = fs::read(vectors().join("miner1_g0.safetensors")).unwrap();
    let layout = layout_of("miner1_g0.safetensors");
    let mut stream = Stream::new(layout, Limits::default(), None, None).unwrap();
    for piece in bytes.chunks(50_000) {
        let piece = piece.to_vec();
        let pushed = std::thread::spawn(move || stream.push(&piece).map(|()| stream));
        stream = pushed.join().unwrap().unwrap();
    }
    assert!(matches!(stream.finish().unwrap().outcome, Outcome::Verified(_)));
}

#[test]
fn what_is_shared_with_the_hash_is_judged_as_what_is_copied() {
    let mut tensors = MemoryTensors::default();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // Large ones, small ones in between, and none that ends with a piece.
    for (nth, elements) in [90_001, 3, 250_000, 5_000, 77_777].into_iter().enumerate() {
        let spec = TensorSpec { dtype: Dtype::F32, shape: vec![elements] };
        let values = (0..elements).flat_map(|_| rng.random::<f32>().to_le_bytes()).collect();
        tensors.insert(&format!("t{nth}"), spec, values).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    for write in [write_safetensors, write_pt] {
        write(&path, &tensors).unwrap();
        let bytes = Bytes::from(fs::read(&path).unwrap());
        let layout = own_layout(&bytes);
        let copied = stream(&bytes, &layout, 100_000);
        for step in [1 << 20, 256 << 10, 50_001] {
            let mut stream = Stream::new(layout.clone(), Limits::default(), None, None).unwrap();
            for start in (0..bytes.len()).step_by(step) {
                let piece = bytes.slice(start..bytes.len().min(start + step));
                stream.push_shared(&piece).unwrap();
            }
            let shared = stream.finish().unwrap();
            assert_eq!(shared.sha256, copied.sha256);
            let spool = Checkpoint::from_bytes(bytes.to_vec(), Limits::default()).unwrap();
            let verified = match shared.outcome {
                Outcome::Verified(verified) => verified,
                // The directory is all that is left: the hash is known.
                Outcome::NeedsReread(reread) => {
                    assert_eq!(reread.reason(), RereadReason::Directory);
                    reread.verify(&spool).unwrap()
                }
            };
            assert_eq!(verified.model_hash, model_hash(&spool).unwrap(), "{step}");
        }
    }
}

#[test]
fn an_honest_file_is_verified_in_one_pass() {
    for name in ["miner0_g0", "miner1_g1", "miner2_g0"] {
        let file = format!("{name}.safetensors");
        let (bytes, layout) = (fs::read(vectors().join(&file)).unwrap(), layout_of(&file));
        let streamed = stream(&bytes, &layout, 1000);
        assert_eq!(streamed.sha256, hex::encode(Sha256::digest(&bytes)));
        assert_eq!(streamed.tensors, layout.tensors);
        let Outcome::Verified(verified) = streamed.outcome else { panic!("{name}") };
        assert_eq!(Ok(verified), verify(&open_vector(&file), &layout, None));
        // torch's archives are in the order of the model: read again for the hash, and for nothing else.
        let file = format!("{name}.pt");
        let bytes = fs::read(vectors().join(&file)).unwrap();
        let streamed = stream(&bytes, &layout, 1000);
        assert_eq!(streamed.sha256, hex::encode(Sha256::digest(&bytes)));
        assert_eq!(reread_reason(&streamed), Some(RereadReason::TensorOrder), "{name}");
        let Outcome::NeedsReread(reread) = streamed.outcome else { panic!("{name}") };
        assert_eq!(reread.verify(&open_vector(&file)), Ok(verified));
    }
}

#[test]
fn thousands_of_bent_vectors_are_judged_in_pieces_as_they_are_judged_whole() {
    let names = ["miner1_g0.pt", "miner2_g0.pt", "miner1_g0.safetensors", "miner2_g0.safetensors"];
    let layout = layout_of("miner1_g0.pt");
    let files = names.map(|name| fs::read(vectors().join(name)).unwrap());
    let (mut accepted, mut refused, mut others) = (0, 0, 0);
    for seed in 0..2000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = files[rng.random_range(0..files.len())].clone();
        if rng.random_bool(0.2) {
            let at = rng.random_range(3200..bytes.len() - 4000);
            bytes[at..at + 4].copy_from_slice(&[0xff, 0x7f, 0xff, 0x7f]);
        }
        if rng.random_bool(0.9) {
            mutate(&mut bytes, &mut rng, 0..3200);
        }
        let steps = steps(&mut rng);
        let judged = std::panic::catch_unwind(|| stream_body::stream(&bytes, &layout, &steps));
        match judged.unwrap_or_else(|_| panic!("seed {seed}")) {
            Agreed::Accepted => accepted += 1,
            Agreed::Refused => refused += 1,
            Agreed::RefusedOtherwise => others += 1,
        }
    }
    assert!(accepted > 150 && refused > 700, "{accepted} accepted, {refused} refused");
    // Most are bent in several places.
    assert!(others < refused, "{others} for another reason, {refused} for the same");
}

#[test]
fn bent_hostile_archives_are_judged_in_pieces_as_they_are_judged_whole() {
    // As they are, and as torch writes them: with sizes behind the data.
    let entry = |flags| {
        [
            ("a/data.pkl", state_dict(&plain())),
            ("a/note", b"1".to_vec()),
            ("a/data/0", vec![0x3c; 64]),
        ]
        .map(|(name, data)| Entry { flags, ..Entry::stored(name, &data) })
    };
    let files = [zip(&entry(0)), zip(&entry(8))];
    let layout = own_layout(&files[0]);
    assert_eq!(own_layout(&files[1]), layout);
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..6000 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = files[rng.random_range(0..2)].clone();
        mutate(&mut bytes, &mut rng, 0..400);
        let steps = steps(&mut rng);
        let judged = std::panic::catch_unwind(|| stream_body::stream(&bytes, &layout, &steps));
        match judged.unwrap_or_else(|_| panic!("seed {seed}")) {
            Agreed::Accepted => accepted += 1,
            Agreed::Refused | Agreed::RefusedOtherwise => refused += 1,
        }
    }
    assert!(accepted > 100 && refused > 1000, "{accepted} accepted, {refused} refused");
}

proptest! {
    #[test]
    fn any_bytes_are_judged_in_pieces_as_they_are_judged_whole(bytes: Vec<u8>, step in 1usize..50) {
        stream_body::stream_own(&bytes, &[step]);
        stream_body::stream_own(&[b"PK\x03\x04", &bytes[..]].concat(), &[step]);
        stream_body::stream_own(&pt(&bytes, &[0x3c; 64]), &[step]);
        stream_body::stream_own(&safetensors(&String::from_utf8_lossy(&bytes), &[1; 64]), &[step]);
    }
}

/// Tensors of several types, one without elements, laid out in this order.
fn mixed(order: &[&str]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for name in order {
        let (dtype, len, size) = match *name {
            "a" => ("BF16", 1001, 2),
            "b" => ("F32", 0, 4),
            "c" => ("F32", 333, 4),
            _ => ("F16", 7, 2),
        };
        let from = data.len();
        data.extend((0..len * size).map(|n| (n * 31 + size) as u8 & 0x3b));
        let offsets = [from, data.len()];
        let entry = serde_json::json!({"dtype": dtype, "shape": [len], "data_offsets": offsets});
        header.insert((*name).to_owned(), entry);
    }
    safetensors(&serde_json::Value::Object(header).to_string(), &data)
}

#[test]
fn tensors_in_another_order_than_their_names_are_hashed_from_the_stored_file() {
    let layout = own_layout(&mixed(&["a", "b", "c", "d"]));
    let cases: [(&[&str], _); 4] = [
        (&["a", "b", "c", "d"], None),
        (&["a", "c", "d", "b"], None),
        (&["c", "a", "b", "d"], Some(RereadReason::TensorOrder)),
        (&["d", "c", "b", "a"], Some(RereadReason::TensorOrder)),
    ];
    let mut hashes = Vec::new();
    for (order, expected) in cases {
        let bytes = mixed(order);
        for step in [1, 3, 1000, 100_000] {
            let streamed = stream(&bytes, &layout, step);
            assert_eq!(reread_reason(&streamed), expected, "{order:?}");
            let spool = Checkpoint::from_bytes(bytes.clone(), Limits::default()).unwrap();
            let verified = match streamed.outcome {
                Outcome::Verified(verified) => verified,
                Outcome::NeedsReread(reread) => reread.verify(&spool).unwrap(),
            };
            assert_eq!(Ok(verified), verify(&spool, &layout, None));
            hashes.push(verified.model_hash);
        }
    }
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn archives_in_any_order_are_judged_as_a_whole() {
    let pickle = |tensors: &[(&[u8], Vec<u8>)]| {
        let items =
            tensors.iter().map(|(name, tensor)| [b"X\x01\0\0\0", *name, &tensor[..]].concat());
        let items = items.collect::<Vec<_>>().concat();
        [b"\x80\x02}X\x10\0\0\0model_state_dict}(", &items[..], b"us."].concat()
    };
    let of_storage_1 = |tensor: Vec<u8>| {
        let at = tensor.windows(6).position(|w| w == b"X\x01\0\0\x000").unwrap();
        let mut tensor = tensor;
        tensor[at + 5] = b'1';
        tensor
    };
    let data = |n: u8| Entry::stored(&format!("a/data/{n}"), &[0x3c + n; 64]);
    let two = pickle(&[(b"s", plain()), (b"t", of_storage_1(plain()))]);
    let swapped = pickle(&[(b"t", plain()), (b"s", of_storage_1(plain()))]);
    let tied = pickle(&[(b"s", plain()), (b"t", plain())]);
    let transposed = pickle(&[(b"s", tensor(b"K\0", b"K\x04K\x04\x86", b"K\x01K\x04\x86"))]);
    let windows = pickle(&[
        (b"s", tensor_over(b"K\x10", b"K\0", b"K\x08\x85", b"K\x01\x85")),
        (b"t", tensor_over(b"K\x10", b"K\x0a", b"K\x06\x85", b"K\x01\x85")),
    ]);
    let named = |pickle: &[u8]| Entry::stored("a/data.pkl", pickle);
    let cases = [
        ("in order", vec![named(&two), data(0), data(1)], RereadReason::Directory),
        ("storages swapped", vec![named(&two), data(1), data(0)], RereadReason::TensorOrder),
        ("names swapped", vec![named(&swapped), data(0), data(1)], RereadReason::TensorOrder),
        ("pickle last", vec![data(0), data(1), named(&two)], RereadReason::Unscanned),
        ("pickle between", vec![data(0), named(&two), data(1)], RereadReason::Unscanned),
        ("tied", vec![named(&tied), data(0)], RereadReason::Unscanned),
        ("transposed", vec![named(&transposed), data(0)], RereadReason::Unscanned),
        ("a storage with gaps", vec![named(&windows), data(0)], RereadReason::Directory),
        ("a storage unused", vec![named(&windows), data(0), data(1)], RereadReason::Directory),
    ];
    for (what, entries, reason) in cases {
        let bytes = zip(&entries);
        let layout = own_layout(&bytes);
        for step in [1, 10, 10_000] {
            assert_eq!(reread_reason(&stream(&bytes, &layout, step)), Some(reason), "{what}");
            assert_eq!(stream_body::stream(&bytes, &layout, &[step]), Agreed::Accepted, "{what}");
        }
        // A value that is not finite is found wherever it lies, and only inside tensors.
        for at in 0..bytes.len() - 4 {
            if bytes[at..at + 4].iter().all(|b| [0x3c, 0x3d].contains(b)) {
                let mut bytes = bytes.clone();
                bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
                let agreed = stream_body::stream(&bytes, &layout, &[9]);
                assert_ne!(agreed, Agreed::RefusedOtherwise, "{what}: {at}");
            }
        }
    }
}

#[test]
fn a_spool_that_is_not_what_passed_gets_a_verdict_of_its_own() {
    let layout = layout_of("miner1_g0.pt");
    let bytes = fs::read(vectors().join("miner1_g0.pt")).unwrap();
    let Outcome::NeedsReread(reread) = stream(&bytes, &layout, 5000).outcome else { panic!() };
    let other = open_vector("miner2_g0.pt");
    assert_eq!(reread.verify(&other), verify(&other, &layout, None));
    let nan = open_vector("hostile_nan.pt");
    assert_eq!(reread.verify(&nan), verify(&nan, &layout, None));
    let foreign = open_vector("miner1_g1.pt");
    assert_eq!(reread.verify(&foreign).unwrap_err().reason(), "foreign_tensor");
}

#[test]
fn the_committed_hash_is_compared_however_the_file_comes() {
    for name in ["miner1_g0.safetensors", "miner1_g0.pt"] {
        let (layout, spool) = (layout_of(name), open_vector(name));
        let bytes = fs::read(vectors().join(name)).unwrap();
        let hash = model_hash(&spool).unwrap();
        for (expected, fits) in [(hash, true), (ModelHash([0; 24]), false)] {
            let mut stream =
                Stream::new(layout.clone(), Limits::default(), Some(expected), None).unwrap();
            stream.push(&bytes).unwrap();
            let verdict = stream.finish().and_then(|streamed| match streamed.outcome {
                Outcome::Verified(verified) => Ok(verified),
                Outcome::NeedsReread(reread) => reread.verify(&spool),
            });
            assert_eq!(verdict, verify(&spool, &layout, Some(&expected)));
            assert_eq!(verdict.is_ok(), fits);
        }
    }
}
