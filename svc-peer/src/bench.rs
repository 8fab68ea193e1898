//! For benchmarks only: what they measure, with everything around it that is private.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Context as _;
use checkpoint::{Codec, Contribution, Manifest};
use domain::RoundId;

use crate::{gradient, model::Model, plan};

/// Adds up the contributions to the model in `base` and encodes the sum into a file in `folder`, which is
/// deleted again; the encoded bytes' number.
pub fn encode(
    base: &Path,
    contributions: Vec<Contribution>,
    codec: Codec,
    folder: &Path,
) -> anyhow::Result<u64> {
    let manifest = Manifest::read(base)?;
    let plan = plan::Plan {
        round: RoundId(0),
        base: plan::Model {
            global_version: manifest.global_version,
            model_hash: manifest.model_hash,
            prefix: String::new(),
        },
        group: manifest.expert_group,
        new_version: manifest.global_version,
        contributions: Vec::new(),
        validators: BTreeMap::new(),
        hotkey: contributions.first().context("no contributions")?.hotkey.clone(),
        deadline: Duration::ZERO,
        allow_solo: true,
        traceparent: String::new(),
    };
    let model = Model::open(base, None, &plan)?;
    let local = gradient::encode(&model, contributions, codec, None, folder)?;
    Ok(local.chunks.context("no gradient")?.bytes())
}
