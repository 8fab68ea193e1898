use std::sync::Arc;

use crate::{
    DataError, Draw, Drawn, Sources, Tokenizer, chance::hash, kept::Kept, saved, work::blocking,
};

/// Draws from sources with one tokenizer, and keeps what was drawn: in memory for all jobs of the
/// process, and on disk for the next process. Clones share both.
#[derive(Debug, Clone)]
pub struct Drawer {
    sources: Sources,
    tokenizer: Tokenizer,
    pad: u32,
    kept: Arc<Kept<Draw, Arc<Drawn>>>,
}

impl Drawer {
    /// A drawer of rows that are filled up with `pad`.
    pub fn new(sources: Sources, tokenizer: Tokenizer, pad: u32) -> Self {
        let kept = Arc::new(Kept::new(sources.settings().limits.draws));
        Self { sources, tokenizer, pad, kept }
    }

    /// The sources.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The batches of a draw: from memory, from disk, or drawn and written to disk. Whoever asks
    /// for the same at the same time waits for the one draw.
    ///
    /// # Errors
    ///
    /// As [`Sources::draw`]. A file that cannot be read back or written is logged, and costs only
    /// time.
    pub async fn draw(&self, by: &Draw) -> Result<Arc<Drawn>, DataError> {
        self.kept.get_or_make(by, Box::pin(self.load_or_draw(by))).await
    }

    async fn load_or_draw(&self, by: &Draw) -> Result<Arc<Drawn>, DataError> {
        let settings = self.sources.settings();
        by.check(settings.limits.tokens)?;
        let place = saved::Place {
            folder: settings.cache.join("batches"),
            key: self.key(by),
            most: settings.limits.saved_draws,
        };
        let (reading, wanted) = (place.clone(), by.clone());
        if let Some(drawn) = blocking(move || Ok(reading.read(&wanted))).await? {
            return Ok(Arc::new(drawn));
        }
        let drawn = Arc::new(self.sources.draw(by, &self.tokenizer, self.pad).await?);
        let (written, by, pad) = (drawn.clone(), by.clone(), self.pad);
        blocking(move || {
            place.write(&by, &written, pad);
            Ok(())
        })
        .await?;
        Ok(drawn)
    }

    /// What tells this draw from all others: BLAKE2b-256 of everything it depends on.
    fn key(&self, by: &Draw) -> String {
        let Draw { seed, shards, batches, size, length } = by;
        let text = format!(
            "sources {}\ntokenizer {}\npad {}\nseed {}\nshards {}\nrows {batches} {size} {length}\n",
            self.sources.digest(),
            self.tokenizer.digest(),
            self.pad,
            seed.to_hex(),
            shards.to_hex(),
        );
        hex::encode(hash(&[text.as_bytes()]))
    }
}
