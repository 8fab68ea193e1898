//! The folder of an expert group (protocol, section 7): `config.yaml` and `expert_assignment.json`.

use std::path::Path;

use data::Source;
use domain::ExpertGroup;
use serde::{Deserialize, Serialize};

use crate::{GroupExperts, ModelError};

/// `config.yaml`: what the group trains on. Keys that are not named here are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupConfig {
    /// The group's number.
    pub group_id: ExpertGroup,
    /// Where its texts come from: folders, and data sets of a hub at one revision.
    #[serde(default)]
    pub data_sources: Vec<Source>,
    /// Tokens of a sequence.
    pub sequence_length: usize,
}

/// An expert group as its folder says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupFolder {
    /// What it trains on.
    pub config: GroupConfig,
    /// Layer -> `(local id, global id)`.
    pub experts: GroupExperts,
}

impl GroupFolder {
    const CONFIG: &str = "config.yaml";
    const ASSIGNMENT: &str = "expert_assignment.json";

    /// Reads the folder.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(Self::CONFIG);
        let config = serde_norway::from_str(&text(&path)?)
            .map_err(|error| ModelError::file(&path, error))?;
        let path = folder.join(Self::ASSIGNMENT);
        let experts =
            serde_json::from_str(&text(&path)?).map_err(|error| ModelError::file(&path, error))?;
        Ok(Self { config, experts })
    }

    /// Writes the folder, which is created where it is missing.
    pub fn write(&self, folder: &Path) -> Result<(), ModelError> {
        std::fs::create_dir_all(folder).map_err(|error| ModelError::file(folder, error))?;
        let path = folder.join(Self::CONFIG);
        let config = serde_norway::to_string(&self.config)
            .map_err(|error| ModelError::file(&path, error))?;
        std::fs::write(&path, config).map_err(|error| ModelError::file(&path, error))?;
        let path = folder.join(Self::ASSIGNMENT);
        let experts =
            serde_json::to_string(&self.experts).map_err(|error| ModelError::file(&path, error))?;
        std::fs::write(&path, experts).map_err(|error| ModelError::file(&path, error))
    }
}

fn text(path: &Path) -> Result<String, ModelError> {
    std::fs::read_to_string(path).map_err(|error| ModelError::file(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_folder_says_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let group = GroupFolder {
            config: GroupConfig {
                group_id: ExpertGroup(1),
                data_sources: vec!["facts".into()],
                sequence_length: 64,
            },
            experts: [(1, vec![(0, 4), (1, 5)]), (2, vec![(0, 6), (1, 7)])].into(),
        };
        group.write(dir.path()).unwrap();
        assert_eq!(GroupFolder::read(dir.path()).unwrap(), group);
        let json = std::fs::read_to_string(dir.path().join("expert_assignment.json")).unwrap();
        assert_eq!(json, r#"{"1":[[0,4],[1,5]],"2":[[0,6],[1,7]]}"#);
    }

    #[test]
    fn keys_of_others_in_the_configuration_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let yaml = "group_id: 0\nsequence_length: 4096\nlearning_rate: 0.1\n";
        std::fs::write(dir.path().join("config.yaml"), yaml).unwrap();
        std::fs::write(dir.path().join("expert_assignment.json"), "{}").unwrap();
        assert_eq!(GroupFolder::read(dir.path()).unwrap().config.sequence_length, 4096);
    }
}
