//! What a model will need, known before anything of it is loaded, and what there is.

mod available;
mod plan;

pub use self::{
    available::Available,
    plan::{BatchShape, MemoryPlan, Part, Place},
};

/// Bytes as a person reads them.
fn readable(bytes: u64) -> String {
    const MIB: f64 = (1u64 << 20) as f64;
    let mib = bytes as f64 / MIB;
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}
