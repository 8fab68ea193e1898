//! A URL-encoded body and query, up to the signature in them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    svc_gateway::fuzz::form(bytes);
});
