//! `tenure restart`: restart Postgres in place, one member after another.

use super::context::{RoleFilter, Tool, print, refuse, refuse_with};
use super::members::{self, Chosen};
use anyhow::Result;
use cluster::lsn::Lsn;
use cluster::member::Member;
use cluster::name::MemberName;
use cluster::pending;
use dcs::Dcs;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Longest wait for one member: a restart writes a shutdown checkpoint first.
const BOUND: Duration = Duration::from_secs(600);

/// Longest wait between two restarts for the standbys to stream again.
const STREAM_BOUND: Duration = Duration::from_secs(30);

/// Restart members, one after another; all of them where none is named.
///
/// Standbys go first and the leader last; the leader goes first where max_connections or another of the settings that a standby may
/// not have lower than its primary waits to be lowered.
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
    /// Hand the leadership over before the leader's own restart: for a new library or a minor release of PostgreSQL. Standbys, one switchover,
    /// the old leader.
    #[arg(long, conflicts_with_all = ["any", "scheduled"])]
    pub rolling: bool,
    /// Only members that wait for a restart.
    #[arg(long)]
    pub pending: bool,
    /// Wait at most so long for each member's answer; its restart goes on.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Do not ask for confirmation.
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let mut chosen = members::choose(tool, &args.words, args.group, args.role, args.force, "restart").await?;
    if args.any {
        chosen.truncate(1);
        chosen.iter_mut().for_each(|part| part.members.truncate(1));
    }
    for Chosen { view, members, .. } in &mut chosen {
        let waits = |name: &MemberName| view.members.get(name).is_some_and(|entry| entry.member.pending_restart);
        members.retain(|name| !args.pending || waits(name));
        *members = pending::in_order(view, std::mem::take(members));
        if args.rolling && members.len() > 1 && members.first().is_some_and(|first| view.leader_if(first).is_some()) {
            return Err(refuse_with(
                "a setting waits to be lowered that a standby may not have lower than its primary, so the leader has to be first",
                "restart without --rolling",
            ));
        }
    }
    chosen.retain(|part| !part.members.is_empty());
    if chosen.is_empty() {
        return print("No member waits for a restart");
    }
    members::are_you_sure(&chosen, args.force, "restart")?;
    let body = body(args)?;
    let now = body.get("schedule").is_none();
    let mut done = Vec::new();
    for chosen in &chosen {
        for (number, name) in chosen.members.iter().enumerate() {
            if let Some(before) = number.checked_sub(1).and_then(|before| chosen.members.get(before)).filter(|_| now) {
                Box::pin(follows_again(chosen, before, name)).await?;
            }
            if args.rolling && !Box::pin(hand_over(tool, chosen, name)).await? {
                done.push(false);
                break;
            }
            let answer = chosen.ask(tool, name, "POST", "restart", Some(&body), BOUND).await;
            done.push(members::report(name, "restart", answer)?);
        }
    }
    members::all_done("restart", &done)
}

/// The leader hands over before its restart, where there is somebody to hand over to. False where that failed: then it is not restarted.
async fn hand_over(tool: &Tool, chosen: &Chosen, name: &MemberName) -> Result<bool> {
    let view = chosen.target.view().await?;
    if view.leader_if(name).is_none() || view.members.len() < 2 {
        return Ok(true);
    }
    let answer = chosen.ask(tool, name, "POST", "switchover", Some(&json!({"leader": name})), BOUND).await;
    let done = members::report(name, "switchover", answer)?;
    if done {
        Box::pin(follows_again(chosen, name, name)).await?;
    }
    Ok(done)
}

/// One restart after another: before the next one all standbys stream again. After the leader's, they also have replayed what it
/// wrote at its start: only then may a standby have settings that were lowered. Says what it waits for when that takes longer than a
/// moment, and goes on in the end.
async fn follows_again(chosen: &Chosen, after: &MemberName, next: &MemberName) -> Result<()> {
    let wake = Arc::new(Notify::new());
    let etcd = chosen.target.etcd.clone();
    let mut least: Option<Lsn> = None;
    let streams = async {
        loop {
            wake.notified().await;
            let Ok(view) = etcd.load_view().await else { continue };
            let leader = view.leader.as_ref().and_then(|leader| Some((&leader.name, view.members.get(&leader.name)?)));
            let Some((name, leader)) = leader.filter(|(_, leader)| leader.member.is_running()) else { continue };
            if name == after && least.is_none() {
                least = leader.member.xlog_location;
            }
            let standbys = chosen.members.iter().filter(|member| *member != name);
            if standbys.filter_map(|name| view.members.get(name)).all(|entry| level(&entry.member, least)) {
                return;
            }
        }
    };
    let told = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = print(format!("Waiting until the standbys stream again, before the restart of {next}"));
        tokio::time::sleep(STREAM_BOUND).await;
        let _ = print("Not all standbys stream: going on");
    };
    tokio::select! {
        () = streams => {}
        () = told => {}
        () = dcs::watch::keep_watching(etcd.clone(), wake.clone()) => {}
    }
    Ok(())
}

/// It streams, and has replayed at least this.
fn level(standby: &Member, least: Option<Lsn>) -> bool {
    standby.replication_state.as_deref() == Some("streaming") && least.is_none_or(|least| standby.replay_lsn >= Some(least))
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
