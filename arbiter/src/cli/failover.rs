//! `tenure failover`: by hand to a named candidate, also where no leader is left.

use super::context::Tool;
use super::handover::{self, Action, Wish};
use anyhow::Result;

/// Fail over to a named member.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Who is to lead.
    #[arg(long)]
    pub candidate: Option<String>,
    /// Do not ask for confirmation.
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: Args) -> Result<()> {
    let Args { cluster, group, candidate, force } = args;
    handover::run(tool, Action::Failover, &Wish { cluster, group, candidate, force, ..Wish::default() }).await
}
