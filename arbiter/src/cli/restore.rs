//! `tenure restore`: this cluster goes back to a point in its past, in place, from its backup and its archive.

use super::context::{Tool, confirm, must_be_interactive, print, refuse, refuse_with};
use super::groups;
use crate::rest::RESTORE_WITHIN;
use anyhow::Result;
use serde_json::{Value, json};

/// Restore this cluster, in place, to a point in its past: from its backup and its archive.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["to", "to_lsn", "to_name", "undo"])))]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// Up to the last commit at or before this time, with its zone (2026-11-22T14:03:00+01:00).
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// Up to this position of the WAL.
    #[arg(long, value_name = "LSN")]
    pub to_lsn: Option<String>,
    /// Up to the point that `pg_create_restore_point` named so.
    #[arg(long, value_name = "NAME")]
    pub to_name: Option<String>,
    /// Call a restore off that is under way: the data of before are put back.
    #[arg(long)]
    pub undo: bool,
    /// Do not ask for confirmation.
    #[arg(long)]
    pub force: bool,
}

impl Args {
    /// What REST is asked for, and the point in words.
    fn request(&self) -> (Value, String) {
        match (&self.to, &self.to_lsn, &self.to_name) {
            (Some(time), ..) => (json!({"time": time}), time.clone()),
            (_, Some(lsn), _) => (json!({"lsn": lsn}), format!("position {lsn}")),
            (_, _, Some(name)) => (json!({"name": name}), format!("the restore point {name}")),
            _ => (json!({"undo": true}), String::new()),
        }
    }
}

/// Asks the leader, which does it; what is begun goes on if this command ends.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let parts = groups::all(tool, args.cluster.as_deref(), None).await?;
    let [part] = &parts[..] else {
        return Err(refuse("the groups of a Citus cluster would have to be restored together, which this command does not do"));
    };
    let Some(leader) = &part.view.leader else { return Err(refuse_with("nobody leads", "`tenure check` says more")) };
    let scope = &part.target.scope;
    let (body, to) = args.request();
    if !args.force {
        must_be_interactive("a restore")?;
        let question = if args.undo {
            format!("Are you sure you want to call the restore of {scope} off, and go on with the data of before it?")
        } else {
            let now = part.view.leader_position().map(|lsn| format!(", now at {lsn}")).unwrap_or_default();
            format!(
                "Are you sure you want to restore {scope} to {to}? Everything that was committed after it is lost to the cluster (timeline {}{now}); nobody reads or writes meanwhile. The data of now stay on {} as <data_dir>.before-restore; the other members follow the restored one, and their data of now go",
                part.view.history().current(),
                leader.name,
            )
        };
        if !confirm(&question)? {
            return Err(refuse("Aborted restore"));
        }
    }
    let api_url = part.view.members.get(&leader.name).map_or("", |entry| entry.member.api_url.as_str());
    match tool.caller.ask(api_url, "POST", "restore", Some(&body), RESTORE_WITHIN).await {
        Ok((200, _)) if args.undo => print(format!("{scope} goes on with the data of before the restore, on {}", leader.name)),
        Ok((200, _)) => print(format!(
            "Restored: {scope} is at {to}, led by {}, which keeps the data of before as <data_dir>.before-restore. The others follow: `tenure list -W` shows it",
            leader.name
        )),
        Ok((status, text)) => Err(refuse_with(
            format!("{scope} is not restored (status code {status}): {}", text.trim()),
            "`tenure list` shows what serves now; the log of the leader's arbiter has every step",
        )),
        Err(why) => Err(refuse_with(
            format!("{} gave no answer: {why:#}", leader.name),
            "a restore that has begun goes on without this command: `tenure list` shows it, `tenure restore --undo` calls it off",
        )),
    }
}
