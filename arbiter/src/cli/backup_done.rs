//! `tenure backup-done`: the backup's own job says that it has ended, so that `tenure check` can miss the next one.

use super::context::{Tool, print, refuse_with};
use super::groups;
use anyhow::Result;
use cluster::backup::Backup;

/// Note that a backup was made; `tenure check` warns when none was for longer than `backup_within`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// When it ended (RFC 3339); now where it is not given.
    #[arg(long)]
    pub at: Option<String>,
    /// What it was, for people who look.
    #[arg(long, default_value = "")]
    pub label: String,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let now = jiff::Timestamp::now();
    let at = match &args.at {
        None => now,
        Some(text) => {
            text.parse().map_err(|why| refuse_with(format!("--at {text} is no time: {why}"), "write it as 2026-11-22T03:00:00Z"))?
        }
    };
    if at > now {
        return Err(refuse_with(format!("--at {at} is still to come"), "say when the backup ended"));
    }
    let backup = Backup { at: at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), label: args.label.clone() };
    for part in groups::own(tool, args.cluster.as_deref(), args.group, false).await? {
        part.target.etcd.note_backup(&backup).await?;
        let within = match part.view.config().backup_within() {
            Some(within) => format!("`tenure check` misses the next one after {} h", within.as_secs() / 3600),
            None => "`tenure check` misses none: backup_within is not set (`tenure edit-config -s backup_within=26h`)".to_owned(),
        };
        print(format!("A backup of {} at {} is noted; {within}", part.target.scope, backup.at))?;
    }
    Ok(())
}
