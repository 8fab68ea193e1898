// The build script of every package that makes an executable or a test with libtorch in it: link
// arguments do not propagate from a library to what uses it. A package's build.rs is one line,
//
//     include!("../crates/model/link.rs");
//
// The search path, first match wins: `LD_LIBRARY_PATH` (so a CUDA libtorch of the same version takes
// the place of this one), `../lib/libtorch` beside an installed binary's folder, the workspace's
// `third_party/libtorch` as seen from `target/<profile>/` and from `target/<profile>/deps/`, and the
// absolute folder of this build. `--no-as-needed -ltorch` keeps the shim that the linker would drop,
// and CUDA with it.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags");
    for dir in [
        "$ORIGIN/../lib/libtorch",
        "$ORIGIN/../../third_party/libtorch/lib",
        "$ORIGIN/../../../third_party/libtorch/lib",
    ] {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{dir}");
    }
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    }
    println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-ltorch,--as-needed");
}
