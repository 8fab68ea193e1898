//! Compiles `*.proto` with protox, a protobuf compiler written in Rust: no `protoc` is needed.

use std::{env, error::Error, path::PathBuf};

use protox::prost_reflect::prost::Message as _;

const FILES: &[&str] = &[
    "connito/common/v1/common.proto",
    "connito/chain/v1/chain.proto",
    "connito/scheduler/v1/scheduler.proto",
    "connito/evaluator/v1/evaluator.proto",
    "connito/gateway/v1/gateway.proto",
    "connito/peer/v1/peer.proto",
    "connito/peer/v2/peer.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=connito");

    let files = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptor.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
