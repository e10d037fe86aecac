//! What is in a data directory that no server runs on.

use crate::postgres::controldata::{self, ClusterState, ControlData};
use crate::postgres::marker::Incomplete;
use crate::postgres::{Programs, is_empty_directory, read_if_there};
use anyhow::Result;
use cluster::local::{Control, DataDir, Ended};
use std::path::Path;

/// All that its files say.
pub async fn of_files(programs: &Programs, data_dir: &Path) -> Result<DataDir> {
    if let Some(what) = Incomplete::of(data_dir).read().await? {
        return Ok(DataDir::Incomplete { what });
    }
    if is_empty_directory(data_dir).await? {
        return Ok(DataDir::Empty);
    }
    Ok(match controldata::read(programs, data_dir).await {
        Ok(read) => DataDir::Present(Control { ended: ended(data_dir, &read).await, ..control(&read) }),
        Err(why) => DataDir::Damaged { why: format!("{why:#}") },
    })
}

/// How the server that last used the directory ended. A copy that never started looks by its `pg_control` like the crashed primary that it
/// was taken from; its label goes with its first start. Before release 15 a primary in an exclusive backup has a label too, so there it
/// takes the file by which a server is a standby as well.
pub async fn ended(data_dir: &Path, read: &ControlData) -> Ended {
    let there = async |name: &str| tokio::fs::try_exists(data_dir.join(name)).await.unwrap_or(false);
    let judged = control(read).ended;
    if judged != Ended::CrashedPrimary || !there("backup_label").await {
        return judged;
    }
    let version = read_if_there(&data_dir.join("PG_VERSION")).await.ok().flatten().unwrap_or_default();
    let recent = version.trim().parse::<u32>().is_ok_and(|major| major >= 15);
    if recent || there("standby.signal").await || there("recovery.signal").await { Ended::Standby } else { judged }
}

/// The part of `pg_control` that decisions rest on.
pub fn control(control: &ControlData) -> Control {
    let ended = match control.state {
        ClusterState::ShutDown => Ended::CleanPrimary,
        state if state.was_primary() || state == ClusterState::StartingUp => Ended::CrashedPrimary,
        _ => Ended::Standby,
    };
    let (timeline, checkpoint) = match ended {
        Ended::Standby => (control.reached_timeline(), control.reached()),
        Ended::CleanPrimary | Ended::CrashedPrimary => (control.timeline, control.checkpoint),
    };
    Control { system_id: control.system_id.clone(), timeline, checkpoint, ended }
}
