//! A history file for every timeline up to the leader's, where standbys look for them: in its `pg_wal`, and in the archive.
//!
//! A standby that comes from an older timeline asks its primary for each history in between and is refused for good where one is missing. And
//! PostgreSQL's search for the newest timeline ends before the first number without a history: data made from a backup would recover along
//! the timelines that were left, and so would a new cluster made from the archive when this one is lost.

use crate::node::Node;
use crate::node::recovery;
use crate::postgres::conf::Recovery;
use crate::postgres::{archive, timelines};
use anyhow::{Result, bail};
use cluster::history::History;
use cluster::name::Timeline;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use std::time::Duration;

/// The archiver puts the leader's own history away first, and then these may come.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// So often; the next arbiter tries again.
const LOOKS: u32 = 60;

/// On the leader, once for each timeline.
pub async fn keep(node: &Node, view: &ClusterView, timeline: Timeline) {
    if view.history().current() != timeline || !node.begins_histories_of(timeline) {
        return;
    }
    let Some(files) = view.history().files() else { return };
    let data_dir = &node.config.postgres.data_dir;
    if let Err(why) = timelines::complete(data_dir, &files).await {
        tracing::warn!("write the histories that are missing here: {why:#}");
    }
    let passed_over: Vec<String> =
        files.iter().filter(|(_, text)| History::is_placeholder(text)).map(|(number, _)| timelines::file_name(*number)).collect();
    let Recovery::Standby { extra, .. } = recovery::of(&node.config, &node.dynamic(view), view, &Upstream::Nobody) else { return };
    let restore = extra.get("restore_command").or_else(|| node.config.postgres.parameters.get("restore_command")).cloned();
    let (Some(restore), false) = (restore, passed_over.is_empty()) else { return };
    let node = node.clone();
    tokio::spawn(async move {
        match occupy(&node, &restore, timeline, &passed_over).await {
            Ok(put) if put.is_empty() => {}
            Ok(put) => tracing::info!("{} went into the archive: without it recovery would not find timeline {timeline}", put.join(", ")),
            Err(why) => {
                tracing::warn!("the archive lacks a history for a number that was passed over ({}): {why:#}", passed_over.join(", "))
            }
        }
    });
}

/// Puts what only occupies a number into the archive, where it has nothing by that name, and only after the history of this timeline: a search that
/// ended at such a number would find nothing to follow. By the command and not by the server's archiver, which would stop at a file that
/// the archive refuses. Gives the names that are there now.
async fn occupy(node: &Node, restore: &str, timeline: Timeline, passed_over: &[String]) -> Result<Vec<String>> {
    let data_dir = &node.config.postgres.data_dir;
    let Some((command, _)) = node.sql.archiving().await?.filter(|(command, _)| !command.is_empty()) else { return Ok(Vec::new()) };
    let own = timelines::file_name(timeline);
    let mut looks = 0;
    while archive::get(restore, data_dir, &own).await?.is_none() {
        looks += 1;
        if looks >= LOOKS {
            bail!("{own} itself is not there yet");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let mut put = Vec::new();
    for file in passed_over {
        if archive::get(restore, data_dir, file).await?.is_none() {
            archive::put(&command, data_dir, file).await?;
            put.push(file.clone());
        }
    }
    Ok(put)
}
