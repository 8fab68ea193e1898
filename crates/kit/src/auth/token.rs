//! The secret that the services of one validator share, from the environment or from a file that
//! the first of them makes.

use std::{
    fmt,
    fs::{File, create_dir_all},
    io::{self, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use http::HeaderValue;
use rand::{TryRngCore as _, rngs::OsRng};
use secrecy::ExposeSecret as _;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::Common;

/// Name of the file in [`Common::data_dir`], unless [`Common::token_file`] is another.
const FILE: &str = "internal.token";
/// Characters that a token may have: enough to be guessed by nobody, few enough for a header.
const LENGTHS: std::ops::RangeInclusive<usize> = 32..=256;
/// How to make one.
const MAKE: &str = "`openssl rand -hex 32` makes one";

/// The secret by which services of one validator know each other where there is no TLS.
///
/// It is wiped from memory when its last clone is dropped, and never shown. What a call sends is a
/// copy that lives as long as the call.
#[derive(Clone)]
pub struct Token {
    secret: Arc<Zeroizing<String>>,
    source: Source,
}

/// Where a token was found, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Environment,
    File(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("the environment variable CONNITO_TOKEN"),
            Self::File(path) => write!(f, "the file {}", path.display()),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Token {
    /// The token of this host: `common.token` (the environment's CONNITO_TOKEN), else what is in
    /// `common.token_file` (`internal.token` in `common.data_dir`), which is made where it is not
    /// there. Of several services that start at once one makes it, and all read that one's.
    ///
    /// # Errors
    ///
    /// When the file can't be made or read, when others may read it, and when what was found is
    /// no token.
    pub fn open(common: &Common) -> anyhow::Result<Self> {
        if let Some(secret) = &common.token {
            let secret = Zeroizing::new(secret.expose_secret().to_owned());
            return Self::new(secret, Source::Environment);
        }
        let path = common.token_file.clone().unwrap_or_else(|| common.data_dir.join(FILE));
        let secret = match read(&path) {
            Err(error) if is_missing(&error) => {
                make(&path).with_context(|| format!("make the token file {}", path.display()))?;
                read(&path)
            }
            result => result,
        };
        let secret = secret.with_context(|| format!("read the token file {}", path.display()))?;
        Self::new(secret, Source::File(path))
    }

    fn new(secret: Zeroizing<String>, source: Source) -> anyhow::Result<Self> {
        ensure!(
            LENGTHS.contains(&secret.len()) && secret.bytes().all(|byte| byte.is_ascii_graphic()),
            "what is in {source} is no token: it must have {} to {} letters, digits or signs \
             without a space; {MAKE}",
            LENGTHS.start(),
            LENGTHS.end(),
        );
        Ok(Self { secret: Arc::new(secret), source })
    }

    /// Whether `shown` is this token; takes as long for one that is nearly as for one that is not.
    pub(super) fn is(&self, shown: &[u8]) -> bool {
        self.secret.as_bytes().ct_eq(shown).into()
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// The value of the header `authorization`: never logged, never kept by compression.
    pub(crate) fn header(&self) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
        let text = Zeroizing::new(format!("Bearer {}", self.secret.as_str()));
        let mut value = HeaderValue::from_str(&text)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Reads the file; a line end is not part of the token.
fn read(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "it is not a file");
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!("others may read it (mode {mode:04o}): chmod 600 {}", path.display());
    }
    let mut text = Zeroizing::new(String::with_capacity(LENGTHS.end() + 2));
    file.take(LENGTHS.end().saturating_add(2) as u64).read_to_string(&mut text)?;
    let end = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(end);
    Ok(text)
}

/// Makes the file with 32 random bytes as hex, whole or not at all; one that is there stays.
fn make(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    create_dir_all(folder)?;
    let mut bytes = Zeroizing::new([0; 32]);
    OsRng.try_fill_bytes(bytes.as_mut())?;
    let text = Zeroizing::new(hex::encode(bytes.as_ref()));
    // Mode 0600 from the beginning.
    let mut file = tempfile::Builder::new().prefix(".token-").tempfile_in(folder)?;
    writeln!(file, "{}", text.as_str())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error.into()),
    }
}
