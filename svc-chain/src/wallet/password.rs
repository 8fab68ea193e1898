//! Where the password of an encrypted wallet comes from.

use std::{
    io::{self, IsTerminal as _},
    os::fd::AsFd,
    path::Path,
};

use anyhow::Context as _;
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use secrecy::SecretString;
use tracing::warn;
use zeroize::Zeroizing;

use super::{WalletError, hotkey_file, load};
use crate::{config::Config, keys::SigningKey};

/// How often a person may try.
const TRIES: u32 = 3;

/// Opens the wallet that the configuration names. `ask` is asked where it is encrypted and no
/// password was given; it answers `None` where there is nobody to ask.
///
/// # Errors
///
/// As [`load`], and when the password's file cannot be read.
pub(crate) fn open(
    config: &Config,
    mut ask: impl FnMut(&Path) -> io::Result<Option<SecretString>>,
) -> anyhow::Result<SigningKey> {
    let home = std::env::home_dir();
    let path = hotkey_file(&config.wallet_path, &config.coldkey, &config.hotkey, home.as_deref());
    let given = given(config)?;
    let mut result = load(&path, given.as_ref());
    let mut tries = if given.is_some() { 0 } else { TRIES };
    while tries > 0 {
        let Err(WalletError::NoPassword { .. } | WalletError::WrongPassword { .. }) = result else {
            break;
        };
        let Some(password) = ask(&path).context("ask for the password of the wallet")? else {
            break;
        };
        result = load(&path, Some(&password));
        tries -= 1;
    }
    Ok(result?)
}

/// The password of the environment, or of the file that the configuration names.
fn given(config: &Config) -> anyhow::Result<Option<SecretString>> {
    if let Some(password) = &config.wallet_password {
        return Ok(Some(password.clone()));
    }
    let Some(file) = &config.wallet_password_file else { return Ok(None) };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("read the password file {}", file.display()))?;
    let text = Zeroizing::new(text);
    Ok(Some(SecretString::from(text.trim_end_matches(['\r', '\n']))))
}

/// Asks the person at the terminal; `None` where standard input is none.
pub(crate) fn ask(wallet: &Path) -> io::Result<Option<SecretString>> {
    if !io::stdin().is_terminal() {
        return Ok(None);
    }
    let prompt = format!("Password of the wallet {}: ", wallet.display());
    // Hidden before the question is there: whoever answers at once would be shown otherwise.
    let hidden = Hidden::new(io::stdin())?;
    let password = rpassword::prompt_password(prompt);
    drop(hidden);
    password.map(|password| Some(SecretString::from(password)))
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden<T: AsFd> {
    terminal: T,
    before: Termios,
}

impl<T: AsFd> Hidden<T> {
    fn new(terminal: T) -> io::Result<Self> {
        let before = termios::tcgetattr(&terminal)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(&terminal, OptionalActions::Now, &hidden)?;
        Ok(Self { terminal, before })
    }
}

impl<T: AsFd> Drop for Hidden<T> {
    fn drop(&mut self) {
        if let Err(error) = termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before) {
            warn!(%error, "the terminal still hides what is typed: `stty sane` shows it again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encrypted() -> Config {
        let folder = std::env::var_os("CONNITO_VECTORS").map_or_else(
            || concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors").into(),
            std::path::PathBuf::from,
        );
        Config {
            wallet_path: folder.join("wallets"),
            coldkey: "encrypted".to_owned(),
            ..Config::defaults()
        }
    }

    #[test]
    fn a_person_is_asked_until_it_opens() {
        let mut answers =
            ["correct horse battery staple", "wrong"].map(SecretString::from).to_vec();
        let key = open(&encrypted(), |_| Ok(answers.pop())).unwrap();
        assert!(answers.is_empty() && !key.hotkey().as_str().is_empty());
    }

    #[test]
    fn nobody_is_asked_where_a_password_was_given_and_nobody_there_is_an_error() {
        let given = Config { wallet_password: Some("wrong".into()), ..encrypted() };
        let error = open(&given, |_| panic!("a password was given")).unwrap_err();
        assert!(error.to_string().contains("does not open"), "{error}");
        let error = open(&encrypted(), |_| Ok(None)).unwrap_err().to_string();
        assert!(error.contains("CONNITO_WALLET_PASSWORD") && error.contains("terminal"), "{error}");
    }

    #[test]
    fn a_person_may_try_so_often_and_no_more() {
        let mut asked = 0;
        let missing = Config { coldkey: "not there".to_owned(), ..encrypted() };
        let error = open(&missing, |_| panic!("there is nothing to open")).unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
        let wrong = |_: &Path| {
            asked += 1;
            Ok(Some(SecretString::from("wrong")))
        };
        assert!(open(&encrypted(), wrong).is_err());
        assert_eq!(asked, TRIES);
    }
}
