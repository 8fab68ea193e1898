//! What a model will need, told before it is loaded, and refused where it does not fit.

use model::{Available, BatchShape, Device, MemoryPlan, ModelError, Place};
use tracing::{info, warn};

use crate::{
    bench::Setup,
    error::{Failure, OwnFailure},
    fetch::ModelFiles,
    metrics,
    status::Part,
};

/// Submissions that wait in the host's memory while another one runs.
const STAGED: u32 = 1;

/// Plans for a model and batches of `rows` rows of `length` tokens, logs the plan as a table, and
/// checks it against the memory that there is.
pub(crate) fn plan(
    files: &ModelFiles,
    setup: &Setup,
    rows: usize,
    length: usize,
) -> Result<Vec<Part>, Failure> {
    let group = files.manifest.groups.0.get(&files.id.group);
    let shape = BatchShape { rows, length };
    let plan = MemoryPlan::new(&files.manifest.config, group, setup.options, shape, STAGED)
        .map_err(|error| Failure::Own(OwnFailure::Load(error)))?;
    let available = available(setup);
    info!(rows, length, %available, "the memory plan:\n{plan}");
    let on_gpu = matches!(setup.options.device, Device::Cuda(_));
    if on_gpu && available.device.is_none() {
        warn!("what the GPU has free is not known: set evaluator.memory_limit to have it checked");
    }
    for place in [Place::Host, Place::Gpu] {
        metrics::planned(name(place), plan.needed(place));
    }
    plan.check(&available).map_err(|error: ModelError| Failure::Own(OwnFailure::NoRoom(error)))?;
    let part = |part: &model::Part| Part {
        name: part.name.to_owned(),
        place: name(part.place),
        bytes: part.bytes,
    };
    Ok(plan.parts.iter().chain(&plan.steps).map(part).collect())
}

/// The limit is of the device's memory: the host's for a model on the processor.
fn available(setup: &Setup) -> Available {
    match (setup.options.device, setup.memory_limit) {
        (Device::Cpu, Some(limit)) => Available { host: Some(limit), device: None },
        (Device::Cpu, None) => Available::read(None),
        (Device::Cuda(_), limit) => Available::read(limit),
    }
}

/// As the status says it.
fn name(place: Place) -> &'static str {
    match place {
        Place::Host => "host",
        Place::Gpu => "device",
    }
}
