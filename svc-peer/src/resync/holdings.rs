//! What is here of models: their files in the artifact store, and the digests of their chunks.
//!
//! Digests are computed once per model, in the background, and kept on the disk; on the way, the
//! files are compared with what the manifest says of them, since whoever signs for a file answers
//! for it.

mod count;
mod kept;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use checkpoint::{ChunkDigests, Manifest};
use domain::{ExpertGroup, GlobalVersion, ModelHash};
use kit::Shutdown;
use store::{ArtifactError, Artifacts};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use self::count::CountError;
use super::message::ModelFile;
use crate::error::Refused;

/// Largest manifest that is read.
pub(crate) const MAX_MANIFEST: u64 = 256 << 20;
/// Models whose digests may wait to be computed.
const WAITING: usize = 8;
/// How often it is looked whether there is a newer model.
const EVERY: Duration = Duration::from_secs(60);

/// A model that is here.
#[derive(Debug)]
pub(crate) struct Held {
    /// Where it lies in the artifact store.
    pub(crate) prefix: String,
    /// Its version.
    pub(crate) version: GlobalVersion,
    /// The group whose slice has the model's hash.
    pub(crate) group: ExpertGroup,
    /// The files that it can be made of, ascending by name.
    pub(crate) files: Vec<HeldFile>,
}

/// A file that is here.
#[derive(Debug)]
pub(crate) struct HeldFile {
    /// What is signed of it.
    pub(crate) file: ModelFile,
    /// The digests of its chunks.
    pub(crate) list: ChunkDigests,
}

impl Held {
    /// The file of this name.
    pub(crate) fn file(&self, name: &str) -> Option<&HeldFile> {
        self.files.iter().find(|held| held.file.name == name)
    }
}

#[derive(Debug, Clone)]
enum Known {
    /// Its digests are being computed.
    Counting,
    Here(Arc<Held>),
    /// Its files are not what its manifest says.
    Damaged,
}

/// A model that lies in the artifact store.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    prefix: String,
    version: GlobalVersion,
    group: ExpertGroup,
    model: ModelHash,
}

/// What is here.
#[derive(Debug)]
pub(crate) struct Holdings {
    artifacts: Artifacts,
    folder: PathBuf,
    known: Mutex<BTreeMap<ModelHash, Known>>,
    /// Models by prefix: a manifest never changes.
    found: Mutex<BTreeMap<String, Found>>,
    wanted: mpsc::Sender<Found>,
}

impl Holdings {
    /// Models of `artifacts`, with their digests kept in `folder`; computes them until `shutdown`.
    pub(crate) fn start(artifacts: Artifacts, folder: PathBuf, shutdown: &Shutdown) -> Arc<Self> {
        let (wanted, mut asked) = mpsc::channel(WAITING);
        let (known, found) = (Mutex::default(), Mutex::default());
        let this = Arc::new(Self { artifacts, folder, known, found, wanted });
        let (holdings, stop) = (Arc::clone(&this), shutdown.clone());
        shutdown.spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            let work = async {
                loop {
                    tokio::select! {
                        Some(found) = asked.recv() => holdings.count(found).await,
                        _ = ticks.tick() => holdings.look().await,
                    }
                }
            };
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
        this
    }

    /// A model that is asked for; none where it is not here. `not_ready` while its digests are being
    /// computed.
    pub(crate) async fn get(&self, model: &ModelHash) -> Result<Option<Arc<Held>>, Refused> {
        match self.known(model) {
            Some(Known::Here(held)) => return Ok(Some(held)),
            Some(Known::Damaged) => return Ok(None),
            Some(Known::Counting) => return Err(counting()),
            None => {}
        }
        let unreadable = |error: ArtifactError| Refused::Unreadable { detail: error.to_string() };
        let all = self.models().await.map_err(unreadable)?;
        let Some(found) = all.into_iter().find(|found| found.model == *model) else {
            return Ok(None);
        };
        self.remember(*model, Known::Counting);
        if self.wanted.try_send(found).is_err() {
            self.forget(model);
        }
        Err(counting())
    }

