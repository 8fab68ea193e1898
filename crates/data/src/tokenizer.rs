use std::{fmt, path::Path, sync::Arc};

use crate::{DataError, chance::hash};

/// A tokenizer as the hub ships it, `tokenizer.json`. Clones share it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    digest: Arc<str>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocabulary", &self.vocabulary()).finish()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let json = std::fs::read(path).map_err(|error| DataError::file(path, error))?;
        let inner = tokenizers::Tokenizer::from_bytes(&json)
            .map_err(|error| DataError::file(path, error))?;
        Ok(Self { inner: Arc::new(inner), digest: hex::encode(hash(&[&json])).into() })
    }

    /// BLAKE2b-256 of its file, as hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Token ids of a text, without special tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| DataError::Tokenizer { why: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.inner
            .decode(ids, false)
            .map_err(|error| DataError::Tokenizer { why: error.to_string() })
    }

    /// Number of token ids.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_tokenizer_gives_any_text_back() {
        let path = crate::test_vectors().join("numerics/tokenizer.json");
        let tokenizer = Tokenizer::open(&path).unwrap();
        assert_eq!(tokenizer.vocabulary(), 320);
        for text in ["12 plus 30 equals 42.", "Grüße, 你好\n\ttab"] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_an_error_with_its_path() {
        let error = Tokenizer::open(Path::new("nowhere/tokenizer.json")).unwrap_err();
        assert!(error.to_string().starts_with("nowhere/tokenizer.json"));
    }
}
