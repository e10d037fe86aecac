//! `tenure promote-cluster`: a standby cluster becomes a primary cluster of its own.

use super::cluster_role;
use super::context::Tool;
use anyhow::Result;

/// Promote the standby cluster: it follows nobody any more.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// Do not ask for confirmation.
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    cluster_role::change(tool, args.cluster.as_deref(), args.force, None).await
}
