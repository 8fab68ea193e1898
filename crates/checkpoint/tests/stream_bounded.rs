//! A stream's memory does not grow with the file, and its thread ends with it. A process of its own, so that nothing
//! else allocates or starts threads while it counts.

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _, sync::Arc};

    use checkpoint::{
        Dtype, Limits, MemoryTensors, Outcome, SliceLayout, Stream, TensorSource as _, TensorSpec,
        open, verify, write_pt, write_safetensors,
    };
    use peak_alloc::PeakAlloc;

    #[global_allocator]
    static HEAP: PeakAlloc = PeakAlloc;

    /// Tensors of 4 MiB, out of the order of their names where asked.
    fn tensors(count: usize) -> MemoryTensors {
        let mut tensors = MemoryTensors::default();
        for n in 0..count {
            let spec = TensorSpec { dtype: Dtype::F32, shape: vec![1 << 20] };
            tensors.insert(&format!("t{n:03}"), spec, vec![n as u8; 4 << 20]).unwrap();
        }
        tensors
    }

    fn hashing_threads() -> usize {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")));
        names.filter(|name| name.as_ref().is_ok_and(|name| name.trim() == "model-hash")).count()
    }

    /// Whether there are so many hashing threads, given time: a thread names itself when it first runs, and is seen
    /// for a moment after it was joined.
    fn come_to(expected: usize) -> bool {
        (0..10_000).any(|_| {
            let found = hashing_threads() == expected;
            if !found {
                std::thread::park_timeout(std::time::Duration::from_millis(1));
            }
            found
        })
    }

    /// Streams a file; the most memory in use meanwhile.
    fn peak(path: &std::path::Path, layout: &Arc<SliceLayout>) -> usize {
        let mut file = fs::File::open(path).unwrap();
        let mut piece = vec![0; 100_000];
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        let mut stream = Stream::new(layout.clone(), Limits::default(), None, None).unwrap();
        loop {
            match file.read(&mut piece).unwrap() {
                0 => break,
                n => stream.push(&piece[..n]).unwrap(),
            }
        }
        let streamed = stream.finish().unwrap();
        let peak = HEAP.peak_usage().saturating_sub(before);
        let spool = open(path, Limits::default()).unwrap();
        let expected = verify(&spool, layout, None);
        match streamed.outcome {
            Outcome::Verified(verified) => assert_eq!(Ok(verified), expected),
            Outcome::NeedsReread(reread) => assert_eq!(reread.verify(&spool), expected),
        }
        peak
    }

    // One test: what another one allocates would be counted.
    #[test]
    fn a_stream_takes_the_same_memory_for_any_file_and_leaves_no_thread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        for write in [write_safetensors, write_pt] {
            let mut peaks = Vec::new();
            for count in [2, 16] {
                let tensors = tensors(count);
                write(&path, &tensors).unwrap();
                let specs = tensors.specs().clone();
                drop(tensors);
                let layout = SliceLayout { tensors: specs, ..SliceLayout::default() };
                peaks.push(peak(&path, &Arc::new(layout)));
            }
            let [small, large] = peaks[..] else { panic!("two files") };
            assert!(large < 5 << 18, "{large} bytes of memory for 64 MiB");
            // The headers differ by 14 tensors.
            assert!(large < small + (64 << 10), "{small} for 8 MiB, {large} for 64 MiB");
        }
        assert!(come_to(0), "finished streams leave none");

        // A header that is announced and never comes costs nothing; one that comes costs what it is.
        let layout = Arc::new(SliceLayout::default());
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        let mut stream = Stream::new(layout.clone(), Limits::default(), None, None).unwrap();
        stream.push(&(16u64 << 20).to_le_bytes()).unwrap();
        stream.push(&[b'{'; 1000]).unwrap();
        assert!(HEAP.peak_usage() - before < 16 << 10, "{}", HEAP.peak_usage() - before);
        for _ in 0..1000 {
            stream.push(&[b'{'; 1000]).unwrap();
        }
        assert!(HEAP.peak_usage() - before < 4 << 20, "{}", HEAP.peak_usage() - before);
        drop(stream);

        // The thread begins when there is work for it, and ends with the stream: dropped or refused.
        let file = fs::read(&path).unwrap();
        let specs = open(&path, Limits::default()).unwrap().specs().clone();
        let layout = Arc::new(SliceLayout { tensors: specs, ..SliceLayout::default() });
        for refused in [false, true] {
            let mut stream = Stream::new(layout.clone(), Limits::default(), None, None).unwrap();
            stream.push(&file[..100_000]).unwrap();
            assert_eq!(hashing_threads(), 0, "so little is hashed by the caller");
            stream.push(&file[100_000..1_000_000]).unwrap();
            assert!(come_to(1));
            if refused {
                stream.push(&[0xff; 1000]).unwrap_err();
                assert!(come_to(0), "a refusal ends it");
            }
            drop(stream);
            assert!(come_to(0), "the end of the stream ends it");
        }
    }
}
