//! Whatever the bytes: reading them takes memory in proportion to their number. A process of its own,
//! so that nothing else allocates while it counts.

#[cfg(test)]
#[path = "it/archive.rs"]
mod archive;
#[cfg(test)]
#[path = "it/fuzz_body.rs"]
mod fuzz_body;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use checkpoint::{Checkpoint, SliceLayout, Stream, TensorSource as _, verify};
    use peak_alloc::PeakAlloc;
    use proptest::{prelude::*, test_runner::TestRunner};

    use crate::fuzz_body;

    #[global_allocator]
    static HEAP: PeakAlloc = PeakAlloc;

    /// Bytes of memory per byte of the file: a header's entry of thirty bytes becomes a name, a shape
    /// and a place in two maps.
    const PER_BYTE: usize = 32;
    /// Bytes of memory for any file at all.
    const FOR_ANY: usize = 256 << 10;

    /// Opens and verifies `bytes`; the most memory that was in use meanwhile, beyond the bytes.
    fn peak(bytes: &[u8]) -> usize {
        let copy = bytes.to_vec();
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        if let Ok(file) = Checkpoint::from_bytes(copy, fuzz_body::LIMITS) {
            let layout = SliceLayout { tensors: file.specs().clone(), ..SliceLayout::default() };
            drop(verify(&file, &layout, None));
        }
        HEAP.peak_usage().saturating_sub(before)
    }

    /// As [`peak`], of a stream of small pieces.
    fn stream_peak(bytes: &[u8]) -> usize {
        let own = Checkpoint::from_bytes(bytes.to_vec(), fuzz_body::LIMITS)
            .map(|file| SliceLayout { tensors: file.specs().clone(), ..SliceLayout::default() });
        let layout = Arc::new(own.unwrap_or_default());
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        let mut stream = Stream::new(layout, fuzz_body::LIMITS, None, None).unwrap();
        if bytes.chunks(100).all(|piece| stream.push(piece).is_ok()) {
            drop(stream.finish());
        }
        HEAP.peak_usage().saturating_sub(before)
    }

    fn check(bytes: &[u8]) {
        let most = PER_BYTE * bytes.len() + FOR_ANY;
        for peak in [peak(bytes), stream_peak(bytes)] {
            assert!(peak <= most, "{peak} bytes of memory for a file of {}", bytes.len());
        }
    }

    /// Pieces of pickles that make more of less: memo entries of memo entries, large counts, tensors
    /// over one storage again and again.
    const PIECES: &[&[u8]] = &[
        b"}",
        b"]",
        b")",
        b"(",
        b"t",
        b"u",
        b"s",
        b"e",
        b"a",
        b"R",
        b"Q",
        b"2",
        b"N",
        b"\x85",
        b"\x86",
        b"\x87",
        b"K\x01",
        b"J\xff\xff\xff\x7f",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"q\x00",
        b"h\x00",
        b"r\xff\xff\xff\x7f",
        b"j\xff\xff\xff\x7f",
        b"X\xff\xff\xff\x7f",
        b"X\x01\0\0\x000",
        b"ccollections\nOrderedDict\n",
        b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10tQ",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"X\x10\0\0\0model_state_dict",
    ];

    // One test: what another one allocates would be counted.
    #[test]
    fn reading_takes_memory_in_proportion_to_the_file() {
        let mut runner = TestRunner::new(ProptestConfig::with_cases(3000));
        let any = prop::collection::vec(any::<u8>(), 0..4096);
        runner
            .run(&any, |bytes| {
                fuzz_body::file(&bytes);
                check(&bytes);
                Ok(())
            })
            .unwrap();

        let pickle = prop::collection::vec(prop::sample::select(PIECES), 0..600);
        let pt = |pickle: &[u8]| crate::archive::pt(pickle, &[0x3c; 64]);
        runner
            .run(&pickle, |pieces| {
                let pickle = [b"\x80\x02", &pieces.concat()[..], b"."].concat();
                fuzz_body::pickle(&pickle);
                check(&pt(&pickle));
                Ok(())
            })
            .unwrap();

        // A table that is doubled by every pair of instructions, were it copied.
        let doubled = [b"\x80\x02]q\x00".as_slice(), &b"h\x00h\x00\x86q\x00".repeat(5000), b"."];
        check(&pt(&doubled.concat()));
        check(&pt(&[b"\x80\x02".as_slice(), &b"(".repeat(200_000), b"."].concat()));
        check(&pt(&[b"\x80\x02".as_slice(), &b"]\x85".repeat(100_000), b"."].concat()));

        // Headers: as many tensors as fit, deep nesting, a length beyond the file.
        let entry = |n: usize| {
            format!(
                r#""t{n}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}},"#,
                4 * n,
                4 * n + 4
            )
        };
        let many: String = (0..900).map(entry).collect();
        let header = format!("{{{}}}", many.trim_end_matches(','));
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.extend(vec![0x3c; 4 * 900]);
        assert!(fuzz_body::file(&file));
        check(&file);
        fuzz_body::header("[".repeat(100_000).as_bytes());
        check(&[&u64::MAX.to_le_bytes()[..], &[b'{'; 100]].concat());
    }
}
