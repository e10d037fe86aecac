//! `tenure switchover`: a planned change of the leader, without loss.

use super::context::Tool;
use super::handover::{self, Action, Wish};
use anyhow::Result;

/// Switch over to another member.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// The present leader: the switchover is refused if another one leads.
    #[arg(long, visible_alias = "primary", alias = "master")]
    pub leader: Option<String>,
    /// Who is to lead; the best one where none is named.
    #[arg(long)]
    pub candidate: Option<String>,
    /// When, as ISO 8601 with a time zone; now where it is left out.
    #[arg(long)]
    pub scheduled: Option<String>,
    /// Do not ask for confirmation.
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: Args) -> Result<()> {
    let Args { cluster, group, leader, candidate, scheduled, force } = args;
    handover::run(tool, Action::Switchover, &Wish { cluster, group, leader, candidate, scheduled, force }).await
}
