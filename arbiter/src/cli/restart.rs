//! `tenure restart`: restart Postgres in place, one member after another.

use super::context::{RoleFilter, Tool, refuse};
use super::members::{self, Chosen};
use anyhow::Result;
use cluster::name::MemberName;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Longest wait for one member: a restart writes a shutdown checkpoint first.
const BOUND: Duration = Duration::from_secs(600);

/// Restart members.
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
    /// Any one of the members.
    #[arg(long)]
    pub any: bool,
    /// When, as ISO 8601 with a time zone; now where it is left out.
    #[arg(long)]
    pub scheduled: Option<String>,
    /// Only members whose PostgreSQL is older than this version.
    #[arg(long = "pg-version", value_name = "VERSION")]
    pub pg_version: Option<String>,
    /// Only members that wait for a restart.
    #[arg(long)]
    pub pending: bool,
    /// Give up after this time and let another member lead.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Without questions.
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let mut chosen = members::choose(tool, &args.words, args.group, args.role, args.force, "restart").await?;
    if args.any {
        chosen.members.truncate(1);
    }
    if args.pending {
        let view = &chosen.view;
        chosen.members.retain(|name| view.members.get(name).is_some_and(|entry| entry.member.pending_restart));
        if chosen.members.is_empty() {
            return super::context::print("No member waits for a restart");
        }
    }
    leader_last(&mut chosen);
    chosen.are_you_sure(args.force, "restart")?;
    let body = body(args)?;
    let mut done = Vec::new();
    for name in &chosen.members {
        let answer = chosen.ask(tool, name, "POST", "restart", Some(&body), BOUND).await;
        done.push(members::report(name, "restart", answer)?);
    }
    members::all_done("restart", &done)
}

/// Standbys first, so that the new settings are there when the leader restarts.
fn leader_last(chosen: &mut Chosen) {
    let leader: Option<MemberName> = chosen.view.leader.as_ref().map(|leader| leader.name.clone());
    chosen.members.sort_by_key(|name| Some(name) == leader.as_ref());
}

fn body(args: &Args) -> Result<Value> {
    let mut body = Map::new();
    if args.pending {
        body.insert("restart_pending".to_owned(), json!(true));
    }
    if let Some(version) = &args.pg_version {
        body.insert("postgres_version".to_owned(), json!(version));
    }
    if let Some(timeout) = args.timeout {
        body.insert("timeout".to_owned(), json!(timeout));
    }
    if let Some(text) = &args.scheduled
        && let Some(at) = super::handover::scheduled(text, &jiff::Zoned::now()).map_err(refuse)?
    {
        body.insert("schedule".to_owned(), json!(at));
    }
    Ok(Value::Object(body))
}
