//! The outer step, and the model that it makes.
//!
//! Given the same base, momentum and reduced vector, every validator writes the same bits.

use std::path::{Path, PathBuf};

use checkpoint::{
    Manifest, MemoryTensors, OuterSgd, Publication, TensorSource as _, encode_f32, overlay,
    publish_model, write_safetensors,
};
use store::{ArtifactError, Artifacts};
use tracing::info;

use crate::{base::Base, plan::Plan, report::Failure};

/// Steps the optimizer along `gradient` and writes the new model with its momentum into `folder`.
///
/// Tensors outside of the group are copied. Belongs on a blocking thread.
pub(crate) fn make_model(
    base: Base,
    plan: &Plan,
    optimizer: &OuterSgd,
    gradient: &[f32],
    folder: &Path,
) -> Result<Manifest, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::Write(error.to_string());
    let (mut stepped, mut momentum) = (MemoryTensors::default(), MemoryTensors::default());
    let mut rest = gradient;
    for (name, spec) in base.tensors() {
        let Some((gradient, after)) = rest.split_at_checked(spec.elements()) else {
            return Err(Failure::Write(format!("the gradient ends before {name}")));
        };
        rest = after;
        let mut param = base.model.to_f32(name).map_err(|e| failed(&e))?;
        let mut velocity = match &base.momentum {
            Some(file) => file.to_f32(name).map_err(|e| failed(&e))?,
            None => vec![0.0; param.len()],
        };
        optimizer.step(&mut param, &mut velocity, gradient).map_err(|e| failed(&e))?;
        if crate::reduce::finite(&param).is_err() {
            return Err(Failure::Write(format!("{name} would not be finite")));
        }
        let encoded = encode_f32(spec.dtype, &param)
            .ok_or_else(|| Failure::Write(format!("{name} does not hold floats")))?;
        stepped.insert(name, spec.clone(), encoded).map_err(|e| failed(&e))?;
        momentum.insert_f32(name, spec.shape.clone(), &velocity).map_err(|e| failed(&e))?;
    }
    let manifest = base.model.manifest();
    let publication = Publication {
        global_version: plan.new_version,
        expert_group: plan.group,
        parent: Some(plan.base.model_hash),
        config: manifest.config.clone(),
        groups: manifest.groups.clone(),
    };
    let whole = overlay(Box::new(base.model), Box::new(stepped)).map_err(|e| failed(&e))?;
    let manifest = publish_model(folder, &whole, publication).map_err(|e| failed(&e))?;
    write_safetensors(&folder.join(plan.optimizer_file()), &momentum).map_err(|e| failed(&e))?;
    Ok(manifest)
}

/// Moves the files in `folder` to `prefix`, the manifest last: a model with a manifest is complete.
pub(crate) async fn publish(
    artifacts: &Artifacts,
    folder: &Path,
    prefix: &str,
) -> Result<(), Failure> {
    let io = |error: std::io::Error| Failure::Write(format!("read {}: {error}", folder.display()));
    let mut names = Vec::new();
    let mut entries = tokio::fs::read_dir(folder).await.map_err(io)?;
    while let Some(entry) = entries.next_entry().await.map_err(io)? {
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort_by_key(|name| (name == Manifest::FILE_NAME, name.clone()));
    for name in names {
        artifacts.move_file(&format!("{prefix}/{name}"), &folder.join(&name)).await?;
    }
    info!(prefix, "new model published");
    Ok(())
}

/// The manifest of the model at `prefix`, if it is complete there.
pub(crate) async fn published(
    artifacts: &Artifacts,
    prefix: &str,
) -> Result<Option<Manifest>, Failure> {
    const MAX_MANIFEST: u64 = 256 << 20;
    let key = format!("{prefix}/{}", Manifest::FILE_NAME);
    match artifacts.get_bytes(&key, MAX_MANIFEST).await {
        Ok(json) => {
            let manifest = Manifest::from_json(&json)
                .map_err(|error| Failure::Write(format!("{key} is unreadable: {error}")))?;
            Ok(Some(manifest))
        }
        Err(ArtifactError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Brings the base model of `plan` to this host: its folder, and its momentum where it has one.
pub(crate) async fn fetch_base(
    artifacts: &Artifacts,
    plan: &Plan,
) -> Result<(PathBuf, Option<PathBuf>), Failure> {
    let prefix = &plan.base.prefix;
    let path = artifacts.local_file(&format!("{prefix}/{}", Manifest::FILE_NAME)).await?;
    let Some(folder) = path.parent().map(Path::to_owned) else {
        return Err(Failure::Base(format!("{} is in no folder", path.display())));
    };
    let full = checkpoint::SliceId::Full.file_name(checkpoint::Format::Safetensors);
    match artifacts.local_file(&format!("{prefix}/{full}")).await {
        Ok(_) => {}
        Err(ArtifactError::NotFound { .. }) => {
            let manifest = Manifest::read(&folder).map_err(|e| Failure::Base(e.to_string()))?;
            for id in manifest.slices.keys().filter(|id| **id != checkpoint::SliceId::Full) {
                let name = id.file_name(checkpoint::Format::Safetensors);
                artifacts.local_file(&format!("{prefix}/{name}")).await?;
            }
        }
        Err(error) => return Err(error.into()),
    }
    let momentum = format!("{prefix}/{}", plan.optimizer_file());
    match artifacts.local_file(&momentum).await {
        Ok(path) => Ok((folder, Some(path))),
        Err(ArtifactError::NotFound { .. }) => Ok((folder, None)),
        Err(error) => Err(error.into()),
    }
}
