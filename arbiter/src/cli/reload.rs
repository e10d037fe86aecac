//! `tenure reload`: members read their file again and reload Postgres.

use super::context::{RoleFilter, Tool, print};
use super::members;
use anyhow::Result;
use std::time::Duration;

/// A reload is only asked for: the member answers at once.
const BOUND: Duration = Duration::from_secs(10);

/// Reload the configuration of members.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// [CLUSTER] [MEMBER...]
    pub words: Vec<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Only members with this role.
    #[arg(short, long, value_enum)]
    pub role: Option<RoleFilter>,
    /// Do not ask for confirmation.
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let role = args.role.or((tool.cluster_and_members(&args.words).1.is_empty()).then_some(RoleFilter::Any));
    let chosen = members::choose(tool, &args.words, args.group, role, args.force, "reload").await?;
    members::are_you_sure(&chosen, args.force, "reload")?;
    let mut done = Vec::new();
    for (chosen, name) in members::each(&chosen) {
        let loop_wait = chosen.view.config().timing().loop_wait.as_secs();
        let answer = chosen.ask(tool, name, "POST", "reload", None, BOUND).await;
        if let Ok((202, _)) = &answer {
            print(format!("Reload request received for member {name} and will be processed within {loop_wait} seconds"))?;
            done.push(true);
        } else {
            done.push(members::report(name, "reload", answer)?);
        }
    }
    members::all_done("reload", &done)
}
