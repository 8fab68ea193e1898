//! A safetensors header of the right length.
#![no_main]

#[path = "../../crates/checkpoint/tests/it/archive.rs"]
mod archive;
#[path = "../../crates/checkpoint/tests/it/fuzz_body.rs"]
mod fuzz_body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    fuzz_body::header(bytes);
});
