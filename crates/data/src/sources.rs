use std::{fmt::Write as _, fs::File, path::PathBuf, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _};

use crate::{
    Batch, DataError, Draw, Pick, Place, Repo, Revision, Settings, Source, Tokenizer,
    chance::hash,
    digest,
    format::Reading,
    hub::Hub,
    kept::Kept,
    pick::{Ready, batches, choose_shards, draw_rows},
    shard::{Shard, describe, list_local, open_local},
    source::check_count,
    spool::Spool,
    work::{blocking, blocking_while_wanted},
};

/// Shards that are fetched and read at the same time.
const AT_ONCE: usize = 4;

/// Sources whose shards are known, by path, size and hash. Clones share what is read.
#[derive(Debug, Clone)]
pub struct Sources(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    /// Where a source is from there.
    hub: Option<Hub>,
    sources: Vec<Opened>,
    digest: String,
    /// By source and shard.
    spools: Kept<(usize, usize), Arc<Spool>>,
}

#[derive(Debug)]
struct Opened {
    name: String,
    place: OpenPlace,
    text_field: String,
    weight: u64,
    shards: Vec<Shard>,
}

#[derive(Debug, Clone)]
enum OpenPlace {
    Folder(PathBuf),
    Hub { repo: Repo, revision: Revision },
}

/// Batches, what shows that another process drew the same, and where their rows are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    pub batches: Arc<[Batch]>,
    /// [`digest()`] of the batches.
    pub digest: String,
    /// [`Sources::digest`] of what they were drawn from.
    pub sources_digest: String,
    /// Of each row, in the order of the batches.
    pub picks: Vec<Pick>,
}

impl Sources {
    /// Lists the shards of every source: local files are hashed, a hub is asked for its listing
    /// once and remembered.
    ///
    /// # Errors
    ///
    /// The sources or the settings cannot be meant; a folder or the hub cannot be read; a source
    /// has no shard, or more than the limits allow.
    pub async fn open(sources: &[Source], settings: &Settings) -> Result<Self, DataError> {
        check_count(sources)?;
        let cache = settings.cache.clone();
        blocking(move || {
            std::fs::create_dir_all(&cache).map_err(|error| DataError::file(&cache, error))
        })
        .await?;
        let from_hub = sources.iter().any(|source| matches!(source.place, Place::Hub { .. }));
        let hub = from_hub.then(|| Hub::new(settings)).transpose()?;
        let mut opened = Vec::with_capacity(sources.len());
        for source in sources {
            opened.push(open_source(source, settings, hub.as_ref()).await?);
        }
        let digest = hex::encode(hash(&[describe_all(&opened, settings).as_bytes()]));
        Ok(Self(Arc::new(Inner {
            spools: Kept::new(settings.limits.open_shards),
            settings: settings.clone(),
            hub,
            sources: opened,
            digest,
        })))
    }

    /// BLAKE2b-256, as hex, of the description of the sources: every shard's path, size and hash,
    /// and what else the draw depends on beside the seed and the tokenizer. `docs/data.md` has its
    /// lines.
    pub fn digest(&self) -> &str {
        &self.0.digest
    }

    /// What the sources were opened with.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Draws batches, with rows filled up with `pad`. The shards that the draw chooses are fetched
    /// where they are missing, checked, and read whole, on blocking threads.
    ///
    /// # Errors
    ///
    /// A shard can't be fetched or read; a source has no text or too few; the draw cannot be made.
    pub async fn draw(
        &self,
        by: &Draw,
        tokenizer: &Tokenizer,
        pad: u32,
    ) -> Result<Drawn, DataError> {
        let inner = &self.0;
        by.check(inner.settings.limits.tokens)?;
        let counts: Vec<_> = inner.sources.iter().map(|source| source.shards.len()).collect();
        let chosen = choose_shards(&by.shards, &counts, inner.settings.shards_per_round);
        let wanted = chosen.iter().enumerate().flat_map(|(source, shards)| {
            shards.iter().map(move |shard| (source, *shard)).collect::<Vec<_>>()
        });
        let spools: Vec<_> = futures::stream::iter(wanted)
            .map(|key| async move { Ok::<_, DataError>((key, self.spool(key).await?)) })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let mut ready = Vec::with_capacity(inner.sources.len());
        for (index, source) in inner.sources.iter().enumerate() {
            let of_source =
                spools.iter().filter(|((of, _), spool)| *of == index && spool.len() > 0);
            let shards: Vec<_> = of_source
                .filter_map(|((_, shard), spool)| {
                    Some((source.shards.get(*shard)?.path.clone(), spool.clone()))
                })
                .collect();
            if shards.is_empty() {
                let minimum = inner.settings.minimum_text_length;
                return Err(DataError::Empty {
                    name: source.name.clone(),
                    why: format!("no text of {minimum} bytes in the shards of this draw"),
                });
            }
            ready.push(Ready { name: source.name.clone(), weight: source.weight, shards });
        }
        let (by, tokenizer) = (by.clone(), tokenizer.clone());
        let (batches, picks) = blocking_while_wanted(move |wanted| {
            let (rows, picks) = draw_rows(&by, &ready, &tokenizer, wanted)?;
            Ok((batches(&by, &rows, pad)?, picks))
        })
        .await?;
        Ok(Drawn {
            digest: digest(&batches),
            batches: batches.into(),
            sources_digest: inner.digest.clone(),
            picks,
        })
    }

