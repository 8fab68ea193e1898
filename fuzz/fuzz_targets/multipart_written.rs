//! A multipart form that a client wrote: read as it was written.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    svc_gateway::fuzz::multipart_written(bytes);
});
