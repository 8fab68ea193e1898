//! Keys of artifacts. They may come from strangers (a file's name), and become paths.

use object_store::path::Path;

use super::ArtifactError;

/// Parses `key`, or refuses it: see [`Artifacts`](super::Artifacts) for what a key is.
pub(super) fn checked(key: &str) -> Result<Path, ArtifactError> {
    let refused = || ArtifactError::Key { key: key.chars().take(64).collect() };
    if key.len() > 512 || !key.split('/').all(is_segment) {
        return Err(refused());
    }
    Path::parse(key).map_err(|_| refused())
}

/// A leading dot would hide a file, or name a folder above; the staging folder begins with one.
fn is_segment(segment: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=+@".contains(&byte);
    !segment.is_empty()
        && segment.len() <= 200
        && !segment.starts_with('.')
        && segment.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_layout_are_accepted_as_they_are() {
        for key in [
            "models/7/manifest.json",
            "models/7/model_expgroup_0.safetensors",
            "submissions/12/5F3sa2TJAWMqDhXG6jhV4N8ko9SxwGy8TpaNS1repo5EYjQX/uid_3.pt",
            "rounds/12/record.json",
        ] {
            assert_eq!(checked(key).unwrap().as_ref(), key);
        }
    }

    #[test]
    fn a_key_can_not_leave_its_folder_nor_hide_in_it() {
        let long = "a".repeat(201);
        for key in [
            "",
            "/",
            "/etc/passwd",
            "a//b",
            "a/",
            "../a",
            "a/../b",
            "a/./b",
            "..",
            ".",
            ".staging/x",
            "a/.b",
            "a\\b",
            "a b",
            "a\0b",
            "a\nb",
            "a%2e%2e",
            "ä",
            "a#1",
            "a*",
            "a:b",
            "~",
            &long,
        ] {
            assert!(checked(key).is_err(), "{key:?}");
        }
        assert!(checked(&vec!["a"; 300].join("/")).is_err());
    }
}
