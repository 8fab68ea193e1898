use std::{fmt, str::FromStr};

use crate::DataError;

/// Bytes of a pattern.
const LONGEST: usize = 512;

/// A pattern of paths: `?` is one character and `*` any number of them, neither of which is `/`;
/// `**` is any number of any characters; every other character is itself. It matches whole paths,
/// relative to the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(String);

#[derive(Clone, Copy)]
enum Token {
    Character(char),
    One,
    Some,
    Any,
}

impl Glob {
    /// The pattern.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `path` matches, in time of the product of both lengths.
    pub fn matches(&self, path: &str) -> bool {
        // reached[n]: the first n tokens match what has been read.
        let tokens = self.tokens();
        let mut reached = vec![false; tokens.len() + 1];
        if let Some(first) = reached.first_mut() {
            *first = true;
        }
        skip_empty(&tokens, &mut reached);
        for character in path.chars() {
            let mut next = vec![false; tokens.len() + 1];
            for (n, token) in tokens.iter().enumerate() {
                if !reached.get(n).copied().unwrap_or(false) {
                    continue;
                }
                let (stays, goes_on) = match token {
                    Token::Character(wanted) => (false, *wanted == character),
                    Token::One => (false, character != '/'),
                    Token::Some => (character != '/', false),
                    Token::Any => (true, false),
                };
                for (at, set) in [(n, stays), (n + 1, goes_on)] {
                    if let Some(slot) = next.get_mut(at) {
                        *slot |= set;
                    }
                }
            }
            skip_empty(&tokens, &mut next);
            reached = next;
        }
        reached.last().copied().unwrap_or(false)
    }

    fn tokens(&self) -> Vec<Token> {
        let mut tokens = Vec::new();
        for character in self.0.chars() {
            match (character, tokens.last_mut()) {
                ('*', Some(last @ (Token::Some | Token::Any))) => *last = Token::Any,
                ('*', _) => tokens.push(Token::Some),
                ('?', _) => tokens.push(Token::One),
                (character, _) => tokens.push(Token::Character(character)),
            }
        }
        tokens
    }
}

/// Stars match nothing, too.
fn skip_empty(tokens: &[Token], reached: &mut [bool]) {
    for (n, token) in tokens.iter().enumerate() {
        let skips = matches!(token, Token::Some | Token::Any);
        if skips
            && reached.get(n).copied().unwrap_or(false)
            && let Some(next) = reached.get_mut(n + 1)
        {
            *next = true;
        }
    }
}

impl FromStr for Glob {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        if text.is_empty() || text.len() > LONGEST || text.contains(char::is_control) {
            let shown: String = text.chars().take(80).collect();
            return Err(DataError::Config { why: format!("files `{shown}` is no pattern") });
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stars_stop_at_folders_and_double_stars_do_not() {
        for (pattern, path, matches) in [
            ("*.parquet", "a.parquet", true),
            ("*.parquet", "data/a.parquet", false),
            ("**.parquet", "data/x/a.parquet", true),
            ("data/**/a.txt", "data/x/y/a.txt", true),
            ("data/**/a.txt", "data/a.txt", false),
            ("en/c4-train.*.json.gz", "en/c4-train.00000-of-01024.json.gz", true),
            ("en/c4-train.*.json.gz", "en/c4-validation.00000.json.gz", false),
            ("?.txt", "ä.txt", true),
            ("?.txt", "/.txt", false),
            ("a*", "a", true),
            ("a[b].txt", "a[b].txt", true),
            ("a[b].txt", "ab.txt", false),
        ] {
            let glob: Glob = pattern.parse().unwrap();
            assert_eq!(glob.matches(path), matches, "{pattern} {path}");
        }
        assert!("".parse::<Glob>().is_err() && "a\nb".parse::<Glob>().is_err());
    }

    #[test]
    fn a_pattern_of_many_stars_is_answered_at_once() {
        let glob: Glob = "*a".repeat(200).parse().unwrap();
        assert!(!glob.matches(&"a".repeat(4000).replace("aaaa", "aab/")));
    }

    proptest! {
        #[test]
        fn a_path_matches_itself_and_two_stars(path in "[a-z/.]{1,40}") {
            prop_assert!(path.parse::<Glob>().unwrap().matches(&path));
            prop_assert!("**".parse::<Glob>().unwrap().matches(&path));
            let single: Glob = "*".parse().unwrap();
            prop_assert_eq!(single.matches(&path), !path.contains('/'));
        }
    }
}
