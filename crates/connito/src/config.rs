//! `connito config`: the one file of a host.

use std::path::{Path, PathBuf};

use crate::ValidatorConfig;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Read a file as every service would, and say what is wrong with it
    Check {
        /// The file
        path: PathBuf,
    },
    /// Print the file with every key, its meaning and its default
    Template,
}

pub(crate) fn main(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Check { path } => check(path),
        Command::Template => {
            write_out(&template());
            Ok(())
        }
    }
}

fn check(path: &Path) -> anyhow::Result<()> {
    let config = ValidatorConfig::load(Some(path))?;
    write_out(&format!(
        "{} is good: expert group {}, chain {}, store {}, artifacts {}\n",
        path.display(),
        config.scheduler.expert_group,
        config.common.chain_url,
        config.common.store_url,
        config.common.artifacts_url,
    ));
    Ok(())
}

/// The whole file: what is shipped in `deploy/`, and a test says so.
pub(crate) fn template() -> String {
    let head = "# Configuration of one Connito validator host. Every key is optional and shows its default.\n\
                # Every key can be set by the environment: CONNITO_<SECTION>_<KEY>, CONNITO_<KEY> for [common].\n\n";
    [
        head.to_owned(),
        kit::config::template::<kit::Common>("common"),
        kit::config::template::<svc_chain::Config>("chain"),
        kit::config::template::<svc_scheduler::Config>("scheduler"),
        kit::config::template::<svc_gateway::Config>("gateway"),
        kit::config::template::<svc_evaluator::Config>("evaluator"),
        kit::config::template::<svc_peer::Config>("peer"),
    ]
    .join("\n")
}

/// Standard output is what these commands are for; a closed pipe is the reader's choice.
pub(crate) fn write_out(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_is_the_generated_template() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/connito.toml");
        let shipped = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            shipped == template(),
            "deploy/connito.toml is not the template: run `connito config template > deploy/connito.toml`"
        );
    }

    #[test]
    fn the_template_as_it_is_passes_the_check() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("connito.toml");
        std::fs::write(&path, template()).unwrap();
        check(&path).unwrap();
    }

    #[test]
    fn a_key_that_does_not_exist_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("connito.toml");
        std::fs::write(&path, "[gateway]\nhtp_addr = \"127.0.0.1:1\"\n").unwrap();
        let error = format!("{:#}", check(&path).unwrap_err());
        assert!(error.contains("htp_addr"), "{error}");
    }
}
