//! The name of an uploaded file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    svc_gateway::fuzz::file_name(bytes);
});
