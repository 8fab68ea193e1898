//! A header of tus, or the name of an upload.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    svc_gateway::fuzz::tus(bytes);
});
