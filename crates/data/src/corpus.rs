use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::DataError;

/// Texts, in a fixed order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    texts: Vec<String>,
}

#[derive(Deserialize)]
struct Line {
    text: String,
}

impl Corpus {
    /// Reads every `*.jsonl` (one `{"text": …}` per line, other keys are ignored) and `*.txt` (one
    /// text per file) of a folder, in ascending order of file name. Texts shorter than
    /// `minimum_length` bytes are left out.
    ///
    /// # Errors
    ///
    /// A file cannot be read or a line is not such an object; no text is left.
    pub fn open(folder: &Path, minimum_length: usize) -> Result<Self, DataError> {
        let mut texts = Vec::new();
        for path in files(folder)? {
            let content =
                std::fs::read_to_string(&path).map_err(|error| DataError::file(&path, error))?;
            if path.extension().is_some_and(|extension| extension == "txt") {
                texts.push(content);
                continue;
            }
            for (n, line) in content.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
                let Line { text } = serde_json::from_str(line)
                    .map_err(|error| DataError::file(&path, format!("line {}: {error}", n + 1)))?;
                texts.push(text);
            }
        }
        Self::from_texts(texts, minimum_length).map_err(|error| DataError::file(folder, error))
    }

    /// A corpus of these texts, without those shorter than `minimum_length` bytes.
    pub fn from_texts(
        texts: impl IntoIterator<Item = String>,
        minimum_length: usize,
    ) -> Result<Self, DataError> {
        let texts: Vec<_> =
            texts.into_iter().filter(|text| text.len() >= minimum_length.max(1)).collect();
        if texts.is_empty() {
            return Err(DataError::Corpus {
                why: format!("no text of at least {minimum_length} bytes"),
            });
        }
        Ok(Self { texts })
    }

    /// The texts.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |error| DataError::file(folder, error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let wanted = path.extension().is_some_and(|ext| ext == "jsonl" || ext == "txt");
        if wanted && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_in_order_and_short_texts_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let lines = "{\"text\":\"second text\",\"source\":1}\n\n{\"text\":\"no\"}\n";
        std::fs::write(dir.path().join("b.jsonl"), lines).unwrap();
        std::fs::write(dir.path().join("a.txt"), "first\ntext").unwrap();
        std::fs::write(dir.path().join("c.md"), "not taken").unwrap();
        let corpus = Corpus::open(dir.path(), 5).unwrap();
        assert_eq!(corpus.texts(), ["first\ntext", "second text"]);
    }

    #[test]
    fn a_bad_line_is_an_error_that_names_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.jsonl"), "{\"text\":\"good\"}\n{\"txt\":1}\n").unwrap();
        let error = Corpus::open(dir.path(), 1).unwrap_err().to_string();
        assert!(error.contains("x.jsonl") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn an_empty_folder_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Corpus::open(dir.path(), 1).unwrap_err().to_string().contains("no text"));
    }
}
