use checkpoint::CHUNK;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// Three chunks and a bit of a fourth.
const CUT: Cut = Cut { elements: 3 * CHUNK + 70, chunk: CHUNK, codec: Codec::Int8 };

fn bytes(chunk: u32) -> Vec<u8> {
    (0..CUT.bytes_of(chunk)).map(|n| (n as u8).wrapping_mul(31).wrapping_add(chunk as u8)).collect()
}

fn whole(folder: &TempDir) -> Chunks {
    let mut writing = Writing::create(folder.path().join("whole"), CUT, 0..4).unwrap();
    (0..4).for_each(|chunk| writing.push(&bytes(chunk)).unwrap());
    writing.finish().unwrap()
}

fn begin(
    folder: &TempDir,
    range: Range<u32>,
    listed: Range<u32>,
    list: Vec<Digest>,
    committed: Digest,
) -> Result<Filling, Garbage> {
    Filling::begin(folder.path().join("filling"), CUT, range, listed, list, committed)
}

fn filling(folder: &TempDir, of: &Chunks, range: Range<u32>) -> Filling {
    let committed = Digest::of_chunks(of.list());
    begin(folder, range, 0..4, of.list().to_vec(), committed).unwrap()
}

#[test]
fn a_vector_is_cut_into_whole_chunks_and_a_rest() {
    assert_eq!(CUT.chunks(), 4);
    assert_eq!([0, 2, 3, 4, u32::MAX].map(|n| CUT.elements_of(n)), [CHUNK, CHUNK, 70, 0, 0]);
    assert_eq!(CUT.bytes_of(3), 74);
    assert_eq!(Cut { elements: 0, ..CUT }.chunks(), 0);
    assert_eq!(Cut { elements: 2 * CHUNK, ..CUT }.elements_of(1), CHUNK);
    assert_eq!(CUT.name(), "int8/bfloat16 262144");
    let exact = Cut { codec: Codec::Float32, chunk: 256, ..CUT };
    assert_eq!(exact.name(), "float32/float32 256");
}

proptest! {
    #[test]
    fn bytes_of_ranges_are_those_of_their_chunks(
        elements in 0_usize..5_000_000,
        codec in prop::sample::select(&Codec::ALL),
        start in 0_u32..25,
        len in 0_u32..25,
    ) {
        let cut = Cut { elements, chunk: CHUNK, codec };
        let sum: u64 = (start..start + len).map(|chunk| cut.bytes_of(chunk) as u64).sum();
        prop_assert_eq!(cut.bytes(start..start + len), sum);
        let all: usize = (0..cut.chunks()).map(|chunk| cut.elements_of(chunk)).sum();
        prop_assert_eq!(all, elements);
        prop_assert_eq!(cut.bytes(0..u32::MAX), codec.encoded_len(elements) as u64);
    }
}

#[test]
fn chunks_come_back_whatever_range_of_them_was_filled() {
    let folder = tempfile::tempdir().unwrap();
    let (of, all) = (whole(&folder), [0, 1, 2, 3].map(bytes));
    for range in (0..=4).flat_map(|end| (0..=end).map(move |start| start..end)) {
        let mut filling = filling(&folder, &of, range.clone());
        for chunk in range.clone() {
            assert_eq!(filling.next(), Some(chunk));
            filling.push(&all[chunk as usize]).unwrap();
        }
        assert_eq!(filling.next(), None);
        let piece = filling.finish().unwrap();
        assert_eq!((piece.range(), piece.listed()), (range.clone(), 0..4));
        assert_eq!(piece.bytes(), CUT.bytes(range.clone()));
        for chunk in 0..5 {
            match range.contains(&chunk) {
                true => assert_eq!(piece.checked(chunk).unwrap(), all[chunk as usize]),
                false => assert!(piece.read(chunk).is_err() && piece.checked(chunk).is_err()),
            }
        }
    }
}

