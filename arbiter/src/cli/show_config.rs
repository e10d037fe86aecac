//! `tenure show-config`: the dynamic configuration as YAML.

use super::context::{Tool, print, refuse};
use super::groups::{self, Part};
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
    /// Every group of a Citus cluster, also where the configuration file is of one of them.
    #[arg(long, conflicts_with = "group")]
    pub all_groups: bool,
}

/// Runs the command. Several groups are several YAML documents.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let parts = groups::own(tool, args.cluster.as_deref(), args.group, args.all_groups).await?;
    let several = parts.len() > 1;
    for Part { target, view } in parts {
        if let Some(group) = target.group.filter(|_| several) {
            print(format!("---\n# Citus group: {group}"))?;
        }
        match &view.config {
            Some(config) => print(yaml(&config.value.0)?)?,
            None if several => print("# no configuration")?,
            None => return Err(refuse(format!("The config key does not exist in the cluster {}", target.scope))),
        }
    }
    Ok(())
}
