//! The command line that every service has.

use std::path::PathBuf;

use anyhow::Context as _;
use confique::Config;

use crate::config::{self, Common};

/// The arguments of every service.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Cli {
    /// Configuration file (TOML); without it, defaults and the environment
    #[arg(long, env = "CONNITO_CONFIG", value_name = "PATH")]
    pub config: Option<PathBuf>,

    /// Print the configuration file with every key, its meaning and its default
    #[arg(long)]
    pub print_config_template: bool,
}

impl Cli {
    /// Loads the section of a service, and the common one.
    ///
    /// # Errors
    ///
    /// As [`config::load`].
    pub fn load<C: Config>(&self, section: &str) -> anyhow::Result<(C, Common)> {
        let path = self.config.as_deref();
        let own = config::load(path, section).context("load the configuration")?;
        let common = config::load(path, "common").context("load the configuration")?;
        Ok((own, common))
    }

    /// Returns the text that `--print-config-template` asks for: `[common]` and `[section]`.
    #[must_use]
    pub fn template<C: Config>(section: &str) -> String {
        format!("{}\n{}", config::template::<Common>("common"), config::template::<C>(section))
    }
}