#[test]
fn a_list_that_is_not_the_committed_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let of = whole(&folder);
    let (list, committed) = (of.list().to_vec(), Digest::of_chunks(of.list()));
    let mut swapped = list.clone();
    swapped.swap(0, 1);
    for (range, listed, list, committed) in [
        (0..4, 0..4, swapped, committed),
        (0..4, 0..4, list.clone(), Digest([0; 32])),
        (0..4, 0..4, list[..3].to_vec(), Digest::of_chunks(&list[..3])),
        (0..4, 0..3, list[..3].to_vec(), Digest::of_chunks(&list[..3])),
        (0..2, 1..4, list[1..].to_vec(), Digest::of_chunks(&list[1..])),
        (5..5, 1..5, list.clone(), committed),
    ] {
        let error = begin(&folder, range, listed, list, committed).unwrap_err();
        assert_eq!(error.reason(), "other_list", "{error}");
    }
    assert!(!folder.path().join("filling").exists(), "nothing is made for it");
}

#[test]
fn a_wrong_short_swapped_or_extra_chunk_is_refused_and_the_right_one_still_due() {
    let folder = tempfile::tempdir().unwrap();
    let of = whole(&folder);
    let mut filling = filling(&folder, &of, 1..4);
    let mut wrong = bytes(1);
    wrong[1000] ^= 1;
    for (bytes, reason) in [
        (wrong, "other_chunk"),
        (bytes(2), "other_chunk"),
        (bytes(1)[1..].to_vec(), "wrong_length"),
        ([bytes(1), vec![0]].concat(), "wrong_length"),
        (bytes(3), "wrong_length"),
        (Vec::new(), "wrong_length"),
    ] {
        assert_eq!(filling.push(&bytes).unwrap_err().reason(), reason);
        assert_eq!(filling.next(), Some(1));
    }
    (1..4).for_each(|chunk| filling.push(&bytes(chunk)).unwrap());
    for extra in [bytes(3), Vec::new()] {
        assert_eq!(filling.push(&extra).unwrap_err().reason(), "too_many");
    }
    let piece = filling.finish().unwrap();
    (1..4).for_each(|chunk| assert_eq!(piece.read(chunk).unwrap(), bytes(chunk)));
}

#[test]
fn what_is_not_all_here_is_no_chunks() {
    let folder = tempfile::tempdir().unwrap();
    let of = whole(&folder);
    let mut filling = filling(&folder, &of, 0..4);
    filling.push(&bytes(0)).unwrap();
    assert_eq!(filling.finish().unwrap_err().reason(), "incomplete");
    assert!(!folder.path().join("filling").exists());
    let mut writing = Writing::create(folder.path().join("short"), CUT, 0..4).unwrap();
    writing.push(&bytes(0)).unwrap();
    assert_eq!(writing.push(&bytes(3)).unwrap_err().reason(), "wrong_length");
    assert_eq!(writing.finish().unwrap_err().reason(), "incomplete");
}

#[test]
fn a_filling_goes_on_where_another_transfer_broke_off() {
    let folder = tempfile::tempdir().unwrap();
    let of = whole(&folder);
    let mut filling = filling(&folder, &of, 0..4);
    (0..2).for_each(|chunk| filling.push(&bytes(chunk)).unwrap());
    assert_eq!(filling.list(), of.list());
    let mut resumed = filling;
    while let Some(chunk) = resumed.next() {
        resumed.push(&bytes(chunk)).unwrap();
    }
    let all = resumed.finish().unwrap();
    assert_eq!(all.list(), of.list());
    (0..4).for_each(|chunk| assert_eq!(all.checked(chunk).unwrap(), bytes(chunk)));
}

#[test]
fn a_file_that_was_changed_is_no_longer_what_was_checked() {
    let folder = tempfile::tempdir().unwrap();
    let of = whole(&folder);
    let path = folder.path().join("whole");
    let mut file = std::fs::read(&path).unwrap();
    file[CUT.bytes_of(0) + 5] ^= 1;
    std::fs::write(&path, &file).unwrap();
    assert!(of.checked(0).is_ok() && of.read(1).is_ok());
    assert_eq!(of.checked(1).unwrap_err().kind(), io::ErrorKind::InvalidData);
    std::fs::write(&path, &file[..100]).unwrap();
    assert_eq!(of.read(1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_file_is_never_made_over_another_and_is_gone_with_its_last_holder() {
    let folder = tempfile::tempdir().unwrap();
    let of = whole(&folder);
    let again = Writing::create(folder.path().join("whole"), CUT, 0..4).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    let clone = of.clone();
    drop(of);
    assert_eq!(clone.read(3).unwrap(), bytes(3));
    drop(clone);
    assert!(!folder.path().join("whole").exists());
}
