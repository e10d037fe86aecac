//! `tenure validate`: would this file start a node?

use super::context::{print, refuse_with};
use crate::config::NodeConfig;
use anyhow::Result;
use std::path::PathBuf;

/// Check a node's configuration file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file, or a directory of *.yml files.
    pub file: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    match NodeConfig::load(&args.file, std::env::vars()) {
        Ok(config) => {
            for line in &config.not_served {
                print(format!("note: {line}"))?;
            }
            print(format!("{} is valid: member {} of {}", args.file.display(), config.name, config.scope))
        }
        Err(errors) => Err(refuse_with(errors.to_string(), "correct these lines, then check again")),
    }
}
