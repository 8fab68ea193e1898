//! A `Content-Type` that may name a boundary.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    svc_gateway::fuzz::boundary(bytes);
});
