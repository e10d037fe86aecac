//! `tenure flush`: take back a switchover that waits for its time, or a planned restart.

use super::context::{Tool, interactive, print, refuse, refuse_with};
use super::groups::{self, Part};
use super::members;
use anyhow::Result;
use cluster::failover::FailoverRequest;
use cluster::view::ClusterView;
use dcs::{Dcs, Error};
use std::time::Duration;

/// Discard a scheduled event: `tenure flush [CLUSTER] [MEMBER...] switchover|restart`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// [CLUSTER] [MEMBER...] and, last, `switchover` or `restart`.
    #[arg(required = true)]
    pub words: Vec<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Only members with this role.
    #[arg(short, long, value_enum)]
    pub role: Option<super::context::RoleFilter>,
    /// Do not ask for confirmation.
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    match args.words.split_last() {
        Some((what, words)) if what == "switchover" => switchover(tool, words, args).await,
        Some((what, words)) if what == "restart" => restart(tool, words, args).await,
        _ => Err(refuse("say what to discard: end with `switchover` or `restart`")),
    }
}

async fn switchover(tool: &Tool, words: &[String], args: &Args) -> Result<()> {
    let cluster = tool.cluster_and_members(words).0;
    let asked = |part: &Part| part.view.request().is_some();
    let Part { target, view } = groups::one(tool, cluster, args.group, asked, "a flush").await?;
    if view.request().is_none() {
        return print(format!("No pending scheduled switchover on cluster {}", target.scope));
    }
    match Box::pin(target.etcd.write_failover(&FailoverRequest::default(), ClusterView::revision_of(&view.failover))).await {
        Ok(_) => print(format!("Success: scheduled switchover deleted on cluster {}", target.scope)),
        Err(Error::Lost(_)) => Err(refuse_with("the request changed meanwhile", "look at `tenure list`, then try again")),
        Err(error) => Err(error.into()),
    }
}

async fn restart(tool: &Tool, words: &[String], args: &Args) -> Result<()> {
    let role = args.role.or((tool.cluster_and_members(words).1.is_empty()).then_some(super::context::RoleFilter::Any));
    let chosen = members::choose(tool, words, args.group, role, args.force || !interactive(), "flush").await?;
    // A planned restart is as easily planned again: a script is not asked.
    members::are_you_sure(&chosen, args.force || !interactive(), "flush")?;
    let mut done = Vec::new();
    for (chosen, name) in members::each(&chosen) {
        if chosen.view.members.get(name).is_some_and(|entry| entry.member.other.contains_key("scheduled_restart")) {
            let answer = chosen.ask(tool, name, "DELETE", "restart", None, Duration::from_secs(10)).await;
            done.push(members::report(name, "flush scheduled restart", answer)?);
        } else {
            print(format!("No scheduled restart for member {name}"))?;
        }
    }
    members::all_done("flush", &done)
}
