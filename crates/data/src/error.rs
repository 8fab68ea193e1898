use std::path::PathBuf;

/// Why there is no data to measure on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder could not be read or written.
    #[error("{path}: {why}")]
    File { path: PathBuf, why: String },
    /// A batch that cannot be run: a token id beyond the vocabulary, lengths that do not agree, no
    /// token to predict.
    #[error("batch: {why}")]
    Batch { why: String },
    /// The texts do not suffice for what was asked of them.
    #[error("corpus: {why}")]
    Corpus { why: String },
    /// The tokenizer's file or a text is not usable.
    #[error("tokenizer: {why}")]
    Tokenizer { why: String },
    /// What an expert group's `config.yaml` or the settings say about the data cannot be meant.
    #[error("data sources: {why}")]
    Config { why: String },
    /// A draw that cannot be made: no rows, rows that predict nothing, or more tokens than fit.
    #[error("draw: {why}")]
    Draw { why: String },
    /// A source has no shard, or no text that is long enough.
    #[error("{name} has nothing to draw from: {why}")]
    Empty { name: String, why: String },
    /// A source has fewer different rows than were asked of it. It needs more shards per round,
    /// more texts or a smaller weight.
    #[error("{name} ran out: {draws} draws in a row gave no new row of {length} tokens")]
    RanOut { name: String, draws: usize, length: usize },
    /// What a shard holds is not of its format.
    #[error("{shard}: {why}")]
    Content { shard: String, why: String },
    /// A shard is larger than this evaluator reads: raise the limit, or choose other files.
    #[error("{shard}: {what} is beyond the limit of {limit}")]
    Limit { shard: String, what: &'static str, limit: u64 },
    /// A shard is not what it was when the sources were opened.
    #[error("{shard}: the content is not what it was: {why}")]
    Changed { shard: String, why: String },
    /// The hub says that the data set is for others: a token is missing or has no access.
    #[error("{url}: the hub refuses ({status}): set a token that may read the data set")]
    HubRefused { url: String, status: u16 },
    /// The hub has no such data set, revision or file.
    #[error("{url}: the hub has nothing there ({status})")]
    HubMissing { url: String, status: u16 },
    /// The hub could not be reached, is too busy or broke off too often; a later try may succeed.
    #[error("{url}: not fetched after {tries} tries: {why}")]
    HubUnreachable { url: String, tries: usize, why: String },
    /// The hub's answer cannot be right: a wrong hash or size, an endless or malformed listing, a
    /// path that leaves its folder, a redirect that is not followed.
    #[error("{url}: the hub's answer cannot be used: {why}")]
    HubAnswer { url: String, why: String },
    /// The work ended before it was done: the runtime is shutting down, or it panicked.
    #[error("the work on the data was broken off: {why}")]
    Broken { why: String },
}

impl DataError {
    /// A failure at `path`.
    pub(crate) fn file(path: &std::path::Path, why: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_owned(), why: why.to_string() }
    }

    /// Content of `shard` that is not of its format.
    pub(crate) fn content(shard: &str, why: impl std::fmt::Display) -> Self {
        Self::Content { shard: shard.to_owned(), why: why.to_string() }
    }

    /// One word for logs, metrics and clients; it never changes its meaning.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Batch { .. } => "batch",
            Self::Corpus { .. } => "corpus",
            Self::Tokenizer { .. } => "tokenizer",
            Self::Config { .. } => "data_config",
            Self::Draw { .. } => "draw",
            Self::Empty { .. } => "source_empty",
            Self::RanOut { .. } => "source_ran_out",
            Self::Content { .. } => "shard_content",
            Self::Limit { .. } => "shard_limit",
            Self::Changed { .. } => "shard_changed",
            Self::HubRefused { .. } => "hub_refused",
            Self::HubMissing { .. } => "hub_missing",
            Self::HubUnreachable { .. } => "hub_unreachable",
            Self::HubAnswer { .. } => "hub_answer",
            Self::Broken { .. } => "broken_off",
        }
    }

    /// Whether the same call may succeed later, with nothing changed here.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::HubUnreachable { .. } | Self::Broken { .. })
    }
}
