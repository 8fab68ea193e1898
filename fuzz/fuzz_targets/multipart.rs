//! A multipart form that arrives in pieces: read as a reader of the whole reads it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    svc_gateway::fuzz::multipart(bytes);
});
