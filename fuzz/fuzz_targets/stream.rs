//! A file that arrives in pieces: judged as the whole file is. The first byte is the size of the pieces.
#![no_main]

use std::sync::{Arc, LazyLock};

use checkpoint::{Checkpoint, Limits, SliceLayout, TensorSource as _};

#[path = "../../crates/checkpoint/tests/it/archive.rs"]
mod archive;
#[path = "../../crates/checkpoint/tests/it/fuzz_body.rs"]
mod fuzz_body;
#[path = "../../crates/checkpoint/tests/it/stream_body.rs"]
mod stream_body;

/// What the vectors of the corpus contain, so that bent ones get past the first check.
static LAYOUT: LazyLock<Arc<SliceLayout>> = LazyLock::new(|| {
    let honest = include_bytes!("../../tests/vectors/model/miner1_g0.safetensors");
    let file = Checkpoint::from_bytes(honest.to_vec(), Limits::default()).expect("a golden vector");
    Arc::new(SliceLayout { tensors: file.specs().clone(), ..SliceLayout::default() })
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((step, file)) = bytes.split_first() else { return };
    let steps = [1 + usize::from(*step) * usize::from(*step)];
    stream_body::stream(file, &LAYOUT, &steps);
    stream_body::stream_own(file, &steps);
});