    /// A chunk of a file that is here, as it was signed for and not otherwise.
    pub(crate) async fn chunk(
        &self,
        model: &ModelHash,
        held: &Held,
        file: &HeldFile,
        index: u32,
    ) -> Result<Bytes, Refused> {
        let key = format!("{}/{}", held.prefix, file.file.name);
        let start = u64::from(index) * u64::from(file.file.chunk);
        let end = (start + u64::from(file.file.chunk)).min(file.file.len);
        let read = async { self.artifacts.find(&key).await?.read(start..end).await };
        let bytes = match read.await {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.is_not_found() {
                    self.forget(model);
                }
                return Err(Refused::Unreadable { detail: error.to_string() });
            }
        };
        file.list.check(index as usize, &bytes).map_err(|error| {
            warn!(key, %error, "a file of a model has changed on the disk");
            self.remember(*model, Known::Damaged);
            Refused::Unreadable { detail: error.to_string() }
        })?;
        Ok(bytes)
    }

    /// Computes the digests of the newest model ahead of its being asked for, and forgets models
    /// that are gone.
    async fn look(&self) {
        let models = match self.models().await {
            Ok(models) => models,
            Err(error) => return debug!(%error, "cannot look for models"),
        };
        let gone = |model: &ModelHash| !models.iter().any(|found| found.model == *model);
        self.lock_known().retain(|model, _| !gone(model));
        kept::sweep(&self.folder, gone).await;
        let newest = models.into_iter().max_by_key(|found| found.version);
        if let Some(found) = newest.filter(|found| self.known(&found.model).is_none()) {
            self.count(found).await;
        }
    }

    /// Every whole model in the artifact store.
    async fn models(&self) -> Result<Vec<Found>, ArtifactError> {
        let keys = self.artifacts.list("models").await?;
        let file = format!("/{}", Manifest::FILE_NAME);
        let prefixes: Vec<&str> = keys.iter().filter_map(|key| key.strip_suffix(&file)).collect();
        self.lock_found().retain(|prefix, _| prefixes.contains(&prefix.as_str()));
        let mut models = Vec::new();
        for prefix in prefixes {
            let before = self.lock_found().get(prefix).cloned();
            let found = match before {
                Some(found) => found,
                None => {
                    let key = format!("{prefix}{file}");
                    let json = self.artifacts.get_bytes(&key, MAX_MANIFEST).await?;
                    let Ok(manifest) = Manifest::from_json(&json) else { continue };
                    let found = Found {
                        prefix: prefix.to_owned(),
                        version: manifest.global_version,
                        group: manifest.expert_group,
                        model: manifest.model_hash,
                    };
                    self.lock_found().insert(prefix.to_owned(), found.clone());
                    found
                }
            };
            models.push(found);
        }
        Ok(models)
    }

    async fn count(&self, found: Found) {
        self.remember(found.model, Known::Counting);
        let held = match kept::read(&self.folder, &found, &self.artifacts).await {
            Some(held) => Ok(held),
            None => count::count(&self.artifacts, &found).await,
        };
        match held {
            Ok(held) => {
                kept::write(&self.folder, &found.model, &held).await;
                info!(model_hash = %found.model, prefix = found.prefix, "model can be given to others");
                self.remember(found.model, Known::Here(Arc::new(held)));
            }
            Err(error @ CountError::Damaged { .. }) => {
                warn!(prefix = found.prefix, %error, "model is not given to others");
                self.remember(found.model, Known::Damaged);
            }
            Err(error @ CountError::Store(_) | error @ CountError::Failed(_)) => {
                warn!(prefix = found.prefix, %error, "digests of a model were not computed");
                self.forget(&found.model);
            }
        }
    }

    fn known(&self, model: &ModelHash) -> Option<Known> {
        self.lock_known().get(model).cloned()
    }

    fn remember(&self, model: ModelHash, known: Known) {
        self.lock_known().insert(model, known);
    }

    fn forget(&self, model: &ModelHash) {
        self.lock_known().remove(model);
    }

    fn lock_known(&self) -> std::sync::MutexGuard<'_, BTreeMap<ModelHash, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_found(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn counting() -> Refused {
    Refused::NotReady { what: "the digests of the model are being computed" }
}
