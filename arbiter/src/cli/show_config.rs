//! `tenure show-config`: the dynamic configuration as YAML.

use super::context::{Tool, print, refuse};
use super::list::yaml;
use anyhow::Result;

/// Show the dynamic configuration.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let target = tool.target(args.cluster.as_deref(), args.group)?;
    let view = target.view().await?;
    match &view.config {
        Some(config) => print(yaml(&config.value.0)?),
        None => Err(refuse(format!("The config key does not exist in the cluster {}", target.scope))),
    }
}