    /// The texts of a shard, read once for all draws that want them at about the same time.
    async fn spool(&self, (source, shard): (usize, usize)) -> Result<Arc<Spool>, DataError> {
        let make = async {
            let missing = || DataError::Draw { why: format!("no shard {shard} of {source}") };
            let opened = self.0.sources.get(source).ok_or_else(missing)?;
            let shard = opened.shards.get(shard).ok_or_else(missing)?.clone();
            let file = self.file(opened, &shard).await?;
            let settings = self.0.settings.clone();
            let (name, field) =
                (format!("{}: {}", opened.name, shard.path), opened.text_field.clone());
            blocking_while_wanted(move |wanted| {
                let (format, limits) = (shard.format, &settings.limits);
                let reading = Reading { name: &name, format, field: &field, limits };
                let minimum = settings.minimum_text_length;
                Spool::fill(&reading, file, minimum, &settings.cache, wanted)
            })
            .await
            .map(Arc::new)
        };
        self.0.spools.get_or_make(&(source, shard), Box::pin(make)).await
    }

    /// A shard's file, with the content that it had when the sources were opened.
    async fn file(&self, source: &Opened, shard: &Shard) -> Result<File, DataError> {
        match &source.place {
            OpenPlace::Folder(folder) => {
                let (folder, shard) = (folder.clone(), shard.clone());
                let name = source.name.clone();
                blocking(move || {
                    let mut file = open_local(&folder, &shard.path)?;
                    shard.content.check(&mut file, shard.size).map_err(|why| {
                        DataError::Changed { shard: format!("{name}: {}", shard.path), why }
                    })?;
                    Ok(file)
                })
                .await
            }
            OpenPlace::Hub { repo, revision } => {
                let hub = self.0.hub.as_ref();
                let hub =
                    hub.ok_or_else(|| DataError::Config { why: "there is no hub".to_owned() })?;
                hub.fetch(repo, revision, shard).await
            }
        }
    }
}

async fn open_source(
    source: &Source,
    settings: &Settings,
    hub: Option<&Hub>,
) -> Result<Opened, DataError> {
    let (place, shards) = match &source.place {
        Place::Folder(folder) => open_folder(folder.clone(), source, settings).await?,
        Place::Named(name) => {
            let folder = settings.names.get(name).cloned();
            open_folder(folder.unwrap_or_else(|| name.into()), source, settings).await?
        }
        Place::Hub { repo, revision } => {
            let hub = hub.ok_or_else(|| DataError::Config { why: "there is no hub".to_owned() })?;
            let shards = hub.list(repo, revision, source.files.as_ref()).await?;
            (OpenPlace::Hub { repo: repo.clone(), revision: revision.clone() }, shards)
        }
    };
    let name = source.place.to_string();
    if shards.is_empty() {
        let why = match &source.files {
            Some(files) => format!("no file of a known format matches `{files}`"),
            None => "no file of a known format".to_owned(),
        };
        return Err(DataError::Empty { name, why });
    }
    let (text_field, weight) = (source.text_field.clone(), source.weight.millionths());
    Ok(Opened { name, place, text_field, weight, shards })
}

async fn open_folder(
    folder: PathBuf,
    source: &Source,
    settings: &Settings,
) -> Result<(OpenPlace, Vec<Shard>), DataError> {
    let (folder, files) = (settings.base.join(folder), source.files.clone());
    let limits = settings.limits;
    blocking(move || {
        let shards = list_local(&folder, files.as_ref(), &limits)?;
        Ok((OpenPlace::Folder(folder), shards))
    })
    .await
}

/// The description that the digest is of.
fn describe_all(sources: &[Opened], settings: &Settings) -> String {
    let (minimum, most) = (settings.minimum_text_length.max(1), settings.shards_per_round.max(1));
    let mut text =
        format!("connito-data 1\nminimum_text_length {minimum}\nshards_per_round {most}\n");
    for source in sources {
        let Opened { place, text_field, weight, shards, .. } = source;
        let place = match place {
            OpenPlace::Folder(_) => "folder".to_owned(),
            OpenPlace::Hub { repo, revision } => format!("hub {repo} {}", revision.as_str()),
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "source {place}\nweight {weight}\ntext_field {text_field}");
        describe(shards, &mut text);
    }
    text
}
